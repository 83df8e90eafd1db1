"""What the processes (ranks) of one training share: values, decisions, and where it starts."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from litlab.runs.directory import RunDirectory
from litlab.runs.start import Start

INHERITED = "LITLAB_START"  # the environment variable that tells the processes that Lightning starts where to start


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """The value of each rank, in their order."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def of_rank(trainer: Trainer, values: list[Any]) -> Any:
    """This rank's value of those that were gathered, perhaps by another number of ranks."""
    return values[trainer.global_rank % len(values)]


def any_rank(trainer: Trainer, *flags: bool) -> list[bool]:
    """For each flag whether it is set on any rank, so that all ranks act at the same step."""
    if trainer.world_size == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return [bool(number) for number in numbers.tolist()]


def is_child() -> bool:
    """Whether Lightning started this process: if it ends with an error, Lightning kills the first one at once."""
    return getattr(rank_zero_only, "rank", 0) != 0 and INHERITED in os.environ


def inherited_start() -> Start | None:
    """Where the process that started this one starts; None if Lightning did not start this one."""
    return _decoded(os.environ[INHERITED]) if is_child() else None


def share_start(trainer: Trainer, start: Start) -> Start:
    """The start that the first rank has chosen: its run, the checkpoint to continue from, the weights to begin with."""
    if trainer.world_size == 1 or is_child():
        return start
    encoded = json.dumps([os.path.realpath(start.run.path), start.checkpoint, start.weights], default=str)
    if not trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        os.environ[INHERITED] = encoded  # Lightning starts the other processes with this environment
        return start
    trainer.strategy.setup_environment()  # torchrun or Slurm has started all of them
    encoded = trainer.strategy.broadcast(encoded)
    if trainer.is_global_zero:
        return start
    start = _decoded(encoded)
    trainer._default_root_dir = str(start.run.path)  # type: ignore[attr-defined]  # this rank had planned a run of its own
    return start


def _decoded(encoded: str) -> Start:
    run, checkpoint, weights = (path and Path(path) for path in json.loads(encoded))
    return Start(RunDirectory(run), checkpoint=checkpoint, weights=weights)
