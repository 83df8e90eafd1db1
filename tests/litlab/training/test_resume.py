"""An interrupted and resumed run equals an uninterrupted run, whatever interrupts it and at whatever hook."""

from pathlib import Path

import pytest
from conftest import Command
from exactness import differing
from in_process import fit, newest
from interruption import EVERY_STEP, HOOKS, INTERRUPTIONS, Interrupter, assert_continues_bit_for_bit

OPTIONS = {
    "plain": (),
    "accumulation": ("--trainer.accumulate_grad_batches=3",),
    "validation inside an epoch": ("--trainer.val_check_interval=5", "--trainer.accumulate_grad_batches=2"),
    "steps": ("--trainer.max_steps=20",),
    "early stopping": (
        "--trainer.max_epochs=4",
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=1",
        "--trainer.callbacks.min_delta=10",
    ),
    "three best": ("--checkpoint.save_top_k=3", "--checkpoint.filename={epoch}", "--trainer.max_epochs=4"),
    "every few steps": ("--checkpoint.every_n_train_steps=3", "--checkpoint.monitor=null", "--checkpoint.mode=min"),
    "clipping": ("--trainer.gradient_clip_val=0.1", "--trainer.precision=bf16-mixed"),
}
SMALL = ("-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=1", "--data.batch_size=64", EVERY_STEP)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_that_is_interrupted_after_any_hook_continues_bit_for_bit(
    interrupter: Interrupter, inside: Path, options: tuple[str, ...]
) -> None:
    assert_continues_bit_for_bit(interrupter, (*SMALL, *options), HOOKS, both=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            options, id=name, marks=[pytest.mark.slow] if name in ("steps", "three best", "every few steps") else []
        )
        for name, options in OPTIONS.items()
    ],
)
def test_a_run_continues_bit_for_bit(interrupter: Interrupter, inside: Path, options: tuple[str, ...]) -> None:
    hooks = ("on_train_batch_end", "on_validation_batch_end")
    assert_continues_bit_for_bit(interrupter, (*SMALL, *options), hooks)


@INTERRUPTIONS
def test_a_model_that_generates_text_continues_bit_for_bit(interrupter: Interrupter, inside: Path, both: bool) -> None:
    arguments = ("-c", "configs/experiment/speller.yaml", "--trainer.log_every_n_steps=1", EVERY_STEP)
    assert_continues_bit_for_bit(interrupter, arguments, ("on_before_optimizer_step", "on_validation_batch_end"), both)


def test_the_same_command_gives_the_same_bits_in_another_process(
    litlab: Command, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    here = fit(*SMALL)
    done = litlab("fit", *SMALL)
    assert done.returncode == 0, done.stderr
    assert newest().path != here.path and not differing(here.path, newest().path)


OWN = """
import random

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric


class Noisy(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.tensor([index / 40]) + 0.01 * torch.randn(1) + 0.01 * random.random() + 0.01 * np.random.rand()


class Data(LightningDataModule):
    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(Noisy(), batch_size=8, num_workers=self.workers)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.mean = MeanMetric()

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand()
        loss = torch.nn.functional.mse_loss(self.layers(batch), 3 * batch + 0.01 * noise)
        self.mean(loss)
        self.log("train/loss_of_steps", loss, on_step=True, on_epoch=True)
        self.log("train/largest_loss", loss, on_step=False, on_epoch=True, reduce_fx=torch.max)
        self.log("train/metric", self.mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self.layers(batch), 3 * batch)
        self.log("val/loss", loss)
        return {"id": list(range(batch_idx * 8, batch_idx * 8 + 8)), "target": batch[:, 0], "prediction": self.layers(batch)[:, 0]}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.03)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
"""


@INTERRUPTIONS
@pytest.mark.parametrize(
    ("workers", "epochs"), [(0, 3), pytest.param(2, 2, marks=pytest.mark.slow)], ids=["no workers", "two workers"]
)
def test_own_code_with_a_plain_dataloader_continues_bit_for_bit(
    interrupter: Interrupter, inside: Path, workers: int, epochs: int, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampler and examples use the global random number generators; means are logged by Lightning and torchmetrics."""
    monkeypatch.syspath_prepend(str(inside))
    (inside / "noisy.py").write_text(OWN)
    (inside / "noisy.yaml").write_text("model: {class_path: noisy.Model}\ndata: {class_path: noisy.Data}\n")
    counts = (f"--data.workers={workers}", f"--trainer.max_epochs={epochs}", "--trainer.log_every_n_steps=1")
    hooks = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_batch_start")
    assert_continues_bit_for_bit(interrupter, ("-c", "noisy.yaml", *counts, EVERY_STEP), hooks, both)
