"""Shared fixtures for the project's models and data: a project folder with its experiments."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT

MakeProject = Callable[[Path, Path], Path]


@pytest.fixture(scope="session")
def make_project() -> MakeProject:
    """A function that creates a project folder with the real configs; mnist_mlp uses a small MNIST and two epochs."""

    def make(folder: Path, source: Path) -> Path:
        shutil.copytree(PROJECT / "configs", folder / "configs")
        experiment = folder / "configs" / "experiment" / "mnist_mlp.yaml"
        text = experiment.read_text()
        for before, after in (
            ("source: catalog", f"source: {source}"),
            ("batch_size: 128", "batch_size: 32"),
            ("validation_size: 5000", "validation_size: 100"),
            ("max_epochs: 20", "max_epochs: 2"),
        ):
            assert before in text, f"{before!r} is no longer in mnist_mlp.yaml"
            text = text.replace(before, after)
        experiment.write_text(text)
        return folder

    return make


@pytest.fixture
def project(make_project: MakeProject, tmp_path: Path, idx_folder: Path) -> Path:
    """A project folder with the small MNIST."""
    return make_project(tmp_path / "project", idx_folder)
