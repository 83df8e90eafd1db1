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

FINAL_FRACTION = 0.01  # where the exponential schedule ends, as a fraction of the peak: it never reaches zero by itself


def rate_at(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """The learning rate of one optimizer step, as a fraction of its peak.

    It rises linearly over `warmup` steps, then decays until `total`; it is above zero at every step.

    Args:
        step: number of previous optimizer steps.
        total: optimizer steps of the whole training.
        warmup: steps in which the rate rises.
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
    """Parameter groups with weight decay on matrices only: biases, norms and embeddings have none.

    Decay shrinks a weight towards zero; for a scale or an offset that is a bias towards a wrong value, and an embedding
    row would shrink although its token never occurs.
    """
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2 and id(parameter) not in embeddings]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in trainable if id(parameter) not in chosen]
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "not_decayed", "params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class RelativeAdamW(torch.optim.AdamW):
    """AdamW whose learning rate is relative to the root mean square of each weight tensor, as Adafactor's is.

    A step then changes matrices of all sizes, embeddings and norms by the same fraction.

    Source: Shazeer and Stern, 2018, section 8; with AdamW in nanoT5 (Nawrot, 2023).
    """

    SMALLEST = 1e-3  # root mean square that a tensor counts with at least, so that zeros can leave zero

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:  # the closure sees the original learning rates
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        tensors = [tensor for group in groups for tensor in group["params"]]
        norms = torch.stack(torch._foreach_norm(tensors)).tolist()  # one wait for the device
        sizes = iter(norm / math.sqrt(tensor.numel()) for norm, tensor in zip(norms, tensors, strict=True))
        self.param_groups = [  # each tensor is a group of its own for this step
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
    """AdamW and a schedule per optimizer step, as `LightningModule.configure_optimizers` returns them.

    Args:
        module: a LightningModule with a trainer; its trainable parameters are optimized.
            Its attributes are `learning_rate` at its peak; `weight_decay`, decoupled, as in AdamW (Loshchilov and Hutter, 2019);
            `schedule`, the shape of the decay after the warm-up; `warmup`, the rise, as a fraction of all steps; and perhaps
            `relative_steps`, to use `RelativeAdamW`.

    Raises:
        BadInput: if the schedule has no end, or the size of a tensor is not known because it is sharded.
    """
    schedule, warmup, relative_steps = module.schedule, module.warmup, getattr(module, "relative_steps", False)
    if relative_steps and is_sharded(module.trainer):
        raise BadInput(
            f"model.relative_steps=true needs unsharded weights, {type(module.trainer.strategy).__name__} shards them: use "
            "trainer.strategy=auto or ddp, or model.relative_steps=false."
        )
    steps = module.trainer.estimated_stepping_batches
    if steps == math.inf and (schedule != "constant" or warmup):
        raise BadInput(
            "a learning-rate schedule needs an end: set trainer.max_epochs or max_steps, or schedule=constant, warmup=0."
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
