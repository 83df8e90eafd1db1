"""From layers of YAML and a command line to a model, its data and a trainer: a thin LightningCLI.

At most three layers, later ones win: configs/base.yaml, the files named with -c (an experiment, then overlays), and
the options on the command line. A run's own config.yaml is complete and needs no base.
"""

import logging
import re
import sys
import warnings
from enum import Enum
from typing import Annotated, Any, ClassVar

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import Field

from litlab.cli import messages
from litlab.cli.settings import Request, all_files, links, runs_folder
from litlab.errors import BadInput, first_sentence
from litlab.runs.directory import RunDirectory
from litlab.runs.provenance import redact
from litlab.runs.start import Start, choose
from litlab.training import precision
from litlab.training.checkpoint_io import AtomicCheckpointIO
from litlab.training.checkpoints import BestCheckpoint, LastCheckpoint
from litlab.training.evaluation_results import EvaluationResults
from litlab.training.guard import Guard
from litlab.training.loggers import MetricsCsv
from litlab.training.loops import FitLoop

for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)  # what they say at every start is said by us, or an advertisement
for message in (
    ".*smaller than the logging interval.*",  # every epoch is logged, whatever its length
    ".*LeafSpec.*is deprecated.*",  # Lightning 2.6.6 under torch 2.13: nothing a user can change
    ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run continues
    ".*ended before the epoch ended and your dataloader is.*",  # litlab.training.loops brings it back to its place
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # BertClassifier's: it packs whatever data it gets
):
    warnings.filterwarnings("ignore", message=message)

# some Lightning callbacks have an enum as a default, which YAML cannot write although it is a string
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))

