"""A loss or gradient that is not finite is noticed, told and kept, or left out and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from litlab.__main__ import run as run_command
from litlab.errors import StoppedByGuard
from litlab.runs.directory import RunDirectory, rows
from litlab.training.guard import Guard, gradients_of, total_norm
from project.data.mnist import MNIST
from project.models.mnist_mlp import MnistMLP

FIT = (
    "-c",
    "configs/experiment/mnist_mlp.yaml",
    "--trainer.log_every_n_steps=1",
    "--last_checkpoint.every_minutes=1e-9",
)


@pytest.fixture
def poisoned(inside: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The fifth batch of a training, of 32 in two epochs, has a pixel that is not a number; its ids are noted."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    original, batches, ids = MNIST._train_batch, [0], []

    def batch(self: MNIST, indices):  # type: ignore[no-untyped-def]
        made = original(self, indices)
        if self.trainer and self.trainer.training:
            batches[0] += 1
            if batches[0] == 5:
                made["image"][0, 0] = torch.nan
                ids.append(indices.tolist())
        return made

    monkeypatch.setattr(MNIST, "_train_batch", batch)
    return ids


def newest() -> RunDirectory:
    return RunDirectory(Path("runs/latest").resolve())


def test_the_training_stops_and_names_the_examples(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard, match=r"step 4 is not finite; .*nonfinite\.json names its examples"):
        run_command("fit", [*FIT])
    run = newest()
    kept = json.loads((run.path / "nonfinite.json").read_text())
    assert (kept["step"], kept["epoch"], kept["seed"]) == (4, 0, 0) and [kept["ids"]] == poisoned
    assert run.record()["status"] == "stopped"


def test_nothing_is_saved_after_the_step(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard):
        run_command("fit", [*FIT])
    last = torch.load(newest().checkpoint("last"), weights_only=True)
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_stopped_run_continues_where_the_numbers_were_good(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard):
        run_command("fit", [*FIT])
    stopped = newest().path
    assert run_command("fit", ["--resume=latest", "--guard.nonfinite=skip"]) == 0
    assert newest().path == stopped and newest().record()["steps"] == 32


@pytest.mark.parametrize("accumulation", [1, 2])
def test_such_steps_can_be_left_out_and_are_counted(poisoned: list[list[int]], accumulation: int) -> None:
    options = ("--guard.nonfinite=skip", f"--trainer.accumulate_grad_batches={accumulation}")
    assert run_command("fit", [*FIT, *options]) == 0
    run = newest()
    assert run.record()["skipped_steps"] == 1 and run.record()["status"] == "finished"
    logged = [row for row in rows(run.path)]
    assert [row["train/skipped_steps"] for row in logged if "train/skipped_steps" in row] == [1]
    assert all(row["train/loss"] == row["train/loss"] for row in logged if "train/loss" in row)  # no NaN
    assert json.loads((run.path / "eval.json").read_text())["val"]["scores"]["val/accuracy"] > 0.5


def test_a_training_that_does_not_recover_stops(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    original = MNIST._train_batch
    monkeypatch.setattr(
        MNIST,
        "_train_batch",
        lambda self, ids: {**original(self, ids), "image": torch.full((len(ids), 784), torch.inf)},
    )
    with pytest.raises(StoppedByGuard, match="20 steps in a row were not finite"):
        run_command("fit", [*FIT, "--guard.nonfinite=skip", "--trainer.max_epochs=4"])


def test_the_command_exits_with_3(litlab, inside: Path) -> None:
    outcome = litlab("fit", *FIT, "--model.learning_rate=1e30", "--model.warmup=0", WANDB_MODE="disabled")
    assert outcome.returncode == 3, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("litlab: the loss or gradient of step ")


def test_two_processes_stop_together_and_name_the_examples_of_both(litlab, inside: Path) -> None:
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")
    outcome = litlab("fit", *FIT, *ddp, "--model.learning_rate=1e30", "--model.warmup=0", WANDB_MODE="disabled")
    assert outcome.returncode == 3, outcome.stderr
    ids = json.loads((newest().path / "nonfinite.json").read_text())["ids"]
    assert len(set(ids)) == 32  # the global batch


@pytest.mark.parametrize("limit", [0.01, 1e3], ids=["clipped", "small"])
def test_clipping_with_the_norm_that_is_known_gives_the_bits_of_torch(limit: float) -> None:
    torch.manual_seed(0)
    mine, theirs = ([torch.nn.Parameter(torch.zeros(7, 5)), torch.nn.Parameter(torch.zeros(3))] for _ in range(2))
    for one, other in zip(mine, theirs, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    optimizer, guard = torch.optim.SGD(mine), Guard()
    guard._norm = total_norm(gradients_of(optimizer))
    assert torch.equal(guard._norm, torch.nn.utils.get_total_norm([parameter.grad for parameter in theirs]))
    guard.clip(optimizer, limit)
    torch.nn.utils.clip_grad_norm_(theirs, limit)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(mine, theirs, strict=True))


def test_a_module_that_changes_its_gradient_is_clipped_by_the_norm_of_what_it_made(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    norms: list[float] = []

    def enlarge(self: MnistMLP, optimizer: torch.optim.Optimizer) -> None:
        for gradient in gradients_of(optimizer):
            gradient.mul_(1e3)

    def note(self: MnistMLP, optimizer: torch.optim.Optimizer) -> None:
        if gradients := gradients_of(optimizer):  # of the step before, clipped
            norms.append(total_norm(gradients).item())

    monkeypatch.setattr(MnistMLP, "on_before_optimizer_step", enlarge)
    monkeypatch.setattr(MnistMLP, "on_before_zero_grad", note)
    run_command("fit", [*FIT, "--trainer.gradient_clip_val=0.5", "--trainer.max_steps=4"])
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize("manual", [True, False], ids=["manual optimization", "own clipping"])
def test_a_norm_is_not_used_for_a_gradient_that_it_is_not_of(manual: bool, tmp_path: Path) -> None:
    norms: list[float] = []

    class Module(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            loss = super().training_step(1e3 * batch, batch_idx)["loss"]
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 1.0, "norm")
            norms.append(total_norm(gradients_of(optimizer)).item())
            optimizer.step()

    def own_clipping(self: Module, optimizer: Any, **settings: Any) -> None:
        for gradient in gradients_of(optimizer):
            gradient.mul_(100)
        self.clip_gradients(optimizer, 1.0, "norm")
        norms.append(total_norm(gradients_of(optimizer)).item())

    if not manual:
        Module.configure_gradient_clipping = own_clipping  # type: ignore[assignment, method-assign]
    guard = Guard()
    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=4, limit_val_batches=0, callbacks=[guard], default_root_dir=tmp_path, **settings
    )
    trainer.precision_plugin.clip_grad_by_norm = guard.clip  # type: ignore[method-assign]
    trainer.fit(Module())
    assert norms == pytest.approx([1.0] * 4, rel=1e-3)
