"""Stops a training, or skips a step, whose loss or gradient is NaN or Inf."""

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from litlab.errors import StoppedByGuard
from litlab.files import write_atomically
from litlab.training.ranks import gather

GRADIENT_HOOKS = ("on_before_optimizer_step", "configure_gradient_clipping")  # they may change it before it is clipped
IN_A_ROW = 20  # skipped steps; more mean that the training does not recover


class Guard(Callback):
    """Stops a training whose loss or gradient is NaN or Inf, and records the step and its examples.

    The run directory gets nonfinite.json: step, epoch, seed and the ids of the examples. Nothing is saved after such a
    step. The check reads one number per optimizer step, of the step before: a GPU does not wait for it.

    Args:
        nonfinite: stop, or skip: leave such a step out and count it, which makes a GPU wait at every step.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"] = "stop") -> None:
        self.nonfinite = nonfinite
        self.skipped = 0
        self._in_a_row = 0
        self._batches: list[Any] = []
        self._stepped = False
        # losses and norm of the gradient added up: finite if all of them are, in fewer operations than looking at each
        self._sum: Tensor | None = None  # of the step under way
        self._norm: Tensor | None = None  # of its gradient
        self._unread: tuple[Tensor, dict[str, Any]] | None = None  # of the step before

    def state_dict(self) -> dict[str, Any]:
        """The count of skipped steps."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the examples of the step."""
        if self._stepped:
            self._batches, self._stepped = [], False
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss of a micro-batch."""
        loss = loss.detach()
        self._sum = loss if self._sum is None else self._sum + loss
        batch = self._batches[-1]
        if self.nonfinite == "skip" and isinstance(batch, dict) and "weight" in batch and not torch.isfinite(loss):
            batch["weight"] = 0.0  # left out of the means that are logged

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradient, and at what the step before has given.

        Raises:
            StoppedByGuard: if the step before must not be counted.
        """
        self.check(trainer)
        self._stepped = True
        if self._sum is None:
            return  # a module that optimizes by itself, without Lightning's backward
        watched, self._sum = self._sum, None
        gradients = gradients_of(optimizer)
        # a scaler leaves infinite ones out itself
        if gradients and getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = total_norm(gradients)
            watched = watched + norm
            if pl_module.automatic_optimization and not any(is_overridden(hook, pl_module) for hook in GRADIENT_HOOKS):
                self._norm = norm
        if trainer.world_size > 1:
            watched = trainer.strategy.reduce(watched, reduce_op="sum")
        ids = [batch.get("id") if isinstance(batch, dict) else None for batch in self._batches]
        facts = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seed": _seed()}
        self._unread = watched, {**facts, "ids": ids}
        if self.nonfinite == "skip" and not torch.isfinite(watched):
            self._skip(trainer, optimizer)
        elif self.nonfinite == "skip":
            self._in_a_row, self._unread = 0, None

    def clip(self, optimizer: Any, clip_val: float) -> None:
        """Clip the gradient by its norm, which is known already: counting it again costs as much as the clipping."""
        norm, self._norm = self._norm, None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if norm is None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_val)
        elif norm.is_cuda or norm > clip_val:  # a GPU would wait for the comparison
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norm)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nothing is saved after a step that must not be counted."""
        self.check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not score it either."""
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last step."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Stop if the last step was not finite.

        Raises:
            StoppedByGuard: with the step and where to read more.
        """
        unread, self._unread = self._unread, None
        if unread is None or math.isfinite(unread[0].item()):
            return
        file = self._record(trainer, unread[1])
        raise StoppedByGuard(
            f"the loss or gradient of step {unread[1]['step']} is not finite; {file} names its examples; lower "
            "model.learning_rate, clip with --trainer.gradient_clip_val=1, or leave such steps out with --guard.nonfinite=skip."
        )

    def _skip(self, trainer: Trainer, optimizer: Any) -> None:
        assert self._unread is not None
        facts, self._unread = self._unread[1], None
        self.skipped += 1
        self._in_a_row += 1
        file = self._record(trainer, facts)
        if self._in_a_row > IN_A_ROW:
            raise StoppedByGuard(
                f"{IN_A_ROW} steps in a row were not finite, the last is in {file}: the training does not recover."
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # without gradients the optimizer changes nothing
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": self.skipped}, step=trainer.global_step)

    def _record(self, trainer: Trainer, facts: dict[str, Any]) -> Path:
        """Write down what led to it, the last time only; of several processes, the examples of all."""
        mine = [
            one for ids in facts["ids"] if ids is not None for one in (ids.tolist() if torch.is_tensor(ids) else ids)
        ]
        ids = [one for of_rank in gather(trainer, mine) for one in of_rank]
        file = Path(trainer.default_root_dir) / "nonfinite.json"
        if trainer.is_global_zero:
            content = {**facts, "ids": ids, "skipped": self.skipped}
            write_atomically(file, json.dumps(content, indent=1) + "\n")
        return file


def _seed() -> int | None:
    """The seed of the process, where `seed_everything` keeps it."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed else None


def gradients_of(optimizer: Any) -> list[Tensor]:
    """The gradients that an optimizer will use."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, as torch.nn.utils.get_total_norm counts it.

    For one device and one type, which is nearly always so, it does without the sorting that takes longer than the counting.
    """
    if len({(gradient.device, gradient.dtype, gradient.layout, type(gradient)) for gradient in gradients}) > 1:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)))
