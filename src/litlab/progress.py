"""A progress bar for loops that may take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], doing: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a progress bar after two seconds; without a terminal, with a line every ten seconds.

    Args:
        items: what to iterate over.
        doing: label of the bar.
        unit: name of one item, in the singular.
        total: number of items; needed only if `items` has no length.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    yield from tqdm(
        items,
        doing,
        total,
        leave=False,
        delay=2,
        mininterval=interval,
        unit=f" {unit}s",
    )
