"""Batches: which examples form each batch, and how stored columns become padded tensors.

The sequence of *global* batches, one per optimizer step, is a pure function of data, seed, epoch and batch size. Each
rank and each micro-batch of gradient accumulation gets a slice of the global batch. Two ranks therefore train on the
same batches as one rank with two micro-batches, and a run can continue with a different number of ranks. This module
does not use the global random number generators.

`Split` memory-maps the columns that `token_cache` writes. `Ragged` turns any rows of a column into a padded batch
without a loop over examples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from litlab.errors import BadInput

Batch = dict[str, Any]
Fetch = Callable[[np.ndarray], Batch]
"""Maps the indices of examples, (batch,), to a batch of tensors."""
Plan = Callable[[int], Sequence[np.ndarray]]
"""Maps an epoch number to the global batches of that epoch; each batch is given by the indices of its examples."""
Measure = Callable[[np.ndarray], float]
"""Counts the units over which the loss is averaged, for the indices of a batch: examples or target tokens."""

# number of batches that are sorted by length together; with 32 examples per batch, very little padding is left
LENGTH_SORT_WINDOW = 50
# number of those batches that are sorted again by target length; fewer pad targets more, more pad texts more
TARGET_SORT_WINDOW = 5


def shuffled(size: int, batch_size: int, seed: int) -> Plan:
    """Return a plan that visits every example once per epoch, in a new random order; the last batch may be smaller.

    Args:
        size: number of examples.
        batch_size: examples per optimizer step, summed over ranks and micro-batches.
        seed: seed of the order, which also depends on the epoch.
    """

    def plan(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        return [order[start : start + batch_size] for start in range(0, size, batch_size)]

    return plan


def by_length(lengths: np.ndarray, batch_size: int, seed: int, target_lengths: np.ndarray | None = None) -> Plan:
    """Return a plan whose batches contain texts of similar length, to reduce padding; the order of batches is random.

    Each epoch shuffles the examples and divides them into windows of 50 batches. Each window is sorted by length and
    cut into batches, and all batches are shuffled: otherwise the length would change slowly from step to step, and the
    loss with it. With targets, every five consecutive batches of a sorted window are sorted again, by target length.

    Args:
        lengths: length of each example in tokens, (examples,).
        batch_size: examples per optimizer step, summed over ranks and micro-batches.
        seed: seed of the order, which also depends on the epoch.
        target_lengths: length of each target in tokens, (examples,); None: sort by text length only.
    """
    lengths = _in_smallest_type(lengths)
    target_lengths = None if target_lengths is None else _in_smallest_type(target_lengths)
    window_size, part_size = LENGTH_SORT_WINDOW * batch_size, TARGET_SORT_WINDOW * batch_size

    @lru_cache(maxsize=1)  # TrainingBatches calls it once to count the batches and again to yield them
    def plan(epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        # sort each window by length, and every five of its batches again by target length
        batches = []
        for start in range(0, len(order), window_size):
            window = order[start : start + window_size]
            window = window[np.argsort(lengths[window], kind="stable")]
            if target_lengths is not None:
                parts = np.split(window, range(part_size, len(window), part_size))
                window = np.concatenate([part[np.argsort(target_lengths[part], kind="stable")] for part in parts])
            batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        return [batches[number] for number in random.permutation(len(batches))]

    return plan


def _in_smallest_type(values: np.ndarray) -> np.ndarray:
    """Cast non-negative integers to the smallest type that holds them, because NumPy sorts it faster."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _repeat(batches: Sequence[np.ndarray], epoch: int) -> Sequence[np.ndarray]:
    """Return the same batches for every epoch."""
    return batches


class TrainingBatches:
    """The training dataloader of one rank: it yields this rank's slices of the global batches.

    Each batch contains `size`, the number of units over which its loss is averaged, and `weight`. The mean loss of the
    slice times `weight`, averaged over ranks and micro-batches, equals the mean loss of the global batch, even if that
    batch does not divide evenly. An empty slice is replaced by one example with weight 0. Iteration continues from
    `position`; after the end of an epoch it yields nothing until `set_epoch` is called.

    Args:
        fetch: maps indices to a batch.
        plan: maps an epoch to its global batches.
        rank: rank of this process, from 0.
        world_size: number of ranks.
        accumulation: micro-batches per optimizer step.
        measure: counts the units over which the loss of a batch is averaged; by default examples.
    """

    def __init__(
        self,
        fetch: Fetch,
        plan: Plan,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        measure: Measure = len,
    ) -> None:
        self._fetch = fetch
        self._plan = plan
        self._measure = measure
        self._rank = rank
        self._world_size = world_size
        self._accumulation = accumulation
        self._length = len(plan(0)) * accumulation
        self.epoch = 0
        self.position = 0

    @classmethod
    def for_trainer(
        cls, trainer: Trainer | None, fetch: Fetch, plan: Plan, measure: Measure = len
    ) -> "TrainingBatches":
        """Create the dataloader for the trainer's rank; with `overfit_batches`, every epoch has the same batches.

        Args:
            trainer: trainer of the data module; None: a single process without a trainer.
            fetch: maps indices to a batch.
            plan: maps an epoch to its global batches.
            measure: counts the units over which the loss of a batch is averaged: examples or target tokens.
        """
        if trainer is None:
            return cls(fetch, plan, measure=measure)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            plan = partial(_repeat, plan(0))
        return cls(fetch, plan, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, measure)

    def __len__(self) -> int:
        """Number of micro-batches per epoch on this rank."""
        return self._length

    @property
    def sampler(self) -> "TrainingBatches":
        """Return this object: Lightning calls `set_epoch` on the sampler of a dataloader."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Start `epoch` at its first batch; if it is already the current epoch, keep the position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        global_batches = self._plan(self.epoch)
        slices = self._world_size * self._accumulation
        while self.position < len(global_batches):
            global_batch = global_batches[self.position]
            for micro in range(self._accumulation):
                # the slice of this rank and micro-batch
                part = global_batch
                if slices > 1:
                    part = np.array_split(global_batch, slices)[micro * self._world_size + self._rank]
                # advance before the last yield: a checkpoint written after this step continues with the next batch
                if micro == self._accumulation - 1:
                    self.position += 1
                batch = self._fetch(part if len(part) else global_batch[:1])
                batch["size"] = self._measure(part)
                batch["weight"] = batch["size"] * slices / self._measure(global_batch)
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the complete state: the epoch, and the number of its global batches that were fully yielded."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`, which any number of ranks may have saved."""
        self.epoch, self.position = state["epoch"], state["position"]


