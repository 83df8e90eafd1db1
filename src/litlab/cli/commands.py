"""The commands of the core. What is wrong with their arguments is said before torch is imported."""

import argparse
from typing import Any, NoReturn

import yaml

from litlab.cli import messages
from litlab.cli.settings import all_files, config_files, links, runs_folder, take_request
from litlab.errors import BadInput
from litlab.runs.directory import find


def fit_command(arguments: list[str]) -> int:
    """Train, then score the best checkpoint on the validation split. The test split is never touched."""
    request, settings = take_request(arguments)
    files = config_files(settings)
    if not files and request.source:
        if request.init and request.init.endswith(".ckpt"):
            raise BadInput("--init with a checkpoint file needs an experiment: -c configs/experiment/<name>.yaml.")
        settings = ["-c", str(find(runs_folder([]), request.source).config()), *settings]
    elif not files and request.resume:
        raise BadInput("--resume=auto needs an experiment: -c configs/experiment/<name>.yaml.")
    all_files(settings)
    if "-h" in arguments or "--help" in arguments:
        print(fit_help(settings))
        return 0
    from litlab.training.fit import fit

    fit(settings, request, arguments)
    return 0


class EvalParser(argparse.ArgumentParser):
    """Answers like every other part of the command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"{message}, as in litlab eval latest --split=val.")


def eval_command(arguments: list[str]) -> int:
    """Score a run on one of its splits. A look at the test split is counted in run.json."""
    parser = EvalParser(
        "litlab eval",
        allow_abbrev=False,
        description=eval_command.__doc__,
        epilog="Other options are those of litlab fit and override the run's config.",
    )
    parser.add_argument("run", help="latest, an experiment (its newest run), a run id, or a path")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="which examples to score")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    options, overrides = parser.parse_known_args(arguments)
    run = find(runs_folder([]), options.run)
    run.checkpoint(options.checkpoint)
    from litlab.training.fit import score

    score(run, options.split, options.checkpoint, overrides)
    return 0


def fit_help(arguments: list[str]) -> str:
    """The options of `litlab fit`, one line each; those of a model and its data if an experiment is given with -c."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from litlab.training.checkpoints import LastCheckpoint
    from litlab.training.guard import Guard

    shared = {"checkpoint": ModelCheckpoint, "last_checkpoint": LastCheckpoint, "guard": Guard, "trainer": Trainer}
    owners = {}
    values: dict[str, dict[str, Any]] = {part: {} for part in ("model", "data", *shared)}
    for file in config_files(arguments):
        content = yaml.safe_load(file.read_text())
        for part, known in values.items():
            if isinstance(content.get(part), dict):
                known.update(content[part].get("init_args") or content[part])
        for part in ("model", "data"):
            if isinstance(content.get(part), dict) and "class_path" in content[part]:
                owners[part] = messages.import_class(content[part]["class_path"])
                if owners[part] is None:
                    raise BadInput(
                        f"{file}: {part}.class_path {content[part]['class_path']!r} is no class that can be imported."
                    )
    sections = [
        "litlab fit -c configs/experiment/<name>.yaml [-c overlay.yaml ...] [--key=value ...]",
        fit_command.__doc__ or "",
        "Settings come from configs/base.yaml, then the -c files, then the options; the last one wins. The values below are what the\n"
        "files set, and the defaults where they set nothing.",
        "general\n"
        "  --seed_everything=0    seed of everything random; also fixes the order of the data\n"
        "  --experiment=NAME      folder below runs/; default: the name of the first -c file\n"
        "  --resume=auto|RUN      continue the newest unfinished run with these settings, or begin one; or continue RUN\n"
        "  --fork=RUN             continue the state of RUN in a new run, with other settings if you like\n"
        "  --init=RUN|FILE        begin a new run with the weights of RUN or of a checkpoint file",
    ]
    for part, owner in {**owners, **shared}.items():
        linked = {name.removeprefix(f"{part}.") for name in links(owners.get("model"), owners.get("data"))}
        lines = "\n".join(f"  --{part}.{line}" for line in messages.option_lines(owner, linked, values[part]))
        sections.append(f"{part}: {owner.__name__}\n{lines}")
    if not owners:
        sections.append(
            "With -c configs/experiment/<name>.yaml this help also lists the options of its model and data."
        )
    return "\n\n".join(sections)
