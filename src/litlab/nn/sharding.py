"""Whether a strategy shards the weights."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

UNSHARDED = (SingleDeviceStrategy, DDPStrategy)  # not their subclasses, such as DeepSpeedStrategy


def is_sharded(trainer: Trainer | None) -> bool:
    """Whether each process holds only a part of the weights, so that weights must not be read directly."""
    return trainer is not None and type(trainer.strategy) not in UNSHARDED
