"""A progress bar for everything that may take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], doing: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Go through `items` behind a progress bar that shows after two seconds; a line every ten where no terminal is.

    Args:
        items: what to go through.
        doing: what the bar says.
        unit: what an item is.
        total: how many there are, where `items` does not know.
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