# the trainer divides by these, whatever they are
POSITIVE = ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "val_check_interval")
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Parser(LightningArgumentParser):
    """Accepts no abbreviations and explains what it refuses in one sentence."""

    settings: ClassVar[messages.Settings]

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what jsonargparse would print."""
        options = [action.dest for action in self._actions]
        raise BadInput(messages.problem(message, self.settings, options)) from ex


class LitlabCLI(LightningCLI):
    """Parses the layers and instantiates model, data and trainer, with every file of the run in one directory.

    Args:
        arguments: the command line after the command: -c files and options.
        run: the run directory to use; None plans a new one, or takes the one that is requested.
        request: what to start from.

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
        original, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns if it sees other arguments beside the ones given
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                # a class of its own, because jsonargparse makes further parsers of the same class for models and data
                parser_class=type("Parser", (Parser,), {"settings": self.settings}),
                parser_kwargs={"allow_abbrev": False, "prog": "litlab fit"},
                auto_configure_optimizers=False,
                args=arguments,
                run=False,
            )
        except BadInput as error:
            raise BadInput(str(error).strip(messages.OPEN + messages.CLOSE)) from error
        finally:
            sys.argv = original

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed; Lightning's own option also takes true, for a seed that nobody knows."""
        parser.add_argument("--seed_everything", type=Seed, default=0, help="seed of everything random")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning's own options lack, and link what must not be said twice."""
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="name of the folder below runs/; null: the first -c file's name",
        )
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(Guard, "guard")
        classes = (messages.import_class(self.settings.class_of(part) or "") for part in ("model", "data"))
        for target, source in links(*classes).items():
            if place := self.settings.set_at(target):
                followed = "the data" if source.startswith("data.") else source
                raise BadInput(f"{place.text}: this follows {followed}; set that instead.")
            # what data has is known when there is data
            moment = "instantiate" if source.startswith("data.") else "parse"
            source = source.replace("model.", "model.init_args.")
            parser.link_arguments(source, target.replace(".", ".init_args."), apply_on=moment)

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine, so that config.yaml says what was used."""
        self._refuse_null()
        for name in POSITIVE:
            value = self.config.trainer[name]
            if isinstance(value, int | float) and value <= 0:
                place = self.settings.find(f"trainer.{name}").text
                raise BadInput(f"{place}: {value} is not accepted, expected a number greater than 0.")
        if self.config.experiment is None:
            own_files = [file for file in self.files if file.name != "base.yaml"]
            self.config.experiment = own_files[0].stem if own_files else "unnamed"
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.config.experiment):
            raise BadInput(
                f"experiment {self.config.experiment!r:.120} names a folder: use letters, digits, '_', '-' and '.' only, at most 100; "
                "--experiment=... sets it, the name of the first -c file is the default."
            )
        if self.config.experiment == "latest":
            raise BadInput("experiment 'latest' is the name of the link to the newest run: choose another.")
        if self.config.checkpoint.save_top_k not in (0, 1) and "{" not in (self.config.checkpoint.filename or "{"):
            raise BadInput(
                f"checkpoint.save_top_k is {self.config.checkpoint.save_top_k}, but checkpoint.filename gives all of them one "
                "name: use --checkpoint.filename='{epoch}-{step}'."
            )
        self.device = precision.device_type(self.config.trainer.accelerator)
        if self.config.trainer.precision is None:
            self.config.trainer.precision, reason = precision.choose(self.device)
            if getattr(rank_zero_only, "rank", 0) == 0:
                print(f"precision  {self.config.trainer.precision}: {reason}", file=sys.stderr)
        config = self.config_yaml()
        self.start = Start(self._given_run or RunDirectory.plan(runs_folder(self.files), self.config.experiment))
        if not self._given_run and getattr(rank_zero_only, "rank", 0) == 0:
            self.start = choose(self._request, config, self.start.run)
        self.run = self.start.run
        self._origin = {"run": self.run.id, "config": yaml.safe_load(config)}

    def _refuse_null(self) -> None:
        """Check the values that are null too: jsonargparse takes them for values that were not given, and lets them pass."""
        set_parsing_settings(unset_sentinel=True)
        try:
            self.parser.validate(self.config)
        except TypeError as error:
            self.parser.error(str(error), error)
        finally:
            set_parsing_settings(unset_sentinel=False)

    def config_yaml(self) -> str:
        """The whole configuration, without secrets and without anything that belongs to one run only."""
        return redact(self.parser.dump(self.config, skip_none=False), assignments=False)

    def instantiate_classes(self) -> None:
        """Instantiate with loggers and checkpoints directed to the run directory, which stays out of the configuration."""
        stated = self.config
        self.config = stated.clone()
        self.config.checkpoint.dirpath = str(self.run.path / "checkpoints")
        for logger in as_list(self.config.trainer.logger):
            if "save_dir" in (getattr(logger, "init_args", None) or {}):
                logger.init_args.save_dir = str(self.run.path)
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse's, behind which what a constructor has raised is hidden
            cause = error.__cause__
            while cause and not isinstance(cause, BadInput):
                cause = cause.__cause__
            if cause:
                raise cause from None
            raise
        self.config = stated

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add what every run has, whatever its YAML says: metrics.csv, the evaluation results, safe checkpoints."""
        config = self.config_init.trainer
        loggers = as_list(None if config.logger is True else config.logger)
        plugins = [*as_list(config.plugins), AtomicCheckpointIO()]
        strategy = config.strategy if isinstance(config.strategy, str) else type(config.strategy).__name__
        if config.precision in ("bf16-mixed", "bf16") and not re.match(
            "fsdp|deepspeed|modelparallel", strategy.lower()
        ):
            kwargs["precision"] = None  # the plugin says it; sharding strategies bring their own
            plugins.append(precision.Bf16Mixed(self.device))
        self.results = EvaluationResults(self.run.path)
        self.trainer_defaults["callbacks"] = [self.results]
        if not config.fast_dev_run:
            kwargs["logger"] = [*loggers, MetricsCsv(self.run.path)]  # self.logger of a module is the first
        try:
            trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise BadInput(f"the trainer's settings do not work here: {first_sentence(str(error))}") from error
        self.keeper = self.config_init.last_checkpoint
        self.keeper.path = self.run.path / "checkpoints" / "last.ckpt"
        self.keeper.origin = self._origin
        self.guard = self.config_init.guard
        self.guard.run, self.guard.seed = self.run.path, self.config.seed_everything
        if type(trainer.precision_plugin) in (Precision, precision.Bf16Mixed):  # others scale or shard gradients
            trainer.precision_plugin.clip_grad_by_norm = self.guard.clip  # type: ignore[method-assign]
        trainer.fit_loop = FitLoop(trainer, self.keeper)
        # litlab.training.interrupts answers the signals; Lightning's own handlers save at any moment, and start runs from what they saved
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer


def as_list(value: Any) -> list[Any]:
    """What Lightning takes as one, several or none, as a list."""
    return value if isinstance(value, list) else [value] if value else []
