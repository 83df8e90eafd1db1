"""How examples become batches: which examples form which batch, and how stored columns become padded tensors.

The sequence of *global* batches, one per optimizer step, is a pure function of (data, seed, epoch, batch size). Ranks and
the micro-batches of gradient accumulation take slices of it: two ranks see what one rank with two micro-batches sees, and
any number of ranks can continue what another number began. Nothing here draws from the global random number generators.

The columns of a split (`Split`) are flat arrays on disk, mapped into memory; `token_cache` writes them. Any of their rows
make a padded batch without a loop over examples (`Ragged`).
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
"""Turns the indices of examples, (batch,), into a batch of tensors."""
Plan = Callable[[int], Sequence[np.ndarray]]
"""Turns an epoch number into the global batches of that epoch, each the indices of its examples."""
Measure = Callable[[np.ndarray], float]
"""Counts the units that the loss is averaged over, for the indices of a batch: its examples, or its target tokens."""

# batches that are sorted by length together: with 32 examples each, hardly any text needs padding
LENGTH_SORT_WINDOW = 50
# batches of such a window that are then sorted by target length: smaller pads targets more, larger pads texts more
TARGET_SORT_WINDOW = 5


def shuffled(size: int, batch_size: int, seed: int) -> Plan:
    """Plan epochs that visit each of `size` examples once in a new random order; the last batch may be smaller.

    Args:
        size: number of examples.
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        seed: seed of the order, together with the epoch.
    """

    def plan(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        return [order[start : start + batch_size] for start in range(0, size, batch_size)]

    return plan


def by_length(lengths: np.ndarray, batch_size: int, seed: int, target_lengths: np.ndarray | None = None) -> Plan:
    """Plan epochs whose batches hold texts of similar length, so that little padding is needed; the order of batches is random.

    A new random order is cut into windows of 50 batches, each window is sorted by length and cut into batches, and these
    are shuffled: neighbours in time do not resemble each other in length, which would make the loss swing. With targets,
    every five neighbouring batches of a sorted window are sorted once more, by the length of the targets.

    Args:
        lengths: length of each example in tokens, (examples,).
        batch_size: examples per optimizer step, over all ranks and micro-batches.
        seed: seed of the order, together with the epoch.
        target_lengths: length of each target in tokens, (examples,); None: sort by the texts alone.
    """
    lengths = _in_smallest_type(lengths)
    target_lengths = None if target_lengths is None else _in_smallest_type(target_lengths)
    window_size, part_size = LENGTH_SORT_WINDOW * batch_size, TARGET_SORT_WINDOW * batch_size

    @lru_cache(maxsize=1)  # the number of batches is read before the first of them
    def plan(epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
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
    """The same numbers in their smallest type, which NumPy sorts faster."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _repeat(batches: Sequence[np.ndarray], epoch: int) -> Sequence[np.ndarray]:
    return batches


