"""Whether a strategy leaves each process all of the weights."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

UNSHARDED = (SingleDeviceStrategy, DDPStrategy)  # exactly these: DeepSpeed's strategy derives from one of them


def is_sharded(trainer: Trainer | None) -> bool:
    """Whether each process holds only a part of the weights: then code must not reach into a network's parts."""
    return trainer is not None and type(trainer.strategy) not in UNSHARDED
