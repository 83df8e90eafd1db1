"""Where settings, runs and the project lie. Known before anything heavy is imported, so that a wrong name is answered at once."""

import inspect
import os
from pathlib import Path
from typing import Any

from litlab import explain
from litlab.errors import BadInput


def links(model: Any, data: Any) -> dict[str, str]:
    """Settings that follow another one and cannot be set themselves, each with what it follows.

    Args:
        model: the model's class, or None.
        data: the data module's class, or None.
    """
    of_model, of_data = (set(inspect.signature(owner).parameters) if owner else set() for owner in (model, data))
    found = {}
    if "seed" in of_data:
        found["data.seed"] = "seed_everything"
    if "tokenizer" in of_data and "pretrained" in of_model:
        found["data.tokenizer"] = "model.pretrained"
    for name in ("num_classes", "vocab_size"):
        if name in of_model and hasattr(data, name):
            found[f"model.{name}"] = f"data.{name}"
    return found


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
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
    return files


def project_root(files: list[Path]) -> Path:
    """The nearest folder with configs/, upwards from the first configuration file or the current folder.

    Raises:
        BadInput: if there is none.
    """
    for start in [*(file.resolve().parent for file in files[:1]), Path.cwd()]:
        for folder in (start, *start.parents):
            if (folder / "configs").is_dir():
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


def runs_folder(files: list[Path]) -> Path:
    """Where runs are kept: $LITLAB_RUNS, or runs/ in the project."""
    if folder := os.environ.get("LITLAB_RUNS"):
        return Path(folder).expanduser().resolve()
    return project_root(files) / "runs"


def check(files: list[Path]) -> None:
    """Refuse files that are missing or not settings.

    Raises:
        BadInput: if there is one.
    """
    for file in files:
        if problem := explain.file_problem(file):
            raise BadInput(problem)
