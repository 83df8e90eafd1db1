"""The documents: the README's code runs as printed, links lead somewhere, commands and files exist."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import PROJECT
from exactness import differing
from in_process import fit, logged
from interruption import Interrupter, fit_interrupted, kill

import project.data
import project.models
from litlab.cli.main import COMMANDS, run

PAGES = [PROJECT / f"{name}.md" for name in ("README", "CONTRIBUTING", "AGENTS", "CHANGELOG", "UPSTREAM")]
PAGES += sorted((PROJECT / "docs").glob("*.md"))
README = (PROJECT / "README.md").read_text()
SIGNALS = ("-c", "configs/experiment/signals.yaml", "--trainer.logger=false", "--last_checkpoint.every_minutes=1e-9")


@pytest.fixture
def signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with the README's model, data and YAML, and 400 signals whose frequency tells their class."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    code = dict(
        zip(("models", "data", "configs"), re.findall(r"```(?:python|yaml)\n(.*?)```", README, re.DOTALL), strict=True)
    )
    (tmp_path / "configs/experiment/signals.yaml").write_text(code["configs"])
    for room, package, file in (("models", project.models, "signal_cnn"), ("data", project.data, "signals")):
        assert f"`src/project/{room}/{file}.py`" in README
        folder = tmp_path / "src/project" / room
        folder.mkdir(parents=True)
        (folder / f"{file}.py").write_text(code[room])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    random, time = np.random.default_rng(0), np.arange(64)
    labels = np.arange(400) % 3
    phases = random.uniform(0, 6, (400, 3, 1))
    waves = np.sin(time * (0.2 + 0.2 * labels[:, None, None]) + phases) + random.normal(0, 0.3, (400, 3, 64))
    np.savez(tmp_path / "signals.npz", signals=waves.astype(np.float32), labels=labels)
    monkeypatch.chdir(tmp_path)


def test_the_code_of_the_readme_trains_resumes_bit_for_bit_and_is_evaluated(
    signals: None, interrupter: Interrupter
) -> None:
    interrupter.never()
    whole = fit(*SIGNALS)
    accuracy = logged(whole, "val/accuracy")
    assert accuracy[-1] > 0.9 and accuracy[-1] > accuracy[0]
    interrupter.after_steps(23, kill)
    part = fit_interrupted(*SIGNALS)
    interrupter.never()
    assert fit("--resume=latest").path == part.path and not differing(whole.path, part.path)
    assert run("eval", ["latest"]) == 0
    table = pyarrow.parquet.read_table(part.path / "predictions" / "test.parquet").to_pydict()
    assert table["id"] == [*range(360, 400)] and len(table["probabilities"][0]) == 3


def test_the_readme_fits_on_a_few_screens_and_begins_with_the_two_commands() -> None:
    assert len(README.splitlines()) <= 150
    commands = [line for line in README.splitlines() if line.startswith("make ")]
    assert commands[0].startswith("make train EXP=mnist_mlp") and commands[1].startswith("make test")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_targets_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert (page.parent / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert {
        name for pair in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)[ `]", text, re.MULTILINE) for name in pair
    } - {""} <= targets
    assert set(re.findall(r"bin/litlab (\w+)", text)) <= set(COMMANDS)
    for path in re.findall(r"`((?:configs|src|notebooks|tests|recipes|benchmarks|docs)/[\w./]*\w)`", text):
        if page.stem not in ("README", "CHANGELOG"):  # the README's example is not there, the changelog names old files
            assert (PROJECT / path).exists(), path


def test_every_page_is_reachable_from_the_readme() -> None:
    linked = set(re.findall(r"\((docs/\w+\.md)\)", README))
    assert linked == {f"docs/{page.name}" for page in (PROJECT / "docs").glob("*.md")}
