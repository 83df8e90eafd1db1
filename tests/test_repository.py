"""Conventions of the repository: YAML files, README and Makefile."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from litlab.cli.lightning_cli import LitlabCLI

PROJECT = Path(__file__).resolve().parents[1]
RECIPES = sorted(PROJECT.glob("recipes/*/configs/*.yaml"))
CONFIGS = [*sorted((PROJECT / "configs").rglob("*.yaml")), *RECIPES]
EXPERIMENTS = [*sorted((PROJECT / "configs/experiment").glob("*.yaml")), *RECIPES]
README = (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_value_in_a_yaml_has_a_comment(file: Path) -> None:
    bare = [
        line
        for line in file.read_text().splitlines()
        if re.match(r"\s*(- )?[\w+]+:\s+\S", line) and " # " not in line and not re.search("class_path: (litlab|project|recipes)[.]", line)
        and not re.match(r"\s*- class_path: lightning.pytorch.loggers", line)
    ]  # fmt: skip
    assert bare == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_yaml_begins_with_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith("# ")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_parses_and_says_how_to_start_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert f"make train EXP={file.stem}" in file.read_text()
    monkeypatch.setattr(LitlabCLI, "instantiate_classes", lambda cli: None)  # it would download models and data
    assert LitlabCLI(["-c", str(file)]).config.experiment == file.stem


def test_experiments_are_listed_in_the_readme() -> None:
    for file in EXPERIMENTS:
        assert f"`{file.stem}`" in README


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_make_train_finds_every_experiment(file: Path) -> None:
    said = subprocess.run(["make", "-n", "train", f"EXP={file.stem}"], cwd=PROJECT, capture_output=True, text=True)
    assert f"fit -c {file.relative_to(PROJECT)}" in said.stdout


def test_yaml_files_are_mappings_of_known_sections() -> None:
    for file in CONFIGS:
        assert set(yaml.safe_load(file.read_text())) <= {
            "seed_everything",
            "experiment",
            "trainer",
            "checkpoint",
            "last_checkpoint",
            "guard",
            "model",
            "data",
        }