class TrainingBatches:
    """One rank's slices of the global batches, as Lightning's train dataloader.

    Every batch carries `size`, the number of units that its loss is averaged over, and `weight`: the mean loss of the slice
    times `weight`, averaged over ranks and micro-batches, is the mean loss of the global batch, also where that does not
    divide evenly. A slice that would be empty repeats an example with weight 0. Iterating continues from `position`: at the
    end of an epoch it yields nothing until `set_epoch`.

    Args:
        fetch: function from indices to a batch.
        plan: the global batches of an epoch.
        rank: rank of this process, from 0.
        world_size: number of ranks.
        accumulation: micro-batches per optimizer step.
        measure: counts the size of a batch: its examples, unless the loss is a mean over tokens.
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
        """The slices of the trainer's rank; with `overfit_batches` every epoch has the same batches.

        Args:
            trainer: the data module's; None for one process without a trainer.
            fetch: function from indices to a batch.
            plan: the global batches of an epoch.
            measure: counts the size of a batch: examples, or target tokens.
        """
        if trainer is None:
            return cls(fetch, plan, measure=measure)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            plan = partial(_repeat, plan(0))
        return cls(fetch, plan, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, measure)

    def __len__(self) -> int:
        """Micro-batches per epoch and rank."""
        return self._length

    @property
    def sampler(self) -> "TrainingBatches":
        """This object itself: Lightning calls `set_epoch` on a dataloader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`; if it is the current one, keep the position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        global_batches = self._plan(self.epoch)
        slices = self._world_size * self._accumulation
        while self.position < len(global_batches):
            global_batch = global_batches[self.position]
            for micro in range(self._accumulation):
                part = global_batch
                if slices > 1:
                    part = np.array_split(global_batch, slices)[micro * self._world_size + self._rank]
                if micro == self._accumulation - 1:
                    self.position += 1
                batch = self._fetch(part if len(part) else global_batch[:1])
                batch["size"] = self._measure(part)
                batch["weight"] = batch["size"] * slices / self._measure(global_batch)
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The whole state: the epoch, and how many of its global batches were yielded completely."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`, saved by any number of ranks."""
        self.epoch, self.position = state["epoch"], state["position"]


class EvaluationBatches:
    """One rank's share of a split: across ranks, each example comes exactly once, and all ranks make the same number of steps.

    Args:
        fetch: function from indices to a batch.
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
                f"a split of {len(order)} examples cannot be evaluated by {world_size} processes: use fewer devices."
            )
        # nearly equal parts, none empty: ranks of a sharded model step together, and would otherwise wait forever
        steps = max(1, min(math.ceil(len(order) / (batch_size * world_size)), len(order) // world_size))
        self._fetch = fetch
        self._parts = np.array_split(order, steps * world_size)[rank::world_size]

    @classmethod
    def for_trainer(
        cls, trainer: Trainer | None, fetch: Fetch, order: np.ndarray, batch_size: int
    ) -> "EvaluationBatches":
        """The share of the trainer's rank.

        Args:
            trainer: the data module's; None for one process without a trainer.
            fetch: function from indices to a batch.
            order: indices of the examples, in the order of evaluation.
            batch_size: examples per rank and step.
        """
        if trainer is None:
            return cls(fetch, order, batch_size)
        return cls(fetch, order, batch_size, trainer.global_rank, trainer.world_size)

    def __len__(self) -> int:
        """Batches per rank."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._fetch, self._parts)


class Ragged:
    """Sequences of different lengths, one after the other in one array.

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
        """The sequences of some rows, padded to one length.

        Args:
            rows: indices of the sequences, (batch,).
            fill: the padding value.
            multiple: the length is that of the longest row, rounded up to a multiple of this, but at most that of the
                longest sequence of all: a model may have no positions beyond it.

        Returns:
            The padded sequences, (batch, length) int64, and where they are not padding, (batch, length) bool.
        """
        lengths = self.lengths[rows]
        length = min(-(-int(lengths.max()) // multiple) * multiple, self.longest)
        columns = np.arange(length)
        real = columns < lengths[:, None]  # (batch, length)
        places = (self.starts[rows][:, None] + columns)[real]
        batch = np.full(real.shape, fill, np.int64)
        batch[real] = self.values[places]
        return torch.from_numpy(batch), torch.from_numpy(real)

    def texts(self, rows: np.ndarray) -> list[str]:
        """The sequences of some rows, decoded from UTF-8, as strings."""
        return [bytes(self.values[self.starts[row] : self.starts[row] + self.lengths[row]]).decode() for row in rows]


class Split:
    """The columns of one split in a cache folder, memory-mapped: they stay usable if the cache is deleted.

    Args:
        folder: the cache folder of the split; a file's suffix is the type of its numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._arrays = {file.stem: np.memmap(file, file.suffix[1:], mode="r") for file in folder.iterdir()}

    def __contains__(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self._arrays

    def array(self, name: str) -> np.ndarray:
        """A column of numbers, one per example."""
        return self._arrays[name]

    def ragged(self, name: str) -> Ragged:
        """A column of sequences."""
        return Ragged(self.array(name), self.array(f"{name}_offsets"))
