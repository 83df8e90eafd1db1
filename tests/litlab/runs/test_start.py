"""Where a training starts: which run is continued, which is refused, and what fork and init take over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from exactness import differing

from litlab.__main__ import run as run_command
from litlab.errors import BadInput
from litlab.runs.directory import RunDirectory, rows

MNIST = ("-c", "configs/experiment/mnist_mlp.yaml", "--trainer.log_every_n_steps=1")


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def newest() -> RunDirectory:
    return RunDirectory(Path("runs/latest").resolve())


def fit(*arguments: str) -> RunDirectory:
    assert run_command("fit", [*arguments]) == 0
    return newest()


@pytest.fixture
def interrupted(inside: Path) -> RunDirectory:
    """A run that got SIGTERM in its first epoch of two."""
    return interrupt(MNIST)


def interrupt(arguments: tuple[str, ...], number: int = signal.SIGTERM) -> RunDirectory:
    before = set(Path("runs").glob("*/2*"))
    command = [sys.executable, "-m", "litlab", "fit", *arguments, "--trainer.max_epochs=100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (new := set(Path("runs").glob("*/2*")) - before) or not (new.pop() / "metrics.csv").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        started = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    run = newest()
    assert process.returncode == 75 and run.record()["status"] == "interrupted", said
    assert f"make train RESUME=mnist_mlp/{run.id}" in said and "Traceback" not in said
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_no_step(inside: Path, number: int) -> None:
    run = interrupt(MNIST, number)
    last = torch.load(run.checkpoint("last"), weights_only=True)
    logged = [row["step"] for row in rows(run.path) if "train/loss" in row]
    assert last["global_step"] == logged[-1] + 1


def test_auto_continues_the_run_with_the_same_settings_and_no_other(interrupted: RunDirectory) -> None:
    other = fit(*MNIST, "--trainer.max_epochs=1", "--resume=auto")
    assert other.path != interrupted.path and other.record()["parent"] is None
    first = fit(*MNIST, "--trainer.max_epochs=1", "--resume=auto")
    assert first.path not in (other.path, interrupted.path)  # what is finished is not continued
    again = subprocess.Popen(
        [sys.executable, "-m", "litlab", "fit", *MNIST, "--trainer.max_epochs=100", "--resume=auto"]
    )
    while interrupted.record()["status"] != "running":
        assert again.poll() is None
        time.sleep(0.05)
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 75
    assert len(interrupted.record()["resumed"]) == 1


def test_two_calls_at_once_get_two_runs(interrupted: RunDirectory) -> None:
    command = [sys.executable, "-m", "litlab", "fit", *MNIST, "--trainer.max_epochs=100", "--resume=auto"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        while True:
            found = [RunDirectory(path) for path in Path("runs/mnist_mlp").glob("2*")]
            if len(found) == 2 and all(run.is_alive() and run.record()["status"] == "running" for run in found):
                break
            assert all(process.poll() is None for process in both)
            time.sleep(0.05)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert interrupted.path.resolve() in [run.path.resolve() for run in found]


def test_a_run_that_was_moved_keeps_its_best_checkpoint(interrupted: RunDirectory, inside: Path) -> None:
    """As when a folder of runs is copied to another machine."""
    shutil.copytree(interrupted.path, inside / "elsewhere" / "mnist_mlp" / interrupted.id)
    shutil.rmtree(inside / "runs")
    moved = inside / "elsewhere" / "mnist_mlp" / interrupted.id
    process = subprocess.Popen(
        [sys.executable, "-m", "litlab", "fit", f"--resume={moved}", "--trainer.max_time=00:00:00:03"]
    )
    assert process.wait(60) == 0
    last = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)
    best = next(state for name, state in last["callbacks"].items() if name.startswith("BestCheckpoint"))
    assert best["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")


def test_other_settings_are_refused_with_the_keys_that_differ(interrupted: RunDirectory) -> None:
    with pytest.raises(BadInput, match=r"model\.hidden 128 -> 64, trainer\.max_epochs 100 -> 2.*--fork=latest"):
        run_command("fit", [*MNIST, "--resume=latest", "--model.hidden=64"])
    with pytest.raises(BadInput, match=r"seed_everything 0 -> 1"):
        run_command("fit", ["--resume=latest", "--seed_everything=1"])


def test_other_data_are_refused_with_what_changed(interrupted: RunDirectory, inside: Path) -> None:
    file = Path(yaml_source(inside)) / "train-labels-idx1-ubyte"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + bytes([(before[-1] + 1) % 10]))
        with pytest.raises(BadInput, match=r"the data are not those that .* began with \(train_labels "):
            run_command("fit", ["--resume=latest"])
    finally:
        file.write_bytes(before)


def yaml_source(project: Path) -> str:
    text = (project / "configs/experiment/mnist_mlp.yaml").read_text()
    return text.split("source: ")[1].split()[0]


def test_a_checkpoint_of_another_run_is_refused_with_the_keys_that_differ(interrupted: RunDirectory) -> None:
    other = fit(*MNIST, "--model.hidden=32")
    shutil.copy(other.checkpoint("last"), interrupted.checkpoint("last"))
    with pytest.raises(BadInput, match=rf"last.ckpt is of the run {other.id}, .*model\.hidden 32 -> 128"):
        run_command("fit", [f"--resume={interrupted.path}"])


def test_where_a_run_goes_on_may_change_and_is_said(
    interrupted: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("fit", ["--resume=latest", "--trainer.devices=1", "--trainer.max_time=00:00:00:02"])
    said = capsys.readouterr().err
    assert "changed    trainer.devices auto -> 1, trainer.max_time null -> 00:00:00:02" in said
    assert f"continuing runs/mnist_mlp/{interrupted.id} from step" in said


def test_a_fork_takes_everything_over_and_what_is_typed_wins(interrupted: RunDirectory, capsys) -> None:
    before = torch.load(interrupted.checkpoint("last"), weights_only=True)
    forked = fit("--fork=latest", "--model.learning_rate=1e-4", "--trainer.max_epochs=3")
    assert forked.path != interrupted.path and forked.record()["wandb_id"] == forked.id
    parent = forked.record()["parent"]
    assert parent == {"how": "fork", "run": interrupted.id, "step": before["global_step"]}
    assert "model.learning_rate 0.004 -> 0.0001" in capsys.readouterr().err
    old, new = ([row for row in rows(run.path)] for run in (interrupted, forked))
    length = before["litlab"]["metrics_csv"][0]
    assert new[:length] == old[:length]
    rates = [row["learning_rate/decayed"] for row in new[length:] if "learning_rate/decayed" in row]
    assert max(rates) <= 1e-4
    assert [row["step"] for row in new if "train/loss" in row] == list(range(48))


def test_a_fork_that_is_killed_at_once_is_continued_by_auto(interrupted: RunDirectory) -> None:
    arguments = [*MNIST, f"--fork={interrupted.id}", "--resume=auto", "--trainer.max_epochs=4"]
    command = [sys.executable, "-m", "litlab", "fit", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while newest().path == interrupted.path:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    first = newest()
    assert fit(*arguments).path == first.path and first.record()["status"] == "finished"
    assert len(list(Path("runs/mnist_mlp").glob("2*"))) == 2


def test_init_takes_the_weights_and_nothing_else(inside: Path) -> None:
    source = fit(*MNIST)
    best = torch.load(source.checkpoint("best"), weights_only=True)["state_dict"]
    new = fit(
        *MNIST, f"--init={source.id}", "--model.learning_rate=1e-12", "--model.weight_decay=0", "--seed_everything=5"
    )
    last = torch.load(new.checkpoint("last"), weights_only=True)
    assert new.record()["parent"]["how"] == "init" and new.record()["parent"]["run"] == source.id
    assert last["global_step"] == 32 and next(row["step"] for row in rows(new.path) if "train/loss" in row) == 0
    for name, value in best.items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=0, atol=1e-6)


def test_init_from_another_model_is_refused_with_the_names_of_the_weights(inside: Path) -> None:
    source = fit(*MNIST, "--model.hidden=32", "--trainer.max_epochs=1")
    with pytest.raises(BadInput, match=r"holds another model than the configuration describes: .*network\.0\.weight"):
        run_command("fit", [*MNIST, f"--init={source.checkpoint('best')}"])


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_two_processes_are_stopped_and_continued_and_equal_two_that_were_not(litlab, inside: Path, how: str) -> None:
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2", "--last_checkpoint.every_minutes=1e-9")
    arguments = (*MNIST, *ddp, "--trainer.max_epochs=3")
    outcome = litlab("fit", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    whole = newest()
    command = [sys.executable, "-m", "litlab", "fit", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while newest().path == whole.path or not (newest().path / "checkpoints/last.ckpt").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        if how == "SIGKILL":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    run = newest()
    if how == "SIGTERM":
        assert process.returncode == 75, said
    outcome = litlab("fit", *arguments, "--resume=auto")
    assert outcome.returncode == 0, outcome.stderr
    assert newest().path == run.path
    assert not differing(whole.path, run.path)


def test_keys_in_the_environment_are_nowhere_in_a_run_directory(litlab, inside: Path) -> None:
    secrets = {name: f"{name}0123456789abcdef" * 2 for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SERVICE_PASSWORD")}
    outcome = litlab("fit", *MNIST, "--trainer.max_epochs=1", **secrets, WANDB_MODE="offline")
    assert outcome.returncode == 0, outcome.stderr
    contents = {file: file.read_bytes() for file in newest().path.rglob("*") if file.is_file()}
    assert len(contents) > 10
    for secret in secrets.values():
        assert not [file for file, content in contents.items() if secret.encode() in content]
        assert secret not in outcome.stdout + outcome.stderr


def test_run_json_says_when_it_was_continued(interrupted: RunDirectory) -> None:
    step = torch.load(interrupted.checkpoint("last"), weights_only=True)["global_step"]
    run_command("fit", ["--resume=latest", "--trainer.max_time=00:00:00:01"])
    record = json.loads((interrupted.path / "run.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [step] and record["status"] == "finished"