class EvaluationBatches:
    """The evaluation dataloader of one rank: it yields this rank's part of a split.

    Across ranks, every example appears exactly once, and all ranks make the same number of steps.

    Args:
        fetch: maps indices to a batch.
        order: indices of the examples, (examples,), in the order of evaluation.
        batch_size: examples per rank and step, approximately.
        rank: rank of this process, from 0.
        world_size: number of ranks.

    Raises:
        BadInput: if there are fewer examples than ranks.
    """

    def __init__(self, fetch: Fetch, order: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(order) < world_size:
            raise BadInput(
                f"a split of {len(order)} examples is too small for {world_size} processes: use fewer devices."
            )
        # equally many batches on every rank, none empty: ranks of a sharded model wait for each other in every step
        steps = max(1, min(math.ceil(len(order) / (batch_size * world_size)), len(order) // world_size))
        self._fetch = fetch
        self._parts = np.array_split(order, steps * world_size)[rank::world_size]

    @classmethod
    def for_trainer(
        cls, trainer: Trainer | None, fetch: Fetch, order: np.ndarray, batch_size: int
    ) -> "EvaluationBatches":
        """Create the dataloader for the trainer's rank.

        Args:
            trainer: trainer of the data module; None: a single process without a trainer.
            fetch: maps indices to a batch.
            order: indices of the examples, in the order of evaluation.
            batch_size: examples per rank and step.
        """
        if trainer is None:
            return cls(fetch, order, batch_size)
        return cls(fetch, order, batch_size, trainer.global_rank, trainer.world_size)

    def __len__(self) -> int:
        """Number of batches on this rank."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._fetch, self._parts)


class Ragged:
    """Sequences of different lengths, concatenated in one array.

    Args:
        values: all sequences, (sum of lengths,).
        offsets: start of each sequence and end of the last, (sequences + 1,).
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values = values
        self.starts = offsets[:-1]
        self.lengths = np.diff(offsets)
        self.longest = int(self.lengths.max(initial=0))

    def padded(self, rows: np.ndarray, fill: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sequences of the given rows, padded to the same length.

        Args:
            rows: indices of the sequences, (batch,).
            fill: the padding value.
            multiple: the length of the longest row is rounded up to a multiple of this, but never above the longest
                sequence of the whole column, because a model may have no positions beyond it.

        Returns:
            The padded sequences, (batch, length) int64, and a mask that is false for padding, (batch, length) bool.
        """
        lengths = self.lengths[rows]
        length = min(-(-int(lengths.max()) // multiple) * multiple, self.longest)
        columns = np.arange(length)
        mask = columns < lengths[:, None]  # (batch, length)
        positions = (self.starts[rows][:, None] + columns)[mask]
        batch = np.full(mask.shape, fill, np.int64)
        batch[mask] = self.values[positions]
        return torch.from_numpy(batch), torch.from_numpy(mask)

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return the sequences of the given rows as strings, decoded from UTF-8."""
        return [bytes(self.values[self.starts[row] : self.starts[row] + self.lengths[row]]).decode() for row in rows]


class Split:
    """The memory-mapped columns of one split; they remain usable if the cache is deleted.

    Args:
        folder: cache folder of the split; the suffix of each file is its dtype.
    """

    def __init__(self, folder: Path) -> None:
        self._arrays = {file.stem: np.memmap(file, file.suffix[1:], mode="r") for file in folder.iterdir()}

    def __contains__(self, name: str) -> bool:
        """Whether the split has this column."""
        return name in self._arrays

    def array(self, name: str) -> np.ndarray:
        """Return a column of numbers, one per example."""
        return self._arrays[name]

    def ragged(self, name: str) -> Ragged:
        """Return a column of sequences."""
        return Ragged(self.array(name), self.array(f"{name}_offsets"))
