"""Fixtures from tests/ for this recipe, and a project folder with the recipe's configurations."""

import os
import random
import shutil
from pathlib import Path

import pyarrow
import pytest
from conftest import (  # noqa: F401
    PROJECT,
    WORDS,
    alone,
    idx_folder,
    inside,
    interrupter,
    litlab,
    project,
    session_alone,
    tiny_t5,
)

from recipes.t5_documentation import documentation

FOLDER = Path("recipes/t5_documentation")


@pytest.fixture
def recipe(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Working folder: a project with the configurations of this recipe and t5_sum; subprocesses can import the code."""
    shutil.copytree(PROJECT / FOLDER / "configs", inside / FOLDER / "configs")
    shutil.copy(PROJECT / "configs/experiment/t5_sum.yaml", inside / "configs/experiment")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT), prepend=os.pathsep)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return inside


@pytest.fixture
def files_made(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the recipe's data/ by a folder in the project, and each data file by a few short texts.

    Returns:
        The names of the files created so far.
    """
    source, made = random.Random(0), []

    def table(name: str, *columns: str) -> pyarrow.Table:
        made.append(name)
        texts = [[" ".join(source.choices(WORDS.split(), k=8)) for _ in range(60)] for _ in columns]
        return pyarrow.table(dict(zip(columns, texts, strict=True)))

    monkeypatch.setattr(documentation, "DATA", recipe / FOLDER / "data")
    for name, (_, lists) in documentation.FILES.items():
        columns = ("text",) if name == "texts.parquet" else ("text", "summary")
        entry = (lambda name=name, columns=columns: table(name, *columns), lists)
        monkeypatch.setitem(documentation.FILES, name, entry)
    return made
