"""Build the model, its data and the trainer from YAML files and command-line options: a thin LightningCLI.

There are at most three layers, and later ones win: configs/base.yaml, the files named with -c (an experiment, then
overlays), and the options on the command line. A run's own config.yaml is complete and needs no base.yaml.
"""

import re
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from jsonargparse import set_dumper, set_parsing_settings
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import Field

from litlab.cli import messages
from litlab.cli.classes import import_class, links
from litlab.cli.settings import all_files, find_project, runs_folder
from litlab.errors import BadInput, first_sentence
from litlab.runs.directory import RunDirectory
from litlab.runs.provenance import redact
from litlab.runs.start import Request, Start, choose_start
from litlab.training import precision, ranks
from litlab.training.build import Job, as_list, trainer_arguments, use_own_signal_handlers
from litlab.training.checkpoints import BestCheckpoint, LastCheckpoint
from litlab.training.guard import Guard

# the trainer divides by these without checking them
POSITIVE = ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "val_check_interval")
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Dumper(yaml.SafeDumper):
    """A YAML dumper that writes an enum as its value: some Lightning callbacks have enums as defaults."""


Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def dump_yaml(content: Any) -> str:
    """Return a configuration as YAML in jsonargparse's format, with the values of enums."""
    return yaml.dump(content, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


class Parser(LightningArgumentParser):
    """An argument parser that explains each error in one sentence."""

    settings: ClassVar[messages.Settings]

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise the error that jsonargparse would print.

        Raises:
            BadInput: always.
        """
        options = [action.dest for action in self._actions]
        raise BadInput(messages.problem(message, self.settings, options)) from ex


class LitlabCLI(LightningCLI):
    """Parses the settings and instantiates model, data and trainer. All files of a run are in one directory.

    Args:
        arguments: the command line after the command: -c files and options.
        run: the run directory; None: the one that `request` names, or a new one.
        request: the run or checkpoint to start from.

    Raises:
        BadInput: if a file, a setting or a run cannot be used.
    """

    def __init__(self, arguments: list[str], run: RunDirectory | None = None, request: Request | None = None) -> None:
        self.files = all_files(arguments)
        self._given_run = run
        self._request = request or Request()
        if self.files[0].name == "base.yaml":
            arguments = ["-c", str(self.files[0]), *arguments]
        self.settings = messages.Settings(arguments, self.files)
        set_dumper("yaml", dump_yaml)
        original, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns if sys.argv has arguments too
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                # a new class for each call, because jsonargparse creates parsers of this class for model and data too
                parser_class=type("Parser", (Parser,), {"settings": self.settings}),
                parser_kwargs={"allow_abbrev": False, "prog": "litlab fit"},
                auto_configure_optimizers=False,
                args=arguments,
                run=False,
            )
        except BadInput as error:
            raise BadInput(str(error).strip(messages.OPEN + messages.CLOSE)) from error
        except ValueError as error:
            if sentence := messages.missing_package(str(error)):
                raise BadInput(sentence) from error
            raise
        finally:
            sys.argv = original

    def job(self, arguments: list[str]) -> Job:
        """Return what `litlab.training` needs to train or evaluate.

        Args:
            arguments: the command line, for run.json.
        """
        return Job(
            model=self.model,
            datamodule=self.datamodule,
            trainer=self.trainer,
            start=self.start,
            config=self.config_yaml(),
            seed=self.config.seed_everything,
            project=find_project(self.files) or Path.cwd(),
            arguments=arguments,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed as an integer; Lightning's own option also accepts false for no seed."""
        parser.add_argument("--seed_everything", type=Seed, default=0, help="random seed")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning lacks, and link the settings that are derived from others.

        Raises:
            BadInput: if a derived setting is set.
        """
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="folder in runs/; null: the name of the first -c file",
        )
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(Guard, "guard")
        classes = (import_class(self.settings.class_of(part) or "") for part in ("model", "data"))
        for target, source in links(*classes).items():
            if setting := self.settings.set_at(target):
                if source.startswith("data."):
                    raise BadInput(f"{setting.location}: this value is derived from the data; remove the setting.")
                raise BadInput(f"{setting.location}: this value is derived from {source}; set {source} instead.")
            # an attribute of the data module exists only after the module is instantiated
            apply_on = "instantiate" if source.startswith("data.") else "parse"
            source = source.replace("model.", "model.init_args.")
            parser.link_arguments(source, target.replace(".", ".init_args."), apply_on=apply_on)

    def before_instantiate_classes(self) -> None:
        """Check the values, choose the precision, which config.yaml records, and decide where training starts.

        Raises:
            BadInput: if a value or the requested start cannot be used.
        """
        self._refuse_null()
        self._check_numbers_and_names()
        self.device = precision.device_type(self.config.trainer.accelerator)
        is_rank_zero = getattr(rank_zero_only, "rank", 0) == 0
        if self.config.trainer.precision is None:
            self.config.trainer.precision, reason = precision.choose_precision(self.device)
            if is_rank_zero:
                print(f"precision  {self.config.trainer.precision}: {reason}", file=sys.stderr)
        run = self._given_run or RunDirectory.plan(runs_folder(self.files), self.config.experiment)
        self.start = ranks.inherited_start() or Start(run)
        if not self._given_run and is_rank_zero:
            self.start = choose_start(self._request, self.config_yaml(), run)
        self.run = self.start.run

    def _refuse_null(self) -> None:
        """Validate null values too: jsonargparse treats them as not set and does not check them."""
        set_parsing_settings(unset_sentinel=True)
        try:
            self.parser.validate(self.config)
        except TypeError as error:
            self.parser.error(str(error), error)
        finally:
            set_parsing_settings(unset_sentinel=False)

    def _check_numbers_and_names(self) -> None:
        """Refuse values that make Lightning fail later or write to the wrong folder."""
        # numbers and paths of the trainer
        for name in POSITIVE:
            value = self.config.trainer[name]
            if isinstance(value, int | float) and value <= 0:
                location = self.settings.find(f"trainer.{name}").location
                raise BadInput(f"{location}: {value} is not accepted, expected a number greater than 0.")
        if self.config.trainer.default_root_dir is not None:
            location = self.settings.find("trainer.default_root_dir").location
            raise BadInput(
                f"{location}: litlab sets this to the run directory; set LITLAB_RUNS to store runs in another folder."
            )
        # the experiment, which names a folder
        if self.config.experiment is None:
            own_files = [file for file in self.files if file.name != "base.yaml"]
            self.config.experiment = own_files[0].stem if own_files else "unnamed"
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.config.experiment):
            raise BadInput(
                f"experiment {self.config.experiment!r:.120} is not a valid folder name: use letters, digits, '_', '-' and '.' only, at "
                "most 100 characters; set it with --experiment=..., the default is the name of the first -c file."
            )
        if self.config.experiment == "latest":
            raise BadInput("experiment 'latest' is the name of the link to the newest run: choose another name.")
        # the names of several checkpoints must differ
        if self.config.checkpoint.save_top_k not in (0, 1) and "{" not in (self.config.checkpoint.filename or "{"):
            raise BadInput(
                f"checkpoint.save_top_k is {self.config.checkpoint.save_top_k}, but checkpoint.filename gives all of them the same "
                "name: use --checkpoint.filename='{epoch}-{step}'."
            )

    def config_yaml(self) -> str:
        """Return the whole configuration as YAML, without secrets and without values that are specific to this run."""
        return redact(self.parser.dump(self.config, skip_unset=False), assignments=False)

    def instantiate_classes(self) -> None:
        """Instantiate with loggers that write to the run directory, whose path stays out of config.yaml."""
        recorded = self.config
        self.config = recorded.clone()
        for logger in as_list(self.config.trainer.logger):
            if "save_dir" in (getattr(logger, "init_args", None) or {}):
                logger.init_args.save_dir = str(self.run.path)
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse raises it for any error in a constructor
            cause = error.__cause__
            while cause and not isinstance(cause, BadInput):
                cause = cause.__cause__
            if cause:
                raise cause from None
            raise
        self.config = recorded

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the arguments that every run needs, and answer SIGTERM in litlab instead of Lightning.

        Raises:
            BadInput: if Lightning refuses the arguments.
        """
        try:
            trainer = super().instantiate_trainer(
                **trainer_arguments(self.config_init.trainer, self.run.path), **kwargs
            )
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise BadInput(f"the trainer's settings do not work here: {first_sentence(str(error))}") from error
        use_own_signal_handlers(trainer)
        return trainer
