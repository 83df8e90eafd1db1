"""Whether a strategy shards the weights."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

UNSHARDED = (SingleDeviceStrategy, DDPStrategy)  # exactly these: DeepSpeed's strategy derives from one of them


def is_sharded(trainer: Trainer | None) -> bool:
    """Whether each process holds only a part of the weights; then a network's modules must not be read directly."""
    return trainer is not None and type(trainer.strategy) not in UNSHARDED
