"""The commands as a person uses them: real trainings on a small MNIST, each judged by what it leaves on disk."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import yaml
from exactness import deterministic

from litlab.__main__ import run as run_command
from litlab.runs.directory import RunDirectory, rows
from project.data.mnist import MNIST

FIT = ("fit", "-c", "configs/experiment/mnist_mlp.yaml", "--trainer.log_every_n_steps=1")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """In-process runs keep W&B out: its session would outlive the test."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


def newest(project: Path) -> RunDirectory:
    return RunDirectory((project / "runs" / "latest").resolve())


def train(project: Path, *options: str) -> RunDirectory:
    """Train in this process, from the project folder."""
    assert run_command("fit", [*FIT[1:], *options]) == 0
    return newest(project)


def logged(run: RunDirectory, name: str) -> list[float]:
    return [row[name] for row in rows(run.path) if name in row]


def weights(run: RunDirectory, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint(name), weights_only=True)["state_dict"]


def test_a_training_leaves_the_whole_run_directory_and_says_what_is_next(litlab, project: Path) -> None:
    done = litlab(*FIT, "--model.learning_rate=3e-3")
    assert done.returncode == 0, done.stderr
    run = newest(project)
    assert {"config.yaml", "run.json", "metrics.csv", "eval.json", "predictions", "checkpoints", "wandb"} <= set(
        os.listdir(run.path)
    )
    assert {"best.ckpt", "last.ckpt"} == set(os.listdir(run.path / "checkpoints"))
    record = run.record()
    assert record["status"] == "finished" and record["seed"] == 0 and record["test_looks"] == 0
    assert record["overrides"] == ["--trainer.log_every_n_steps=1", "--model.learning_rate=3e-3"]
    assert record["wandb_id"] == run.id and record["steps"] == 32 and len(record["data_fingerprint"]) == 64
    score = json.loads((run.path / "eval.json").read_text())["val"]["scores"]["val/accuracy"]
    assert record["best"] == {"name": "val/accuracy", "score": score}
    assert (
        f"val/accuracy {score:.4f}" in done.stdout
        and f"runs/mnist_mlp/{run.id}" in done.stdout
        and "make eval" in done.stdout
    )
    assert "W&B: offline (no credentials" in done.stderr
    assert not run.is_alive()


def test_config_yaml_repeats_the_run_bit_for_bit_and_holds_nothing_of_it(inside: Path, quiet: None) -> None:
    first = train(inside, "--seed_everything=3", "--trainer.max_epochs=1")
    text = (first.path / "config.yaml").read_text()
    assert first.id not in text and str(inside / "runs") not in text
    assert run_command("fit", ["-c", str(first.path / "config.yaml")]) == 0
    second = newest(inside)
    assert second.id != first.id and second.experiment == first.experiment == "mnist_mlp"
    assert (second.path / "config.yaml").read_text() == text
    assert deterministic(second.path) == deterministic(first.path)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_seed_zero_is_a_seed_and_seeds_differ(inside: Path, quiet: None) -> None:
    zero, again, one = (train(inside, f"--seed_everything={seed}", "--trainer.max_epochs=1") for seed in (0, 0, 1))
    assert logged(zero, "train/loss") == logged(again, "train/loss") != logged(one, "train/loss")
    assert yaml.safe_load((zero.path / "config.yaml").read_text())["seed_everything"] == 0


def test_fit_never_touches_the_test_split(inside: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "test_dataloader", lambda self: pytest.fail("fit asked for the test split"))
    run = train(inside, "--trainer.max_epochs=1")
    assert "test" not in json.loads((run.path / "eval.json").read_text())


def test_eval_scores_the_test_split_counts_the_look_and_logs_to_the_same_run(litlab, project: Path) -> None:
    assert litlab(*FIT).returncode == 0
    run = newest(project)
    before = (run.path / "metrics.csv").read_text().splitlines()
    for look in (1, 2):
        done = litlab("eval", "latest")
        assert done.returncode == 0, done.stderr
        assert f"looked at {look} time" in done.stdout and "over 200 examples" in done.stdout
    assert run.record()["test_looks"] == 2 and run.record()["status"] == "finished"
    result = json.loads((run.path / "eval.json").read_text())["test"]
    table = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet").to_pydict()
    assert result["examples"] == 200 and table["id"] == list(range(200))
    right = sum(target == prediction for target, prediction in zip(table["target"], table["prediction"], strict=True))
    assert result["scores"]["test/accuracy"] == pytest.approx(right / 200)
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in table["probabilities"])
    assert len((run.path / "metrics.csv").read_text().splitlines()) == len(before) + 2
    assert logged(run, "test/accuracy") == [pytest.approx(right / 200)] * 2
    assert (
        len(list((run.path / "wandb").glob(f"offline-run-*-{run.id}"))) == 3
    )  # one run in three parts, for wandb sync


def test_eval_of_the_validation_split_is_no_look_at_the_test_split(inside: Path, quiet: None) -> None:
    run = train(inside, "--trainer.max_epochs=1")
    before = json.loads((run.path / "eval.json").read_text())["val"]["scores"]
    assert run_command("eval", [run.id, "--split=val"]) == 0
    assert json.loads((run.path / "eval.json").read_text())["val"]["scores"] == pytest.approx(before)
    assert run.record()["test_looks"] == 0


