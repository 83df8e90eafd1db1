"""A run that was stopped and continued equals the run that was not, whatever stopped it and wherever it was."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS
from exactness import differing
from lightning.pytorch.trainer import call

from litlab.__main__ import run as run_command
from litlab.runs.directory import RunDirectory

EVERY_STEP = "--last_checkpoint.every_minutes=1e-9"
SMALL_T5 = ("--model.d_model=16", "--model.d_ff=32", "--model.num_layers=1", "--model.num_heads=2")
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


MNIST = ("-c", "configs/experiment/mnist_mlp.yaml", "--trainer.log_every_n_steps=1", "--data.batch_size=64", EVERY_STEP)
HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
)


class Killed(BaseException):
    """Ends a training as far as its files are concerned: nothing is saved any more."""


class Axe:
    """Notes every hook that Lightning calls, and strikes after the one whose number is `at`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at: int | None = None
        self.strike: Callable[[], None] = kill

    def wield(self, at: int | None, strike: Callable[[], None]) -> None:
        self.calls, self.at, self.strike = [], at, strike


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def axe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Axe]:
    axe, original = Axe(), call._call_callback_hooks

    def noting(trainer: Any, hook: str, *arguments: Any, **named: Any) -> None:
        original(trainer, hook, *arguments, **named)
        axe.calls.append(hook)
        if len(axe.calls) - 1 == axe.at:
            axe.strike()

    monkeypatch.setattr(call, "_call_callback_hooks", noting)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield axe


def fit(*arguments: str, status: int = 0) -> RunDirectory:
    """Train in this process."""
    try:
        assert run_command("fit", [*arguments]) == status
    except (Killed, SystemExit) as end:
        assert status and (isinstance(end, Killed) or end.code == status)
    return RunDirectory(Path("runs/latest").resolve())


def positions(calls: list[str], hooks: tuple[str, ...]) -> list[int]:
    """Where in a list of calls each of `hooks` is called, once: of the first the first time, of the last the last."""
    found = []
    for number, hook in enumerate(hooks):
        places = [place for place, called in enumerate(calls) if called == hook]
        found.append(places[round((len(places) - 1) * number / max(1, len(hooks) - 1))])
    return found


def compare_with_interrupted(axe: Axe, arguments: tuple[str, ...], hooks: tuple[str, ...] = HOOKS) -> None:
    """Train once, then again and again with an interruption after one of the hooks."""
    axe.wield(None, kill)
    whole = fit(*arguments)
    calls = axe.calls
    for strike in (kill, terminate):
        for position in positions(calls, hooks):
            axe.wield(position, strike)
            part = fit(*arguments, status=75)
            axe.wield(None, kill)
            assert part.record()["status"] == ("failed" if strike is kill else "interrupted")
            assert fit("--resume=latest").path == part.path
            assert not differing(whole.path, part.path), (calls[position], position, strike.__name__)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_mnist_stopped_after_any_hook_continues_bit_for_bit(axe: Axe, inside: Path, options: tuple[str, ...]) -> None:
    compare_with_interrupted(axe, (*MNIST, *options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_mnist_continues_bit_for_bit(axe: Axe, inside: Path, options: tuple[str, ...]) -> None:
    compare_with_interrupted(axe, (*MNIST, *options), ("on_train_batch_end", "on_validation_batch_end"))


def text_experiment(name: str, folder: Path, pretrained: Path) -> tuple[str, ...]:
    """The options that make an experiment small: a tiny model, forty short texts, summaries of one word."""
    random = np.random.default_rng(0)
    rows = (f"{' '.join(random.choice(WORDS.split(), 8))} {word},{word}" for word in ["good", "bad"] * 20)
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    column = "label" if name == "bert_cls" else "summary"
    short = ("--data.max_length=32", "--data.batch_size=8", "--trainer.max_epochs=2")
    if name == "t5_sum":
        short += ("--model.max_new_tokens=4",)
    source = (f"--model.pretrained={pretrained}", "--data.source=reviews.csv", f"--data.{column}=label")
    if name == "t5_pretrain":
        source = ("--data.source=reviews.csv", "--data.tokenizer_size=400", "--data.validation=0.2")
        short = ("--data.input_length=16", "--data.batch_size=6", "--trainer.max_epochs=2", *SMALL_T5)
    return ("-c", f"configs/experiment/{name}.yaml", "--trainer.log_every_n_steps=1", *source, *short, EVERY_STEP)


@pytest.mark.parametrize("name", ["bert_cls", "t5_sum", "t5_pretrain"])
def test_texts_continue_bit_for_bit(axe: Axe, inside: Path, name: str, tiny_bert: Path, tiny_t5: Path) -> None:
    arguments = text_experiment(name, inside, tiny_bert if name == "bert_cls" else tiny_t5)
    compare_with_interrupted(axe, arguments, ("on_before_optimizer_step", "on_validation_batch_end"))


@pytest.mark.parametrize("name", ["mnist_mlp", "bert_cls", "t5_sum", "t5_pretrain"])
def test_the_same_command_gives_the_same_bits(
    litlab, inside: Path, name: str, tiny_bert: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    arguments = (
        MNIST if name == "mnist_mlp" else text_experiment(name, inside, tiny_bert if name == "bert_cls" else tiny_t5)
    )
    runs = []
    for _ in range(2):
        outcome = litlab("fit", *arguments)
        assert outcome.returncode == 0, outcome.stderr
        runs.append(Path("runs/latest").resolve())
    assert runs[0] != runs[1] and not differing(*runs)


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


@pytest.mark.parametrize("workers", [0, 2])
def test_own_code_with_a_plain_dataloader_continues_bit_for_bit(
    axe: Axe, inside: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sampler draws from the global generators, its examples are random, its means are Lightning's and torchmetrics'."""
    monkeypatch.syspath_prepend(str(inside))
    (inside / "noisy.py").write_text(OWN)
    (inside / "noisy.yaml").write_text("model: {class_path: noisy.Model}\ndata: {class_path: noisy.Data}\n")
    options = (f"--data.workers={workers}", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", EVERY_STEP)
    hooks = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_batch_start")
    compare_with_interrupted(axe, ("-c", "noisy.yaml", *options), hooks)
