"""The optimizer and learning-rate schedule that all models share."""

import math
import sys
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import Field
from torch import nn

from litlab.errors import BadInput
from litlab.nn.sharding import is_sharded

Schedule = Literal["linear", "cosine", "exponential", "constant"]
Fraction = Annotated[float, Field(ge=0, le=1)]

FINAL_FRACTION = 0.01  # the exponential schedule never reaches zero, so it ends at this fraction of the peak


def rate_at(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """Return the learning rate of an optimizer step, as a fraction of the peak.

    It rises linearly over `warmup` steps, then decays until step `total`; it is positive at every step.

    Args:
        step: number of previous optimizer steps.
        total: number of optimizer steps of the training.
        warmup: number of steps in which the rate rises.
        schedule: shape of the decay.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule == "exponential":
        return FINAL_FRACTION**progress
    return 1.0


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay on matrices only, not on biases, norms and embeddings.

    Weight decay pulls values towards zero. For scales and offsets zero is not a better value, and the embeddings of
    tokens that never occur would shrink.
    """
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2 and id(parameter) not in embeddings]
    decayed_ids = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in trainable if id(parameter) not in decayed_ids]
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "not_decayed", "params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class RelativeAdamW(torch.optim.AdamW):
    """AdamW with learning rates relative to the root mean square of each weight tensor, as in Adafactor.

    A step then changes matrices, embeddings and norms by the same fraction of their values.

    Source: Shazeer and Stern, 2018, section 8; with AdamW in nanoT5 (Nawrot, 2023).
    """

    SMALLEST = 1e-3  # lower bound of the root mean square, so that a tensor of zeros can change

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Perform one optimizer step and return the loss of the closure, if there is one."""
        loss = None
        if closure is not None:  # the closure sees the original learning rates
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        tensors = [tensor for group in groups for tensor in group["params"]]
        norms = torch.stack(torch._foreach_norm(tensors)).tolist()  # one synchronization with the device
        sizes = iter(norm / math.sqrt(tensor.numel()) for norm, tensor in zip(norms, tensors, strict=True))
        self.param_groups = [  # during this step, each tensor is its own group
            {**group, "params": [tensor], "lr": group["lr"] * max(self.SMALLEST, next(sizes))}
            for group in groups
            for tensor in group["params"]
        ]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss


def configure(module: Any) -> OptimizerLRSchedulerConfig:
    """Return AdamW and a learning-rate schedule per optimizer step, for `LightningModule.configure_optimizers`.

    Args:
        module: a LightningModule with a trainer; its trainable parameters are optimized. Its attributes are
            `learning_rate`, the peak; `weight_decay`, decoupled (Loshchilov and Hutter, 2019); `schedule`, the decay
            after the warm-up; `warmup`, the fraction of all steps in which the rate rises; and optionally
            `relative_steps`, to use `RelativeAdamW`.

    Raises:
        BadInput: if the schedule needs a number of steps and the training has no end, or if `relative_steps` is used
            with sharded weights, whose tensors have no local size.
    """
    schedule, warmup, relative_steps = module.schedule, module.warmup, getattr(module, "relative_steps", False)
    if relative_steps and is_sharded(module.trainer):
        raise BadInput(
            "model.relative_steps=true needs unsharded weights, but "
            f"{type(module.trainer.strategy).__name__} shards them: use trainer.strategy=auto or ddp, or "
            "model.relative_steps=false."
        )
    steps = module.trainer.estimated_stepping_batches
    if steps == math.inf and (schedule != "constant" or warmup):
        raise BadInput(
            "the learning-rate schedule needs the number of steps: set trainer.max_epochs or trainer.max_steps, or "
            "model.schedule=constant and model.warmup=0."
        )
    total = int(min(steps, sys.maxsize))
    kind = RelativeAdamW if relative_steps else torch.optim.AdamW
    optimizer = kind(decay_groups(module, module.weight_decay), lr=module.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_at(step, total, int(warmup * total), schedule)
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
    }
