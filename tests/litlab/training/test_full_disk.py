"""Full disks, damaged files, dead processes: what was saved stays, the end is clear, and the run can be continued."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exactness import differing

from litlab.__main__ import run as run_command
from litlab.runs.directory import RunDirectory
from litlab.runs.start import load

MNIST = ("-c", "configs/experiment/mnist_mlp.yaml", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=3")
ENDLESS = ("--trainer.max_epochs=100000", "--last_checkpoint.every_minutes=1e-9")


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def newest() -> RunDirectory:
    return RunDirectory(Path(os.environ.get("LITLAB_RUNS", "runs"), "latest").resolve())


def fit(*arguments: str) -> RunDirectory:
    assert run_command("fit", [*arguments]) == 0
    return newest()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # within the weights: torch would load it
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.fixture
def stopped(inside: Path) -> Iterator[tuple[Path, RunDirectory]]:
    """A run that was not stopped, and one that was, at the end of its second epoch of three."""
    whole = fit(*MNIST)
    shutil.copytree(whole.path, inside / "whole")
    command = [sys.executable, "-m", "litlab", "fit", *MNIST, "--last_checkpoint.every_minutes=5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch   2"):
                process.send_signal(signal.SIGTERM)
                break
        assert process.wait(60) == 75
    yield inside / "whole", newest()


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_good_one(
    stopped: tuple[Path, RunDirectory], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = stopped
    damage(run.checkpoint("last"))
    assert fit("--resume=latest").path == run.path
    said = capsys.readouterr().err
    assert damage is Path.unlink or "last.ckpt is damaged" in said
    assert "continuing from" in said and "best.ckpt, step " in said
    assert not differing(whole, run.path)


def test_a_run_without_a_good_checkpoint_begins_anew(
    stopped: tuple[Path, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = stopped
    flip(run.checkpoint("last"))
    truncate(run.checkpoint("best"))
    assert fit(*MNIST, "--resume=auto").path == run.path
    assert "no checkpoint in" in capsys.readouterr().err
    assert not differing(whole, run.path)


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk for runs with room for two checkpoints of 1.3 MB, but not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=3400k", "none", str(disk))
    monkeypatch.setenv("LITLAB_RUNS", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_leaves_the_checkpoints_and_the_run_continues_when_there_is_room(
    litlab, inside: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = litlab("fit", *MNIST)
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr
    assert "no space left in" in outcome.stderr.splitlines()[-1] and "free some" in outcome.stderr.splitlines()[-1]
    run = newest()
    assert all(load(run.checkpoint(name))["global_step"] > 0 for name in ("best", "last"))
    assert run.record()["status"] == "failed"
    mount("-o", "remount,size=20m", str(small_disk))
    assert fit("--resume=latest").path == run.path
    monkeypatch.delenv("LITLAB_RUNS")
    assert not differing(fit(*MNIST).path, run.path)


def end_of(arguments: tuple[str, ...], meanwhile: Callable[[int, Path], None]) -> tuple[int, str, Path]:
    """Start a long training, do something when it has saved its first checkpoint, and see how it ends."""
    command = [sys.executable, "-m", "litlab", "fit", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not list(Path("runs").glob("*/*/checkpoints/last.ckpt")):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            run = newest().path
            meanwhile(process.pid, run)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, said, run


def test_a_run_directory_that_vanishes_ends_the_training_with_one_sentence(inside: Path) -> None:
    status, said, run = end_of((*MNIST, *ENDLESS), lambda pid, run: run.rename("elsewhere"))
    assert status == 2 and "Traceback" not in said, said
    assert f"the run directory {run} has vanished" in said.splitlines()[-1]


def test_a_run_directory_that_becomes_read_only_ends_the_training_with_one_sentence(inside: Path) -> None:
    def protect(pid: int, run: Path) -> None:
        mount("--bind", str(run), str(run))
        mount("-o", "remount,ro,bind", str(run))

    try:
        status, said, run = end_of((*MNIST, *ENDLESS), protect)
    finally:
        subprocess.run(["umount", "--lazy", str(newest().path)], capture_output=True)
    assert status == 2 and "Traceback" not in said, said
    assert "cannot be written (Read-only file system)" in said.splitlines()[-1]
    assert load(RunDirectory(run).checkpoint("last"))["global_step"] > 0


SLOW = """
import time

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset


class Slow(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.tensor([index / 40])


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Slow(), batch_size=4, num_workers=2)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.layer(batch), 3 * batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_a_data_worker_that_is_killed_ends_the_training_with_one_sentence(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inside / "slow.py").write_text(SLOW)
    (inside / "slow.yaml").write_text("model: {class_path: slow.Model}\ndata: {class_path: slow.Data}\n")
    monkeypatch.setenv("PYTHONPATH", str(inside))

    def kill_a_worker(pid: int, run: Path) -> None:
        for _ in range(1000):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            workers = [child for child in children if b"litlab" in Path(f"/proc/{child}/cmdline").read_bytes()]
            if workers:
                return os.kill(int(workers[-1]), signal.SIGKILL)
            time.sleep(0.01)

    options = ("--checkpoint.monitor=null", "--checkpoint.mode=min")
    status, said, run = end_of(("-c", "slow.yaml", *ENDLESS, *options), kill_a_worker)
    assert status == 75 and "Traceback" not in said, said
    assert "litlab: a process that loads data has died" in said
    assert f"next  make train RESUME={run.parent.name}/{run.name}" in said
