"""Which examples form which batch.

The sequence of *global* batches, one per optimizer step, is a pure function of (data, seed, epoch, batch size). The
processes and the micro-batches of gradient accumulation take slices of it: two processes see what one process with
two micro-batches sees, and any number of processes can continue what another number began. Nothing here draws from
the global random number generators.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from litlab.errors import BadInput

Batch = dict[str, Any]
Fetch = Callable[[np.ndarray], Batch]
"""Turns the indices of examples, (batch,), into a batch of tensors."""
Plan = Callable[[int], Sequence[np.ndarray]]
"""Turns an epoch number into the global batches of that epoch, each the indices of its examples."""
Measure = Callable[[np.ndarray], float]
"""Counts what the loss is a mean over, for the indices of a batch: its examples, or its target tokens."""

WINDOW = 50  # batches that are sorted by length together: with 32 examples each, hardly any text needs padding
SHELF = 5  # batches that are then sorted by the length of the target: fewer pad more targets, more pad more texts


def shuffled(size: int, batch_size: int, seed: int) -> Plan:
    """Plan epochs that visit each of `size` examples once in a new random order; the last batch may be smaller.

    Args:
        size: number of examples.
        batch_size: examples per optimizer step, over all processes and micro-batches.
        seed: together with the epoch it fixes the order.
    """

    def plan(epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(size)
        return [order[start : start + batch_size] for start in range(0, size, batch_size)]

    return plan


def by_length(lengths: np.ndarray, batch_size: int, seed: int, target_lengths: np.ndarray | None = None) -> Plan:
    """Plan epochs whose batches hold texts of similar length, so that little is padded; the order of batches is random.

    A new random order is cut into windows of 50 batches, each window is sorted by length and cut into batches, and these
    are shuffled: neighbours in time do not resemble each other in length, which would make the loss swing. With targets,
    every five neighbouring batches of a sorted window are sorted once more, by the length of the targets.

    Args:
        lengths: length of each example in tokens, (examples,).
        batch_size: examples per optimizer step, over all processes and micro-batches.
        seed: together with the epoch it fixes the order.
        target_lengths: of what is to be generated, in tokens, (examples,).
    """
    lengths = _small(lengths)
    target_lengths = None if target_lengths is None else _small(target_lengths)

    @lru_cache(maxsize=1)  # the number of batches is asked for before the first of them
    def plan(epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), WINDOW * batch_size):
            window = order[start : start + WINDOW * batch_size]
            window = window[np.argsort(lengths[window], kind="stable")]
            if target_lengths is not None:
                parts = np.split(window, range(SHELF * batch_size, len(window), SHELF * batch_size))
                window = np.concatenate([part[np.argsort(target_lengths[part], kind="stable")] for part in parts])
            batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        return [batches[number] for number in random.permutation(len(batches))]

    return plan


def _small(values: np.ndarray) -> np.ndarray:
    """The same numbers in their smallest type, which numpy sorts faster."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _repeat(batches: Sequence[np.ndarray], epoch: int) -> Sequence[np.ndarray]:
    return batches


class TrainingBatches:
    """One process's slices of the global batches, as Lightning's train dataloader.

    Every batch carries `size`, what its mean loss is a mean over, and `weight`: the mean loss of the slice times `weight`,
    averaged over processes and micro-batches, is the mean loss of the global batch, also where that does not divide
    evenly. A slice that would be empty repeats an example with weight 0. Iterating goes on from `position`: at the end of an epoch, until `set_epoch`, nothing is left.

    Args:
        fetch: makes a batch from indices.
        plan: the global batches of an epoch.
        rank: number of this process.
        world_size: number of processes.
        accumulation: micro-batches per optimizer step.
        measure: the size of a batch; its number of examples, unless the loss is a mean over tokens.
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
        """The slices of the trainer's process; every epoch the same when it overfits a few batches."""
        if trainer is None:
            return cls(fetch, plan, measure=measure)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            plan = partial(_repeat, plan(0))
        return cls(fetch, plan, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches, measure)

    def __len__(self) -> int:
        """Micro-batches per epoch and process."""
        return self._length

    @property
    def sampler(self) -> "TrainingBatches":
        """Lightning announces a new epoch to a dataloader's sampler: that is this object itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`; within that epoch already, stay where we are."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        global_batches = self._plan(self.epoch)
        slices = self._world_size * self._accumulation
        while self.position < len(global_batches):
            whole = global_batches[self.position]
            for micro in range(self._accumulation):
                part = whole
                if slices > 1:
                    part = np.array_split(whole, slices)[micro * self._world_size + self._rank]
                if micro == self._accumulation - 1:
                    self.position += 1
                batch = self._fetch(part if len(part) else whole[:1])
                batch["size"] = self._measure(part)
                batch["weight"] = batch["size"] * slices / self._measure(whole)
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The whole state: the epoch, and how many of its global batches were handed out completely."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`, whatever number of processes saved it."""
        self.epoch, self.position = state["epoch"], state["position"]


class EvaluationBatches:
    """One process's share of a split: over all processes each example comes exactly once, and all make as many steps.

    Args:
        fetch: makes a batch from indices.
        order: indices of the examples, (examples,), in the order in which to visit them.
        batch_size: examples per process and step, nearly; a split with hardly more examples than processes can need more.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        BadInput: if there are fewer examples than processes.
    """

    def __init__(self, fetch: Fetch, order: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(order) < world_size:
            raise BadInput(
                f"a split of {len(order)} examples cannot be evaluated by {world_size} processes: use fewer devices."
            )
        # nearly equal parts, so that none is empty and sharded models, which step together, never wait for each other
        steps = max(1, min(math.ceil(len(order) / (batch_size * world_size)), len(order) // world_size))
        self._fetch = fetch
        self._parts = np.array_split(order, steps * world_size)[rank::world_size]

    @classmethod
    def for_trainer(
        cls, trainer: Trainer | None, fetch: Fetch, order: np.ndarray, batch_size: int
    ) -> "EvaluationBatches":
        """The share of the trainer's process."""
        if trainer is None:
            return cls(fetch, order, batch_size)
        return cls(fetch, order, batch_size, trainer.global_rank, trainer.world_size)

    def __len__(self) -> int:
        """Batches per process."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._fetch, self._parts)
