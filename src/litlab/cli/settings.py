"""Where settings, runs and the project lie. Known before anything heavy is imported, so that a wrong name is answered at once."""

import os
from pathlib import Path

from litlab.errors import BadInput
from litlab.runs.config_file import file_problem
from litlab.runs.start import Request

STARTS = ("resume", "fork", "init")


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


def find_project(files: list[Path]) -> Path | None:
    """The nearest folder with configs/base.yaml, upwards from the first configuration file, else from the current folder.

    Without a base.yaml it is the nearest with configs/, where base.yaml is missing; None if there is none either.
    """
    # not with pathlib's methods, which raise for a name that is too long or a link to itself
    for start in [*(Path(os.path.realpath(file)).parent for file in files[:1]), Path.cwd()]:
        for marker in ("configs/base.yaml", "configs"):  # in this order: a recipe has configs/ of its own
            for folder in (start, *start.parents):
                if os.path.exists(folder / marker):
                    return folder
    return None


def project_root(files: list[Path]) -> Path:
    """The folder of the project.

    Raises:
        BadInput: if there is none.
    """
    if root := find_project(files):
        return root
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
        if problem := file_problem(file):
            raise BadInput(problem)
