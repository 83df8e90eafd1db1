"""Shares values, decisions and the start of a training between its processes (ranks)."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from litlab.runs.directory import RunDirectory
from litlab.runs.start import Start

INHERITED = "LITLAB_START"  # environment variable with the start, for the processes that Lightning launches


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of the ranks."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def of_rank(trainer: Trainer, values: list[Any]) -> Any:
    """Return the value of this rank from gathered values. They may come from a different number of ranks."""
    return values[trainer.global_rank % len(values)]


def any_rank(trainer: Trainer, *flags: bool) -> list[bool]:
    """Return for each flag whether it is set on at least one rank, so that all ranks act at the same step."""
    if trainer.world_size == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return [bool(number) for number in numbers.tolist()]


def is_child() -> bool:
    """Return whether Lightning launched this process. If such a process fails, Lightning kills the first one."""
    return getattr(rank_zero_only, "rank", 0) != 0 and INHERITED in os.environ


def inherited_start() -> Start | None:
    """Return the start of the first process; None if Lightning did not launch this process."""
    return _decoded(os.environ[INHERITED]) if is_child() else None


def share_start(trainer: Trainer, start: Start) -> Start:
    """Return the start of the first rank on all ranks: run, checkpoint and initial weights."""
    if trainer.world_size == 1 or is_child():
        return start
    encoded = json.dumps([os.path.realpath(start.run.path), start.checkpoint, start.weights], default=str)
    if not trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        os.environ[INHERITED] = encoded  # Lightning launches the other processes with this environment
        return start
    trainer.strategy.setup_environment()  # torchrun or Slurm has launched all processes
    encoded = trainer.strategy.broadcast(encoded)
    if trainer.is_global_zero:
        return start
    start = _decoded(encoded)
    trainer._default_root_dir = str(start.run.path)  # type: ignore[attr-defined]  # this rank planned another run
    return start


def _decoded(encoded: str) -> Start:
    run, checkpoint, weights = (path and Path(path) for path in json.loads(encoded))
    return Start(RunDirectory(run), checkpoint=checkpoint, weights=weights)
