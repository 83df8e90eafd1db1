"""Splits: read and check the rows, and hold out missing validation and test splits from train."""

import hashlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import pyarrow
from pydantic import Field

from litlab.data.readers import CHUNK, MissingColumn, Row, Source, Table
from litlab.errors import BadInput
from litlab.progress import progress

ALIASES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}  # common names of the splits
HELD_OUT = 0.1  # fraction of train to hold out for a missing split
SplitChoice = Annotated[float, Field(gt=0, lt=1)] | str | None
"""Name of a split, fraction of train to hold out, or None: the source's own split if it exists, else 0.1 of train."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in memory.

    Args:
        name: name of the split in messages.
        ids: row numbers in the source, from 0, (rows,).
        texts: text columns, each (rows,).
        labels: values of the label column; empty if no label column was read.
        class_names: names of the integer labels, in numeric order, if the source defines them.
    """

    name: str
    ids: np.ndarray
    texts: list[pyarrow.ChunkedArray]
    labels: list[Any]
    class_names: list[str] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Rows":
        """Return the rows at the given positions, which must be in ascending order."""
        labels = [self.labels[row] for row in rows.tolist()] if self.labels else []
        selected = np.zeros(len(self), bool)
        selected[rows] = True
        texts = [column.filter(pyarrow.array(selected)) for column in self.texts]  # unlike take, it keeps chunks
        return Rows(self.name, self.ids[rows], texts, labels, self.class_names)


def read(table: Table, texts: dict[str, str], label: tuple[str, str] | None = None) -> Rows:
    """Read and check the given columns of a split.

    Args:
        table: the split.
        texts: text columns by option, for example {"data.text": "review"}; the message about a missing column names the
            option.
        label: option and column of the labels; None: no labels.

    Raises:
        BadInput: if a column is missing, a text is missing or not a string, or there are no rows.
    """
    options = [*texts.items(), *([label] if label else [])]
    columns = [column for _, column in options]
    ids: list[np.ndarray] = []
    labels: list[Any] = []
    # equal labels share one object: millions of copies would need more memory than the texts
    interned: dict[str, str] = {}
    arrays: list[list[pyarrow.Array]] = [[] for _ in texts]
    number = 0
    # read in blocks, so that few rows are Python objects at the same time; closing() makes the reader close its file
    try:
        with closing(_blocks(progress(table.rows(columns), f"reading {table.name}", unit="row"))) as blocks:
            for block in blocks:
                kept = _usable(block, columns[: len(texts)], table, number)
                ids.append(number + kept)
                number += len(block)
                values = list(zip(*(block[row] for row in kept.tolist()), strict=True)) or [()] * len(columns)
                for parts, column in zip(arrays, values, strict=False):
                    parts.append(pyarrow.array(column, pyarrow.large_string()))
                if label:
                    labels += [
                        interned.setdefault(value, value) if isinstance(value, str) else value for value in values[-1]
                    ]
    except MissingColumn as error:
        existing = error.args[0]
        option, missing = next((option, column) for option, column in options if column not in existing)
        raise BadInput(
            f"{table.name} has no column {missing!r:.50}: it has {quoted(existing) or 'none'}; choose one with "
            f"--{option}=..."
        ) from None
    # report the rows that were skipped
    numbers = np.concatenate([np.zeros(0, np.int64), *ids])
    dropped = number - len(numbers)
    if not len(numbers):
        raise BadInput(
            f"{table.name} has no rows{' with text' if dropped else ''}: nothing to train on or to evaluate."
        )
    if dropped:
        print(f"{table.name}: {dropped} of {number} rows have no text and are skipped", file=sys.stderr)
    chunked = [pyarrow.chunked_array(parts, pyarrow.large_string()) for parts in arrays]
    return Rows(table.name, numbers, chunked, labels, table.class_names.get(columns[-1]))


def quoted(values: Sequence[Any], limit: int = 8) -> str:
    """Format the first values, each shortened, for a message: a file can have many columns and long values."""
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(f"{value!r:.50}" for value in values[:limit]) + rest


