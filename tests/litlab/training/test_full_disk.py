"""Full disks, damaged files and killed processes: saved files stay, a message tells the cause, and the run can continue."""

import multiprocessing
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_input import flip_a_bit, run_main
from conftest import small_project
from exactness import differing
from in_process import fit, newest
from interruption import EVERY_STEP, Interrupter, fit_interrupted, terminate

from litlab.runs.checkpoint import load
from litlab.runs.directory import RunDirectory

SMALL = ("-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=3")
ENDLESS = f"fit {' '.join(SMALL)} --trainer.max_epochs=100000 {EVERY_STEP}"


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def flip(file: Path) -> None:
    flip_a_bit(str(file))()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an uninterrupted run in uninterrupted/, and a run that was stopped in the last of three epochs."""
    folder = small_project(tmp_path_factory.mktemp("full_disk") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        fit(*SMALL).path.rename("uninterrupted")
        Interrupter(patch).after_steps(36, terminate)
        fit_interrupted(*SMALL)
    return folder


@pytest.fixture
def stopped(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, RunDirectory]:
    """Both runs, in a copy of the project that is the current directory."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "copy", symlinks=True))
    return Path("uninterrupted"), newest()


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_a_run_with_a_damaged_last_checkpoint_continues_from_the_newest_undamaged_one(
    stopped: tuple[Path, RunDirectory], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted, part = stopped
    damage(part.checkpoint("last"))
    assert fit("--resume=latest").path == part.path
    printed = capsys.readouterr().err
    assert damage is Path.unlink or "last.ckpt is damaged" in printed
    assert "continuing from" in printed and "best.ckpt, step " in printed
    assert not differing(uninterrupted, part.path)


def test_a_run_without_an_undamaged_checkpoint_starts_again(
    stopped: tuple[Path, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted, part = stopped
    flip(part.checkpoint("last"))
    truncate(part.checkpoint("best"))
    assert fit(*SMALL, "--resume=auto").path == part.path
    assert "no checkpoint in" in capsys.readouterr().err
    assert not differing(uninterrupted, part.path)


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk for runs with space for two checkpoints of 1.3 MB, but not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=3400k", "none", str(disk))
    monkeypatch.setenv("LITLAB_RUNS", str(disk))
    yield disk
    unmount(disk)


def test_a_full_disk_keeps_the_checkpoints_and_the_run_continues_when_there_is_space(
    inside: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    large = (*SMALL, "--model.hidden=1400")
    assert run_main(" ".join(["fit", *large]), monkeypatch) == 2
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert "no space left in" in errors.splitlines()[-1] and "free some" in errors.splitlines()[-1]
    part = newest()
    assert all(load(part.checkpoint(name))["global_step"] > 0 for name in ("best", "last"))
    assert part.record()["status"] == "failed"
    mount("-o", "remount,size=20m", str(small_disk))
    assert fit("--resume=latest").path == part.path
    monkeypatch.delenv("LITLAB_RUNS")
    assert not differing(fit(*large).path, part.path)


def test_training_ends_with_a_message_if_the_run_directory_is_renamed(
    inside: Path, interrupter: Interrupter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before: list[Path] = []

    def rename() -> None:
        before.append(newest().path)
        newest().path.rename("elsewhere")

    interrupter.after_steps(5, rename)
    status, errors = run_main(ENDLESS, monkeypatch), capfd.readouterr().err
    assert status == 2 and "Traceback" not in errors, errors
    assert f"the run directory {before[0]} was removed or renamed" in errors.splitlines()[-1]


def test_training_ends_with_a_message_if_the_run_directory_becomes_read_only(
    inside: Path, interrupter: Interrupter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def protect() -> None:
        path = str(newest().path)
        mount("--bind", path, path)
        mount("-o", "remount,ro,bind", path)

    interrupter.after_steps(5, protect)
    try:
        status, errors = run_main(ENDLESS, monkeypatch), capfd.readouterr().err
    finally:
        unmount(newest().path)
    assert status == 2 and "Traceback" not in errors, errors
    assert "cannot be written (Read-only file system)" in errors.splitlines()[-1]
    assert load(newest().checkpoint("last"))["global_step"] > 0


WITH_WORKERS = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset


class Examples(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.tensor([index / 40])


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Examples(), batch_size=4, num_workers=2)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.layer(batch), 3 * batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_training_ends_with_a_message_if_a_dataloader_worker_is_killed(
    inside: Path, interrupter: Interrupter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(inside))
    (inside / "with_workers.py").write_text(WITH_WORKERS)
    (inside / "own.yaml").write_text("model: with_workers.Model\ndata: with_workers.Data\n")

    def kill_a_worker() -> None:
        multiprocessing.active_children()[-1].kill()
        time.sleep(10)  # torch receives a signal, which may arrive later

    interrupter.after_steps(5, kill_a_worker)
    options = "--trainer.max_epochs=100000 --checkpoint.monitor=null --checkpoint.mode=min"
    with pytest.raises(SystemExit) as end:
        run_main(f"fit -c own.yaml {options}", monkeypatch)
    errors = capfd.readouterr().err
    assert end.value.code == 75 and "Traceback" not in errors, errors
    assert "litlab: a dataloader worker was killed" in errors
    assert f"next  make train RESUME=own/{newest().id}" in errors
