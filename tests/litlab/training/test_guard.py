"""A NaN or Inf loss or gradient stops the training and is recorded, or the step is skipped and counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import run_main
from conftest import Command
from in_process import content, fit, newest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from small.data import SmallData
from small.model import SmallModel

from litlab.cli.main import run
from litlab.errors import StoppedByGuard
from litlab.runs.directory import rows
from litlab.training.guard import Guard, gradients_of, total_norm

FIT = (
    "-c",
    "configs/experiment/small.yaml",
    "--trainer.log_every_n_steps=1",
    "--last_checkpoint.every_minutes=1e-9",
)


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def poisoned(inside: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Put a NaN into the fifth of 32 training batches; returns the list of its example ids, filled during training."""
    original, batches, ids = SmallData.training_batch, [0], []

    def batch(self: SmallData, indices):  # type: ignore[no-untyped-def]
        content = original(self, indices)
        if self.trainer and self.trainer.training:
            batches[0] += 1
            if batches[0] == 5:
                content["features"][0, 0] = torch.nan
                ids.append(indices.tolist())
        return content

    monkeypatch.setattr(SmallData, "training_batch", batch)
    return ids


def test_training_stops_and_records_the_examples(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard, match=r"step 4 is NaN or Inf; .*nonfinite\.json lists its examples"):
        run("fit", [*FIT])
    directory = newest()
    kept = json.loads((directory.path / "nonfinite.json").read_text())
    assert (kept["step"], kept["epoch"], kept["seed"]) == (4, 0, 0) and [kept["ids"]] == poisoned
    assert directory.record()["status"] == "stopped"


def test_no_checkpoint_is_saved_after_the_step(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard):
        run("fit", [*FIT])
    last = content(newest())
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_stopped_run_continues_from_the_last_finite_step(poisoned: list[list[int]]) -> None:
    with pytest.raises(StoppedByGuard):
        run("fit", [*FIT])
    stopped = newest().path
    assert fit("--resume=latest", "--guard.nonfinite=skip").path == stopped
    assert newest().record()["steps"] == 32


@pytest.mark.parametrize("accumulation", [1, 2])
def test_skipped_steps_are_counted(poisoned: list[list[int]], accumulation: int) -> None:
    directory = fit(*FIT, "--guard.nonfinite=skip", f"--trainer.accumulate_grad_batches={accumulation}")
    assert directory.record()["skipped_steps"] == 1 and directory.record()["status"] == "finished"
    logged = [row for row in rows(directory.path)]
    assert [row["train/skipped_steps"] for row in logged if "train/skipped_steps" in row] == [1]
    assert all(row["train/loss"] == row["train/loss"] for row in logged if "train/loss" in row)  # no NaN
    assert json.loads((directory.path / "eval.json").read_text())["val"]["metrics"]["val/accuracy"] > 0.5


def test_training_stops_after_20_consecutive_skipped_steps(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SmallData.training_batch

    def batch(self: SmallData, indices):  # type: ignore[no-untyped-def]
        return {**original(self, indices), "features": torch.full((len(indices), 64), torch.inf)}

    monkeypatch.setattr(SmallData, "training_batch", batch)
    with pytest.raises(StoppedByGuard, match="NaN or Inf in more than 20 consecutive steps"):
        run("fit", [*FIT, "--guard.nonfinite=skip", "--trainer.max_epochs=4"])


def test_the_command_exits_with_3(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status = run_main(" ".join(["fit", *FIT, "--model.learning_rate=1e30", "--model.warmup=0"]), monkeypatch)
    errors = capfd.readouterr().err
    assert status == 3, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("litlab: the loss or gradient of step ")


def test_two_ranks_stop_together_and_record_the_examples_of_both(litlab: Command, inside: Path) -> None:
    ddp = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")
    outcome = litlab("fit", *FIT, *ddp, "--model.learning_rate=1e30", "--model.warmup=0")
    assert outcome.returncode == 3, outcome.stderr
    ids = json.loads((newest().path / "nonfinite.json").read_text())["ids"]
    assert len(set(ids)) == 32  # the global batch


@pytest.mark.parametrize("limit", [0.01, 1e3], ids=["clipped", "small"])
def test_clipping_with_a_precomputed_norm_equals_that_of_torch(limit: float) -> None:
    torch.manual_seed(0)
    ours, expected = ([torch.nn.Parameter(torch.zeros(7, 5)), torch.nn.Parameter(torch.zeros(3))] for _ in range(2))
    for one, other in zip(ours, expected, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    optimizer, guard = torch.optim.SGD(ours), Guard()
    guard._norm = total_norm(gradients_of(optimizer))
    assert torch.equal(guard._norm, torch.nn.utils.get_total_norm([parameter.grad for parameter in expected]))
    guard.clip(optimizer, limit)
    torch.nn.utils.clip_grad_norm_(expected, limit)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, expected, strict=True))


def test_a_gradient_that_the_module_has_changed_is_clipped_by_its_new_norm(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    def enlarge(self: SmallModel, optimizer: torch.optim.Optimizer) -> None:
        for gradient in gradients_of(optimizer):
            gradient.mul_(1e3)

    def record(self: SmallModel, optimizer: torch.optim.Optimizer) -> None:
        if gradients := gradients_of(optimizer):  # of the previous step, clipped
            norms.append(total_norm(gradients).item())

    monkeypatch.setattr(SmallModel, "on_before_optimizer_step", enlarge)
    monkeypatch.setattr(SmallModel, "on_before_zero_grad", record)
    run("fit", [*FIT, "--trainer.gradient_clip_val=0.5", "--trainer.max_steps=4", "--trainer.val_check_interval=4"])
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize("manual", [True, False], ids=["manual optimization", "own clipping"])
def test_the_norm_of_another_gradient_is_not_used(manual: bool, tmp_path: Path) -> None:
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