def problem_of(column: str, text: Any) -> str | None:
    """Return why a value cannot be used as a text; None if it can."""
    if isinstance(text, str) and text.strip():
        if text.isascii():
            return None
        try:
            text.encode()
            return None
        except UnicodeEncodeError:
            return f"column {column!r} contains an unpaired surrogate, which is not a valid character; remove it"
    if text is None or isinstance(text, str):
        return f"column {column!r} is empty; fill it in or delete the row"
    return f"column {column!r} contains {text!r:.50}, which is not a string; put it in quotes"


def _blocks(rows: Iterator[Row]) -> Generator[list[Row]]:
    """Yield the rows in lists of at most `CHUNK`.

    If reading fails, it first yields the rows before the error, so that the first problem in the file is reported.
    """
    block: list[Row] = []
    try:
        for row in rows:
            block.append(row)
            if len(block) == CHUNK:
                yield block
                block = []
    except BadInput:
        yield block
        raise
    yield block


def _usable(block: list[Row], columns: Sequence[str], table: Table, before: int) -> np.ndarray:
    """Return the positions of the usable rows in a block, (usable rows,).

    Args:
        block: rows.
        columns: text columns, for messages; each row begins with their values.
        table: the split.
        before: number of rows in earlier blocks.

    Raises:
        BadInput: if a row is not usable and the table does not skip such rows.
    """
    try:  # the same check as below on whole columns, ten times as fast
        values = list(zip(*block, strict=True))[: len(columns)]
        if all(all(map(str.strip, column)) and all(map(str.encode, column)) for column in values):
            return np.arange(len(block))
    except (TypeError, UnicodeEncodeError):
        pass
    usable = []
    for position, row in enumerate(block):
        problem = next(filter(None, map(problem_of, columns, row)), None)
        if problem is None:
            usable.append(position)
        elif not table.skip_unusable:
            raise BadInput(f"{table.name}, row {before + position + 1}: {problem}.")
    return np.array(usable, np.int64)


def hold_out(texts: Sequence[pyarrow.ChunkedArray], strata: Sequence[Any], shares: Sequence[float]) -> list[np.ndarray]:
    """Divide rows into parts of the given shares and a rest, stratified; rows with equal texts stay together.

    The part of a row depends on a hash of its text and on its stratum, not on a seed or on the order of rows.

    Args:
        texts: text columns; texts that differ only in case or white space are equal.
        strata: stratum of each row, such as its class; empty: not stratified.
        shares: fraction of the distinct texts for each part.

    Returns:
        The positions of the rows of each part, then those of the rest, each (rows,).
    """
    # group: the index of each row's text among the distinct texts, (rows,)
    digests, group = np.unique(hashes(texts), return_inverse=True)
    numbers = {value: number for number, value in enumerate(sorted(set(strata), key=repr))}
    # rows with equal texts can have different classes: the smallest number is the stratum of the text
    stratum = np.full(len(digests), len(numbers))
    if len(strata):
        np.minimum.at(stratum, group, np.fromiter(map(numbers.__getitem__, strata), np.int64, len(strata)))
    # part: the index of each text's part, (texts,); the last index is the rest
    part = np.full(len(digests), len(shares))
    ordered = np.argsort(stratum, kind="stable")  # by stratum, then by hash, which is a random order of the texts
    for members in np.split(ordered, np.flatnonzero(np.diff(stratum[ordered])) + 1):
        bounds = np.round(np.cumsum([0, *shares]) * len(members)).astype(int)
        for number, (start, end) in enumerate(pairwise(bounds)):
            part[members[start:end]] = number
    return [np.flatnonzero(part[group] == number) for number in range(len(shares) + 1)]


