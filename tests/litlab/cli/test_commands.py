"""The commands as a user calls them: trainings of a small model, checked by the files that they write."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import Command, run_litlab, small_project
from exactness import deterministic
from in_process import content, fit, logged, newest, weights
from lightning.fabric.loggers import tensorboard
from lightning_utilities.core.imports import RequirementCache
from small.data import SmallData

from litlab.cli.main import run
from litlab.errors import BadInput
from litlab.runs.directory import RunDirectory

SMALL = ("-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=1")
ONE_EPOCH = "--trainer.max_epochs=1"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable W&B for runs in this process, because its session would outlive the test."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A project with one finished run of the litlab command, including W&B, and the output of the command."""
    folder = small_project(tmp_path_factory.mktemp("trained") / "project")
    return folder, run_litlab(folder, "fit", *SMALL, "--model.learning_rate=3e-3", fresh=True)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of one epoch with one process."""
    folder = small_project(tmp_path_factory.mktemp("one_epoch") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        return fit(*SMALL, ONE_EPOCH)


def test_a_training_writes_the_whole_run_directory_and_prints_the_next_command(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    project, done = trained
    assert done.returncode == 0, done.stderr
    directory = newest(project)
    names = {"config.yaml", "run.json", "metrics.csv", "eval.json", "predictions", "checkpoints", "wandb"}
    assert names <= set(os.listdir(directory.path))
    assert {"best.ckpt", "last.ckpt"} == set(os.listdir(directory.path / "checkpoints"))
    record = directory.record()
    assert record["status"] == "finished" and record["seed"] == 0 and record["test_evaluations"] == 0
    assert record["overrides"] == ["--trainer.log_every_n_steps=1", "--model.learning_rate=3e-3"]
    assert record["wandb_id"] == directory.id and record["steps"] == 32 and len(record["data_fingerprint"]) == 64
    score = json.loads((directory.path / "eval.json").read_text())["val"]["metrics"]["val/accuracy"]
    assert record["best"] == {"name": "val/accuracy", "score": score}
    for words in (f"val/accuracy {score:.4f}", f"runs/small/{directory.id}", "make eval"):
        assert words in done.stdout
    assert "W&B: offline (no credentials" in done.stderr
    assert not directory.is_alive()


def test_config_yaml_repeats_the_run_bit_for_bit_and_contains_no_path_or_id_of_it(inside: Path, quiet: None) -> None:
    first = fit(*SMALL, "--seed_everything=3", ONE_EPOCH)
    text = (first.path / "config.yaml").read_text()
    assert first.id not in text and str(inside / "runs") not in text
    second = fit("-c", str(first.path / "config.yaml"))
    assert second.id != first.id and second.experiment == first.experiment == "small"
    assert (second.path / "config.yaml").read_text() == text
    assert deterministic(second.path) == deterministic(first.path)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_seed_zero_is_used_and_different_seeds_give_different_runs(inside: Path, quiet: None) -> None:
    zero, again, one = (fit(*SMALL, f"--seed_everything={seed}", ONE_EPOCH) for seed in (0, 0, 1))
    assert logged(zero, "train/loss") == logged(again, "train/loss") != logged(one, "train/loss")
    assert yaml.safe_load((zero.path / "config.yaml").read_text())["seed_everything"] == 0


def test_fit_never_touches_the_test_split(inside: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallData, "test_dataloader", lambda self: pytest.fail("fit asked for the test split"))
    assert "test" not in json.loads((fit(*SMALL, ONE_EPOCH).path / "eval.json").read_text())


def test_eval_on_the_test_split_is_counted_and_logged_to_the_same_run(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    project = Path(shutil.copytree(trained[0], tmp_path / "project", symlinks=True))
    directory = newest(project)
    before = (directory.path / "metrics.csv").read_text().splitlines()
    done = run_litlab(project, "eval", "latest")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(project)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert run("eval", ["latest"]) == 0
    for output, count in ((done.stdout, 1), (capsys.readouterr().out, 2)):
        assert f"evaluated {count} time" in output and "over 200 examples" in output
    assert directory.record()["test_evaluations"] == 2 and directory.record()["status"] == "finished"
    result = json.loads((directory.path / "eval.json").read_text())["test"]
    table = pyarrow.parquet.read_table(directory.path / "predictions" / "test.parquet").to_pydict()
    assert result["examples"] == 200 and table["id"] == list(range(200))
    right = sum(target == prediction for target, prediction in zip(table["target"], table["prediction"], strict=True))
    assert result["metrics"]["test/accuracy"] == pytest.approx(right / 200)
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in table["probabilities"])
    assert len((directory.path / "metrics.csv").read_text().splitlines()) == len(before) + 2
    assert logged(directory, "test/accuracy") == [pytest.approx(right / 200)] * 2
    # two offline logs of one W&B run, for wandb sync
    assert len(list((directory.path / "wandb").glob(f"offline-run-*-{directory.id}"))) == 2


def test_eval_on_the_validation_split_is_not_counted_as_a_test_evaluation(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, ONE_EPOCH)
    before = json.loads((directory.path / "eval.json").read_text())["val"]["metrics"]
    assert run("eval", [directory.id, "--split=val"]) == 0
    assert json.loads((directory.path / "eval.json").read_text())["val"]["metrics"] == pytest.approx(before)
    assert directory.record()["test_evaluations"] == 0


@pytest.mark.parametrize(
    "options",
    [(), pytest.param(("--trainer.accumulate_grad_batches=3",), marks=pytest.mark.slow)],
    ids=["plain", "three micro-batches"],
)
def test_two_processes_equal_one_process(
    litlab: Command, project: Path, one_epoch: RunDirectory, options: tuple[str, ...]
) -> None:
    """500 examples in batches of 32 leave a last batch of 20, which neither 2 nor 6 slices divide."""
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2", "--trainer.logger=false")
    done = litlab("fit", *SMALL, *ddp, ONE_EPOCH, *options)
    assert done.returncode == 0, done.stderr
    two = newest(project)
    assert sum(path.is_dir() and not path.is_symlink() for path in (project / "runs" / "small").iterdir()) == 1
    assert logged(two, "train/loss") == pytest.approx(logged(one_epoch, "train/loss"), rel=1e-4)
    for name, value in weights(one_epoch).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-5)
    of_one, of_two = (json.loads((part.path / "eval.json").read_text())["val"] for part in (one_epoch, two))
    assert of_two["examples"] == of_one["examples"] == 100
    assert of_two["metrics"] == pytest.approx(of_one["metrics"], abs=1e-3)


def test_last_and_best_are_the_last_and_the_best_checkpoint(inside: Path, quiet: None) -> None:
    # the accuracy rises, so with mode=min the first epoch is the best
    directory = fit(*SMALL, "--checkpoint.mode=min", "--trainer.max_epochs=3")
    steps = {name: content(directory, name)["global_step"] for name in ("best", "last")}
    assert steps == {"best": 16, "last": 48}


def test_early_stopping_and_every_trainer_option_work_from_the_command_line(inside: Path, quiet: None) -> None:
    stop = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.patience=1"
    directory = fit(*SMALL, *shlex.split(stop), "--trainer.callbacks.min_delta=100", "--trainer.max_epochs=9")
    assert len(logged(directory, "val/loss")) == 2


def test_gradient_clipping_works_with_bf16_and_the_fused_optimizer(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1e-6", ONE_EPOCH)
    assert directory.record()["status"] == "finished"
    assert yaml.safe_load((directory.path / "config.yaml").read_text())["trainer"]["gradient_clip_val"] == 1e-6


def test_the_chosen_precision_is_printed_and_recorded(
    inside: Path, quiet: None, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = fit(*SMALL, "--trainer.precision=null", ONE_EPOCH)
    chosen = yaml.safe_load((directory.path / "config.yaml").read_text())["trainer"]["precision"]
    assert chosen in ("bf16-mixed", "32-true")
    assert f"precision  {chosen}: the CPU has" in capfd.readouterr().err


def test_without_tensorboard_the_message_names_the_extra(
    inside: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, RequirementCache("tensorboard>=999"))
    with pytest.raises(BadInput, match=r"needs the package tensorboard, .* -r requirements/tensorboard\.txt"):
        run("fit", [*SMALL, "-c", "configs/logger/tensorboard.yaml", ONE_EPOCH])
    assert not Path("runs").exists()


def test_tensorboard_is_an_overlay(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, "-c", "configs/logger/tensorboard.yaml", ONE_EPOCH)
    assert list((directory.path / "tensorboard").glob("events.out.tfevents.*"))
    assert logged(directory, "val/loss")


def test_overfitting_one_batch_brings_its_loss_near_zero(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, "-c", "configs/debug/overfit.yaml", "--model.label_smoothing=0")
    assert logged(directory, "train/loss")[-1] < 0.01


def test_the_profile_overlay_leaves_a_table_in_the_run_directory(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, "-c", "configs/debug/profile.yaml")
    assert "run_training_batch" in (directory.path / "fit-profile.txt").read_text()


def test_fast_dev_run_logs_nothing_and_ends_well(inside: Path, quiet: None) -> None:
    directory = fit(*SMALL, "--trainer.fast_dev_run=true")
    assert directory.record()["status"] == "finished" and not (directory.path / "metrics.csv").exists()


def test_ten_predicted_texts_are_printed_and_all_are_saved(inside: Path, quiet: None, capsys) -> None:
    directory = fit("-c", "configs/experiment/speller.yaml")
    lines = capsys.readouterr().out.splitlines()
    printed = {name: [line for line in lines if line.startswith(f"{name:<8}")] for name in ("source", "target", "text")}
    assert {name: len(found) for name, found in printed.items()} == {"source": 10, "target": 10, "text": 10}
    assert printed["source"][0] == "source  example 500" and printed["source"][-1] == "source  example 599"
    table = pyarrow.parquet.read_table(directory.path / "predictions" / "val.parquet").to_pydict()
    assert table["source"] == [f"example {number}" for number in table["id"]] and table["id"] == list(range(500, 600))
    assert set(table["text"]) <= set(table["target"]) and len(set(table["target"])) == 10
    assert directory.record()["class_names"] == (inside / "english" / "names.txt").read_text().split()


def test_fit_help_lists_the_options_of_the_experiment_one_line_each(inside: Path, capsys) -> None:
    assert run("fit", ["-c", "configs/experiment/small.yaml", "--help"]) == 0
    help_text = capsys.readouterr().out
    for option in (
        "--model.hidden = 128",
        "--data.batch_size = 32",
        "--trainer.max_epochs = 2",
        "--checkpoint.monitor",
    ):
        assert [line for line in help_text.splitlines() if line.strip().startswith(option)], option
    for derived in ("--data.seed", "--model.num_classes"):
        assert derived not in help_text


def test_fit_help_shows_the_values_of_the_files_and_the_last_file_takes_precedence(inside: Path, capsys) -> None:
    Path("overlay.yaml").write_text("model:\n  init_args:\n    hidden: 7\ntrainer:\n  max_epochs: 9\n")
    assert run("fit", ["-c", "configs/experiment/small.yaml", "-c", "overlay.yaml", "--help"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for option in ("--model.hidden = 7", "--model.weight_decay = 0.3", "--trainer.max_epochs = 9"):
        assert [line for line in lines if line.startswith(f"{option} ")], option