@pytest.mark.parametrize(
    "options", [(), ("--trainer.accumulate_grad_batches=3",)], ids=["plain", "three micro-batches"]
)
def test_two_processes_equal_one_process(litlab, project: Path, options: tuple[str, ...]) -> None:
    """500 examples in batches of 32 leave a last batch of 20, which neither 2 nor 6 slices divide."""
    assert litlab(*FIT, "--trainer.logger=false", "--trainer.max_epochs=1").returncode == 0
    one = newest(project)
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2", "--trainer.logger=false", "--trainer.max_epochs=1")
    done = litlab(*FIT, *ddp, *options)
    assert done.returncode == 0, done.stderr
    two = newest(project)
    assert two.id != one.id
    assert sum(path.is_dir() and not path.is_symlink() for path in (project / "runs" / "mnist_mlp").iterdir()) == 2
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-5)
    ours, theirs = (json.loads((run.path / "eval.json").read_text())["val"] for run in (one, two))
    assert theirs["examples"] == ours["examples"] == 100
    assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-3)


def test_last_is_the_last_checkpoint_and_best_the_best(inside: Path, quiet: None) -> None:
    run = train(
        inside, "--checkpoint.mode=min", "--trainer.max_epochs=3"
    )  # the accuracy rises: the first epoch is best
    steps = {name: torch.load(run.checkpoint(name), weights_only=True)["global_step"] for name in ("best", "last")}
    assert steps == {"best": 16, "last": 48}


def test_early_stopping_and_every_trainer_option_work_from_the_command_line(inside: Path, quiet: None) -> None:
    stop = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.patience=1"
    run = train(inside, *shlex.split(stop), "--trainer.callbacks.min_delta=100", "--trainer.max_epochs=9")
    assert len(logged(run, "val/loss")) == 2


def test_gradient_clipping_works_with_bf16_and_the_fused_optimizer(inside: Path, quiet: None) -> None:
    run = train(inside, "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1e-6", "--trainer.max_epochs=1")
    assert run.record()["status"] == "finished"
    assert yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["gradient_clip_val"] == 1e-6


def test_the_chosen_precision_is_printed_and_recorded(
    inside: Path, quiet: None, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(inside, "--trainer.precision=null", "--trainer.max_epochs=1")
    chosen = yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["precision"]
    assert chosen in ("bf16-mixed", "32-true")
    assert f"precision  {chosen}: the CPU has" in capfd.readouterr().err


def test_tensorboard_is_an_overlay(inside: Path, quiet: None) -> None:
    run = train(inside, "-c", "configs/logger/tensorboard.yaml", "--trainer.max_epochs=1")
    assert list((run.path / "tensorboard").glob("events.out.tfevents.*"))
    assert logged(run, "val/loss")


def test_overfitting_one_batch_learns_it_by_heart(inside: Path, quiet: None) -> None:
    run = train(inside, "-c", "configs/debug/overfit.yaml", "--model.label_smoothing=0")
    assert logged(run, "train/loss")[-1] < 0.01


def test_the_profile_overlay_leaves_a_table_in_the_run_directory(inside: Path, quiet: None) -> None:
    run = train(inside, "-c", "configs/debug/profile.yaml")
    assert "run_training_batch" in (run.path / "fit-profile.txt").read_text()


def test_fast_dev_run_logs_nothing_and_ends_well(inside: Path, quiet: None) -> None:
    run = train(inside, "--trainer.fast_dev_run=true")
    assert run.record()["status"] == "finished" and not (run.path / "metrics.csv").exists()


def test_an_interrupted_training_is_marked_and_ends_with_status_75(project: Path) -> None:
    command = [sys.executable, "-m", "litlab", *FIT, "--trainer.max_epochs=10000", "--trainer.logger=false"]
    process = subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if the tests run in the background
    )
    try:
        assert process.stdout
        while not process.stdout.readline().startswith("epoch"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert "(interrupted)" in errors and "Traceback" not in errors
    assert newest(project).record()["status"] == "interrupted" and not newest(project).is_alive()


def test_fit_help_lists_the_options_of_the_experiment_one_line_each(litlab) -> None:
    done = litlab("fit", "-c", "configs/experiment/mnist_mlp.yaml", "--help")
    assert done.returncode == 0
    for option in (
        "--model.hidden = 128",
        "--data.batch_size = 32",
        "--trainer.max_epochs = 2",
        "--checkpoint.monitor",
    ):
        assert [line for line in done.stdout.splitlines() if line.strip().startswith(option)], option
    for follows_another in ("--data.seed", "--model.num_classes"):
        assert follows_another not in done.stdout


def test_fit_help_shows_the_values_of_the_files_where_the_last_one_wins(litlab, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    num_beams: 7\ntrainer:\n  max_epochs: 9\n")
    done = litlab("fit", "-c", "configs/experiment/t5_sum.yaml", "-c", str(overlay), "--help")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for option in ("--model.num_beams = 7", "--model.no_repeat_ngram_size = 2", "--trainer.max_epochs = 9"):
        assert [line for line in lines if line.startswith(f"{option} ")], option