def hashes(texts: Sequence[pyarrow.ChunkedArray]) -> np.ndarray:
    """Return a hash of each row's text, ignoring case and white space, (rows,) uint64; it needs far less memory."""
    parts = [b""]
    for chunks in zip(*(column.chunks for column in texts), strict=True):
        rows = zip(*(chunk.to_pylist() for chunk in chunks), strict=True)
        plain = ("\0".join(" ".join(text.casefold().split()) for text in row).encode() for row in rows)
        parts.append(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in plain))
    return np.frombuffer(b"".join(parts), ">u8").astype(np.uint64)  # big-endian: numbers sort like bytes


def read_splits(
    source: Source,
    read_split: Callable[[Table], Rows],
    choices: dict[str, SplitChoice],
    compared: int,
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Read train, validation and test; splits missing in the source are held out from train.

    Args:
        source: the data set.
        read_split: reads the needed columns of a split.
        choices: choice for validation and for test.
        compared: number of leading text columns that are compared: rows with equal texts are never held out into
            different splits.

    Returns:
        The rows of each split, and facts for `describe`: the number of examples per split, and the number of rows of
        train whose text is also in another split.

    Raises:
        BadInput: if a split does not exist, or if there are too few rows to hold out.
    """
    tables = source.open()
    if "train" not in tables:
        raise BadInput(f"{source.name} has no split train: it has {', '.join(tables)}.")
    # read the splits that the source has, and collect the shares to hold out
    rows: dict[str, Rows] = {}
    shares: dict[str, float] = {}
    for split, choice in choices.items():
        if choice is None:
            choice = next((name for name in ALIASES[split] if name in tables), HELD_OUT)
        if isinstance(choice, str):
            if choice not in tables:
                raise BadInput(
                    f"--data.{split}={choice}: {source.name} has no such split; use {', '.join(tables)}, or a fraction "
                    "between 0 and 1 to hold out from train."
                )
            rows[split] = read_split(tables[choice])
        else:
            shares[split] = choice
    train = read_split(tables["train"])
    # count the rows of train whose text is also in another split of the source
    overlap = 0
    if rows:
        elsewhere = np.concatenate([hashes(others.texts[:compared]) for others in rows.values()])
        overlap = int(np.isin(hashes(train.texts[:compared]), elsewhere).sum())
    # hold out the missing splits
    if shares:
        *held_out, rest = hold_out(train.texts[:compared], train.labels, list(shares.values()))
        for split, part in zip(shares, held_out, strict=True):
            rows[split] = train.take(part)
        size, train = len(train), train.take(rest)
        for split, remaining in [*((split, rows[split]) for split in shares), ("train", train)]:
            if not len(remaining):
                fractions = " and ".join(f"{share:g} for {name}" for name, share in shares.items())
                raise BadInput(
                    f"{train.name} has {size} rows: holding out {fractions} leaves none for {split}; give more rows, "
                    "other fractions, or a file for each split."
                )
    ordered = {"train": train, **{split: rows[split] for split in choices}}
    return ordered, {"examples": {split: len(part) for split, part in ordered.items()}, "overlap": overlap}


def describe(name: str, meta: dict[str, Any]) -> str:
    """Return the lines about the data that are printed at the start of a run.

    Args:
        name: name of the source.
        meta: the facts of `read_splits`; `columns`: for each column the mean number of tokens (`mean`), the number of
            truncated examples (`cut`) and the token limit (`limit`); and optionally `class_names`.
    """
    counts = ", ".join(f"{number:,} {split}" for split, number in meta["examples"].items())
    lines = [f"data       {name}: {counts}"]
    if classes := meta.get("class_names"):
        rest = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
        lines.append(f"classes    {', '.join(classes[:8])}{rest}")
    for column, facts in meta["columns"].items():
        truncated = f"{facts['cut']:,} truncated to" if facts["cut"] else "none above"
        lines.append(f"tokens     {facts['mean']:.1f} per {column}, {truncated} {facts['limit']}")
    if meta["overlap"]:
        lines.append(f"warning    {meta['overlap']:,} rows of train have a text that is also in validation or test")
    return "\n".join(lines)
