"""Find configuration files, runs and the project, without heavy imports, to report a wrong name at once."""

import os
from pathlib import Path

from litlab.errors import BadInput
from litlab.runs.config_file import file_problem
from litlab.runs.start import Request

STARTS = ("resume", "fork", "init")


def take_request(arguments: list[str]) -> tuple[Request, list[str]]:
    """Separate --resume, --fork and --init from the other arguments.

    Raises:
        BadInput: if a value is missing, or two options exclude each other.
    """
    # collect the three options
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
    # they must name one run
    request = Request(**found)
    if (request.fork and request.init) or (request.source and request.resume not in (None, "auto", request.source)):
        raise BadInput("--resume RUN, --fork and --init exclude each other: name one run to start from.")
    return request, rest


def config_files(arguments: list[str]) -> list[Path]:
    """Return the files named with -c or --config, in order.

    Raises:
        BadInput: if -c is the last argument.
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
    """Return the project: the nearest folder with configs/base.yaml, otherwise with configs/; None if there is none.

    The search goes up from the folder of the first configuration file, then from the current folder.
    """
    # os.path instead of pathlib, which raises for a name that is too long and for a link to itself
    for start in [*(Path(os.path.realpath(file)).parent for file in files[:1]), Path.cwd()]:
        for marker in ("configs/base.yaml", "configs"):  # base.yaml first: a recipe has its own configs/
            for folder in (start, *start.parents):
                if os.path.exists(folder / marker):
                    return folder
    return None


def project_root(files: list[Path]) -> Path:
    """Return the folder of the project.

    Raises:
        BadInput: if there is none.
    """
    if root := find_project(files):
        return root
    raise BadInput(f"no folder configs/ in {Path.cwd()} or above it: run litlab inside the project.")


def base_file(files: list[Path]) -> Path:
    """Return configs/base.yaml of the project.

    Raises:
        BadInput: if it is missing.
    """
    base = project_root(files) / "configs" / "base.yaml"
    if not base.is_file():
        raise BadInput(
            f"{base} is missing: every experiment builds on it; restore it with git checkout -- configs/base.yaml."
        )
    return base


def all_files(arguments: list[str]) -> list[Path]:
    """Return all configuration files, in order: base.yaml, then those named with -c.

    A run's own config.yaml is complete and needs no base.yaml.

    Raises:
        BadInput: if one is missing or does not hold settings.
    """
    files = config_files(arguments)
    if not files or not os.path.isfile(files[0].parent / "run.json"):
        files.insert(0, base_file(files))
    check(files)
    return files


def runs_folder(files: list[Path]) -> Path:
    """Return the folder of all runs: $LITLAB_RUNS, or runs/ in the project."""
    if folder := os.environ.get("LITLAB_RUNS"):
        return Path(os.path.realpath(os.path.expanduser(folder)))
    return project_root(files) / "runs"


def check(files: list[Path]) -> None:
    """Check that all files exist and hold settings.

    Raises:
        BadInput: if one does not.
    """
    for file in files:
        if problem := file_problem(file):
            raise BadInput(problem)
