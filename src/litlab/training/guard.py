"""Stops training, or skips the step, if the loss or gradient is NaN or Inf."""

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

GRADIENT_HOOKS = ("on_before_optimizer_step", "configure_gradient_clipping")  # of a module; may change the gradient
MAX_CONSECUTIVE = 20  # skipped steps in a row; with more, the training does not recover


class Guard(Callback):
    """Stops training if a loss or gradient is NaN or Inf, and records the step and its examples.

    It writes step, epoch, seed and the ids of the examples to nonfinite.json in the run directory. If it stops, no
    checkpoint is saved after that step. The check reads one number per optimizer step, one step later, so that the CPU
    does not wait for the GPU.

    Args:
        nonfinite: stop: end the training; skip: leave the weights unchanged and count the step. With skip, the CPU
            waits for the GPU at every step.
    """

    def __init__(self, nonfinite: Literal["stop", "skip"] = "stop") -> None:
        self.nonfinite = nonfinite
        self.skipped = 0
        self._in_a_row = 0
        self._batches: list[Any] = []
        self._stepped = False
        # the sum of losses and gradient norm is finite only if each of them is: one check instead of several
        self._sum: Tensor | None = None  # losses of the current step
        self._norm: Tensor | None = None  # gradient norm of the current step
        self._unread: tuple[Tensor, dict[str, Any]] | None = None  # sum and facts of the previous step

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batches of the step, for their example ids."""
        if self._stepped:
            self._batches, self._stepped = [], False
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the loss of a micro-batch to the sum."""
        loss = loss.detach()
        self._sum = loss if self._sum is None else self._sum + loss
        batch = self._batches[-1]
        if self.nonfinite == "skip" and isinstance(batch, dict) and "weight" in batch and not torch.isfinite(loss):
            batch["weight"] = 0.0  # excludes it from the logged means

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check the previous step, and add the gradient norm of this step to the sum.

        Raises:
            StoppedByGuard: if the loss or gradient of the previous step was NaN or Inf, or more than
                `MAX_CONSECUTIVE` consecutive steps were skipped.
        """
        # 1. check the previous step
        self.check(trainer)
        self._stepped = True
        if self._sum is None:
            return  # manual optimization without Lightning's backward

        # 2. add up losses and gradient norm of this step, across ranks
        total, self._sum = self._sum, None
        gradients = gradients_of(optimizer)
        # a gradient scaler skips steps with infinite gradients itself
        if gradients and getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = total_norm(gradients)
            total = total + norm
            if pl_module.automatic_optimization and not any(is_overridden(hook, pl_module) for hook in GRADIENT_HOOKS):
                self._norm = norm
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")

        # 3. read the sum at the next step, or now if this step may be skipped
        ids = [batch.get("id") if isinstance(batch, dict) else None for batch in self._batches]
        facts = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seed": _seed()}
        self._unread = total, {**facts, "ids": ids}
        if self.nonfinite == "skip" and not torch.isfinite(total):
            self._skip(trainer, optimizer)
        elif self.nonfinite == "skip":
            self._in_a_row, self._unread = 0, None

    def clip(self, optimizer: Any, clip_val: float) -> None:
        """Clip the gradient with the norm from the check; computing the norm again would double the cost.

        Args:
            optimizer: the optimizer whose gradients are clipped.
            clip_val: maximum 2-norm.
        """
        norm, self._norm = self._norm, None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if norm is None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_val)
        elif norm.is_cuda or norm > clip_val:  # on a GPU, the comparison would make the CPU wait
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norm)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the last step, so that no checkpoint is saved after a NaN or Inf."""
        self.check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step before a validation."""
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Stop if the loss or gradient of the last step was NaN or Inf.

        Raises:
            StoppedByGuard: with the step and the path of nonfinite.json.
        """
        unread, self._unread = self._unread, None
        if unread is None or math.isfinite(unread[0].item()):
            return
        file = self._record(trainer, unread[1])
        raise StoppedByGuard(
            f"the loss or gradient of step {unread[1]['step']} is NaN or Inf; {file} lists its examples; lower "
            "model.learning_rate, clip gradients with --trainer.gradient_clip_val=1, or skip such steps with "
            "--guard.nonfinite=skip."
        )

    def _skip(self, trainer: Trainer, optimizer: Any) -> None:
        """Remove the gradients, so that the optimizer changes no weights, and log the number of skipped steps."""
        assert self._unread is not None
        facts, self._unread = self._unread[1], None
        self.skipped += 1
        self._in_a_row += 1
        file = self._record(trainer, facts)
        if self._in_a_row > MAX_CONSECUTIVE:
            raise StoppedByGuard(
                f"the loss or gradient was NaN or Inf in more than {MAX_CONSECUTIVE} consecutive steps; {file} lists "
                "the examples of the last one; lower model.learning_rate."
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": self.skipped}, step=trainer.global_step)

    def _record(self, trainer: Trainer, facts: dict[str, Any]) -> Path:
        """Write nonfinite.json, with the example ids of all ranks; it replaces the file of an earlier step."""
        own_ids = [
            example
            for ids in facts["ids"]
            if ids is not None
            for example in (ids.tolist() if torch.is_tensor(ids) else ids)
        ]
        ids = [example for rank_ids in gather(trainer, own_ids) for example in rank_ids]
        file = Path(trainer.default_root_dir) / "nonfinite.json"
        if trainer.is_global_zero:
            content = {**facts, "ids": ids, "skipped": self.skipped}
            write_atomically(file, json.dumps(content, indent=1) + "\n")
        return file


def _seed() -> int | None:
    """Return the seed that `seed_everything` has set; None if it was not called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed else None


def gradients_of(optimizer: Any) -> list[Tensor]:
    """Return the gradients of an optimizer's parameters."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, equal to that of torch.nn.utils.get_total_norm.

    If all gradients have the same device and dtype, it skips torch's grouping, which takes longer than the norm itself.
    """
    if len({(gradient.device, gradient.dtype, gradient.layout, type(gradient)) for gradient in gradients}) > 1:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)))
