"""Run commands in this process, and read the runs that they leave in runs/ of the working folder."""

import os
from pathlib import Path
from typing import Any

import torch

from litlab.cli.main import run
from litlab.runs.directory import RunDirectory, rows


def newest(project: Path | str = "") -> RunDirectory:
    """The newest run.

    Args:
        project: the folder with runs/, by default the working folder; $LITLAB_RUNS takes precedence if it is set.
    """
    return RunDirectory((Path(os.environ.get("LITLAB_RUNS", Path(project, "runs"))) / "latest").resolve())


def fit(*arguments: str) -> RunDirectory:
    """Train in this process and return the newest run."""
    assert run("fit", [*arguments]) == 0
    return newest()


def logged(directory: RunDirectory, name: str) -> list[float]:
    """All values of one column of metrics.csv."""
    return [row[name] for row in rows(directory.path) if name in row]


def content(directory: RunDirectory, name: str = "last") -> dict[str, Any]:
    """The content of a checkpoint."""
    return torch.load(directory.checkpoint(name), weights_only=True)


def weights(directory: RunDirectory, name: str = "last") -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return content(directory, name)["state_dict"]
