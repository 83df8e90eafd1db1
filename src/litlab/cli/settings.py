"""Where settings, runs and the project lie. Known before anything heavy is imported, so that a wrong name is answered at once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litlab.cli import messages
from litlab.errors import BadInput

STARTS = ("resume", "fork", "init")


@dataclass
class Request:
    """What a person wants to start from.

    Args:
        resume: auto, or what `find` knows as a run; None: nothing.
        fork: a run whose state a new run continues with.
        init: a run or a checkpoint file whose weights a new run begins with.
    """

    resume: str | None = None
    fork: str | None = None
    init: str | None = None

    @property
    def source(self) -> str | None:
        """The one run that is named, if there is one."""
        return self.fork or self.init or (self.resume if self.resume != "auto" else None)


def links(model: Any, data: Any) -> dict[str, str]:
    """Settings that follow another one and cannot be set themselves, each with what it follows.

    Args:
        model: the model's class, or None.
        data: the data module's class, or None.
    """
    of_model, of_data = (messages.parameters(owner) if owner else {} for owner in (model, data))
    found = {}
    if "seed" in of_data:
        found["data.seed"] = "seed_everything"
    if "tokenizer" in of_data and "pretrained" in of_model:
        found["data.tokenizer"] = "model.pretrained"
    for name in ("num_classes", "vocab_size"):
        if name in of_model and hasattr(data, name):
            found[f"model.{name}"] = f"data.{name}"
    return found


def take_request(arguments: list[str]) -> tuple[Request, list[str]]:
    """Split --resume, --fork and --init off the other arguments.

    Raises:
        BadInput: if a value is missing, or two exclude each other.
    """
    found: dict[str, str] = {}
    rest, words = [], iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in STARTS:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("-"):
            raise BadInput(
                f"--{name} needs a run: latest, an experiment, a run id or a path{', or auto' * (name == 'resume')}."
            )
        found[name] = value
    request = Request(**found)
    if (request.fork and request.init) or (request.source and request.resume not in (None, "auto", request.source)):
        raise BadInput("--resume RUN, --fork and --init exclude each other: each names another run to start from.")
    return request, rest


def config_files(arguments: list[str]) -> list[Path]:
    """The files named with -c or --config, in their order.

    Raises:
        BadInput: if -c is the last word.
    """
    files = []
    for position, argument in enumerate(arguments):
        if argument in ("-c", "--config"):
            if position + 1 == len(arguments):
                raise BadInput(f"{argument} needs a file: -c configs/experiment/<name>.yaml.")
            files.append(Path(arguments[position + 1]))
        elif argument.startswith(("-c", "--config=")):
            files.append(Path(argument.removeprefix("-c").removeprefix("--config=").removeprefix("=")))
    return files


def project_root(files: list[Path]) -> Path:
    """The nearest folder with configs/, upwards from the first configuration file or the current folder.

    Raises:
        BadInput: if there is none.
    """
    # not with pathlib's methods, which raise for a name that is too long or a link to itself
    for start in [*(Path(os.path.realpath(file)).parent for file in files[:1]), Path.cwd()]:
        for folder in (start, *start.parents):
            if os.path.isdir(folder / "configs"):
                return folder
    raise BadInput(f"no folder configs/ in {Path.cwd()} or above it: run litlab inside the project.")


def base_file(files: list[Path]) -> Path:
    """configs/base.yaml of the project.

    Raises:
        BadInput: if it is missing.
    """
    base = project_root(files) / "configs" / "base.yaml"
    if not base.is_file():
        raise BadInput(
            f"{base} is missing: every experiment builds on it; git checkout -- configs/base.yaml brings it back."
        )
    return base


def all_files(arguments: list[str]) -> list[Path]:
    """The files that the settings come from, in their order: base.yaml, then those named with -c.

    A run's own config.yaml is complete and needs no base.

    Raises:
        BadInput: if one is missing or is not settings.
    """
    files = config_files(arguments)
    if not files or not os.path.isfile(files[0].parent / "run.json"):
        files.insert(0, base_file(files))
    check(files)
    return files


def runs_folder(files: list[Path]) -> Path:
    """Where runs are kept: $LITLAB_RUNS, or runs/ in the project."""
    if folder := os.environ.get("LITLAB_RUNS"):
        return Path(os.path.realpath(os.path.expanduser(folder)))
    return project_root(files) / "runs"


def check(files: list[Path]) -> None:
    """Refuse files that are missing or not settings.

    Raises:
        BadInput: if there is one.
    """
    for file in files:
        if problem := messages.file_problem(file):
            raise BadInput(problem)
