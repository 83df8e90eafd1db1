"""How a training starts: which run is resumed, which is refused, and what fork and init take from another run."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from bad_input import flip_a_bit
from conftest import Command, small_project
from exactness import differing
from forked import Forked
from in_process import content, fit, logged, newest
from interruption import EVERY_STEP, Interrupter, fit_interrupted, terminate

from litlab.cli.main import run
from litlab.errors import BadInput
from litlab.runs.directory import RunDirectory, rows

SMALL = ("-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=1")
LONG = (*SMALL, "--trainer.max_epochs=100")
STEPS = 10  # steps of the interrupted run; an epoch has 16


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run of 100 epochs that was interrupted by SIGTERM in its first epoch."""
    folder = small_project(tmp_path_factory.mktemp("start") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        Interrupter(patch).after_steps(STEPS, terminate)
        fit_interrupted(*LONG)
    return folder


@pytest.fixture
def interrupted(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """The interrupted run in a copy of the project, which is the working folder."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "copy", symlinks=True))
    return newest()


def start(*arguments: str) -> Forked:
    """Start `litlab fit` in its own process and process group."""
    return Forked(["-m", "litlab", "fit", *arguments], start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_no_step(inside: Path, number: int) -> None:
    with start(*LONG) as process:
        try:
            while not list(Path("runs").glob("*/2*/metrics.csv")):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(number)
            started = time.monotonic()
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert time.monotonic() - started < 30
    directory = newest()
    assert process.returncode == 75, errors
    assert directory.record()["status"] == "interrupted" and not directory.is_alive()
    assert "(interrupted)" in errors and f"make train RESUME=small/{directory.id}" in errors
    assert "Traceback" not in errors
    steps = [row["step"] for row in rows(directory.path) if "train/loss" in row]
    assert content(directory)["global_step"] == steps[-1] + 1


def test_auto_resumes_only_the_unfinished_run_with_the_same_settings(
    interrupted: RunDirectory, interrupter: Interrupter
) -> None:
    other = fit(*SMALL, "--trainer.max_epochs=1", "--resume=auto")
    assert other.path != interrupted.path and other.record()["parent"] is None
    first = fit(*SMALL, "--trainer.max_epochs=1", "--resume=auto")
    assert first.path not in (other.path, interrupted.path)  # a finished run is not resumed
    interrupter.after_steps(3, terminate)
    fit_interrupted(*LONG, "--resume=auto")
    assert len(interrupted.record()["resumed"]) == 1 and interrupted.record()["status"] == "interrupted"
    assert content(interrupted)["global_step"] == STEPS + 3


def test_two_concurrent_calls_get_two_runs(interrupted: RunDirectory) -> None:
    with start(*LONG, "--resume=auto") as first, start(*LONG, "--resume=auto") as second:
        try:
            while True:
                found = [RunDirectory(path) for path in Path("runs/small").glob("2*")]
                if len(found) == 2 and all(one.is_alive() and one.record()["status"] == "running" for one in found):
                    break
                assert first.poll() is None and second.poll() is None
                time.sleep(0.01)
        finally:
            first.kill()
            second.kill()
    assert interrupted.path in [one.path.resolve() for one in found]


def test_a_run_that_was_moved_keeps_its_best_checkpoint(interrupted: RunDirectory, interrupter: Interrupter) -> None:
    """For example, when a folder of runs is copied to another machine."""
    interrupter.after_steps(16, terminate)  # after a full epoch there is a best checkpoint
    fit_interrupted("--resume=latest")
    moved = Path("elsewhere", "small", interrupted.id).resolve()
    shutil.copytree(interrupted.path, moved)
    shutil.rmtree("runs")
    interrupter.after_steps(3, terminate)
    with pytest.raises(SystemExit):
        run("fit", [f"--resume={moved}"])
    last = content(RunDirectory(moved))
    best = next(state for name, state in last["callbacks"].items() if name.startswith("BestCheckpoint"))
    assert last["global_step"] == STEPS + 16 + 3
    assert best["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")


def test_other_settings_are_refused_and_the_different_keys_are_listed(interrupted: RunDirectory) -> None:
    with pytest.raises(BadInput, match=r"model\.hidden 128 -> 64, trainer\.max_epochs 100 -> 2.*--fork=latest"):
        run("fit", [*SMALL, "--resume=latest", "--model.hidden=64"])
    with pytest.raises(BadInput, match=r"seed_everything 0 -> 1"):
        run("fit", ["--resume=latest", "--seed_everything=1"])


def test_other_data_are_refused_and_the_message_names_the_change(interrupted: RunDirectory) -> None:
    flip_a_bit("examples/train_labels.npy")()
    with pytest.raises(BadInput, match=r"the data differ from those of .* \(train_labels "):
        run("fit", ["--resume=latest"])


def test_a_checkpoint_of_another_run_is_refused_and_the_different_keys_are_listed(interrupted: RunDirectory) -> None:
    other = fit(*SMALL, "--model.hidden=32")
    shutil.copy(other.checkpoint("last"), interrupted.checkpoint("last"))
    with pytest.raises(BadInput, match=rf"last.ckpt belongs to the run {other.id}, .*model\.hidden 32 -> 128"):
        run("fit", [f"--resume={interrupted.path}"])


def test_hardware_and_time_limit_may_change_on_resume_and_the_change_is_printed(
    interrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--resume=latest", "--trainer.devices=1", "--trainer.max_time=00:00:00:01")
    said = capsys.readouterr().err
    assert "changed    trainer.devices auto -> 1, trainer.max_time null -> 00:00:00:01" in said
    assert f"continuing runs/small/{interrupted.id} from step {STEPS}" in said


def test_run_json_records_each_resume(interrupted: RunDirectory) -> None:
    fit("--resume=latest", "--trainer.max_time=00:00:00:01")
    record = json.loads((interrupted.path / "run.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [STEPS] and record["status"] == "finished"


def test_a_fork_takes_the_whole_state_and_options_override_its_settings(
    interrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(interrupted)
    forked = fit("--fork=latest", "--model.learning_rate=1e-4", "--trainer.max_epochs=3")
    assert forked.path != interrupted.path and forked.record()["wandb_id"] == forked.id
    parent = forked.record()["parent"]
    assert parent == {"how": "fork", "run": interrupted.id, "step": before["global_step"]}
    assert "model.learning_rate 0.004 -> 0.0001" in capsys.readouterr().err
    old, new = ([row for row in rows(one.path)] for one in (interrupted, forked))
    length = before["litlab"]["metrics_csv"][0]
    assert new[:length] == old[:length]
    rates = [row["learning_rate/decayed"] for row in new[length:] if "learning_rate/decayed" in row]
    assert max(rates) <= 1e-4
    assert [row["step"] for row in new if "train/loss" in row] == list(range(48))


def test_a_fork_that_is_killed_immediately_is_resumed_by_auto(interrupted: RunDirectory) -> None:
    arguments = [*SMALL, f"--fork={interrupted.id}", "--resume=auto", "--trainer.max_epochs=4"]
    with start(*arguments) as process:
        while newest().path == interrupted.path:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    first = newest()
    assert fit(*arguments).path == first.path and first.record()["status"] == "finished"
    assert len(list(Path("runs/small").glob("2*"))) == 2


def test_init_takes_only_the_weights(inside: Path) -> None:
    source = fit(*SMALL)
    best = content(source, "best")["state_dict"]
    changes = ("--model.learning_rate=1e-12", "--model.weight_decay=0", "--seed_everything=5")
    new = fit(*SMALL, f"--init={source.id}", *changes)
    last = content(new)
    assert new.record()["parent"]["how"] == "init" and new.record()["parent"]["run"] == source.id
    assert last["global_step"] == 32 and next(row["step"] for row in rows(new.path) if "train/loss" in row) == 0
    for name, value in best.items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=0, atol=1e-6)


def test_init_from_another_model_is_refused_and_the_message_names_the_weights(inside: Path) -> None:
    source = fit(*SMALL, "--model.hidden=32", "--trainer.max_epochs=1")
    with pytest.raises(BadInput, match=r"does not match the configured model: .*network\.0\.weight"):
        run("fit", [*SMALL, f"--init={source.checkpoint('best')}"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_two_interrupted_and_resumed_processes_equal_two_uninterrupted_ones(
    litlab: Command, inside: Path, how: str
) -> None:
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2", EVERY_STEP)
    arguments = (*SMALL, *ddp, "--trainer.max_epochs=3")
    done = litlab("fit", *arguments)
    assert done.returncode == 0, done.stderr
    whole = newest()
    with start(*arguments) as process:
        while newest().path == whole.path or not (newest().path / "checkpoints/last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    part = newest()
    if how == "SIGTERM":
        assert process.returncode == 75, errors
    done = litlab("fit", *arguments, "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert newest().path == part.path
    assert not differing(whole.path, part.path)


def test_secrets_in_the_environment_do_not_appear_in_the_run_directory(litlab: Command, inside: Path) -> None:
    secrets = {name: f"{name}0123456789abcdef" * 2 for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SERVICE_PASSWORD")}
    done = litlab("fit", *SMALL, "--trainer.max_epochs=1", **secrets, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert logged(newest(), "train/loss")
    contents = {file: file.read_bytes() for file in newest().path.rglob("*") if file.is_file()}
    assert len(contents) > 10
    for secret in secrets.values():
        assert not [file for file, content in contents.items() if secret.encode() in content]
        assert secret not in done.stdout + done.stderr
