"""Splits: rows are read and checked, and held out from train where a source has no validation or test split."""

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
HELD_OUT = 0.1  # fraction of train, where a split is missing
SplitChoice = Annotated[float, Field(gt=0, lt=1)] | str | None
"""A split's name, a fraction to hold out from train, or None for the source's own split or a tenth of train."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split that were read.

    Args:
        name: how messages name the split.
        ids: numbers of the rows in the source, from 0, (rows,).
        texts: the columns of text, each (rows,).
        labels: the values of the label column; empty if none was read.
        class_names: names of integer labels, in their order, if the source knows them.
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
        """The rows at the given positions, which must ascend."""
        labels = [self.labels[row] for row in rows.tolist()] if self.labels else []
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        texts = [column.filter(pyarrow.array(wanted)) for column in self.texts]  # unlike take, it joins no chunks
        return Rows(self.name, self.ids[rows], texts, labels, self.class_names)


def read(table: Table, texts: dict[str, str], label: tuple[str, str] | None = None) -> Rows:
    """Read some columns of a split, and check them.

    Args:
        table: the split.
        texts: option -> column of text, as in {"data.text": "review"}; a message names the option if the column is missing.
        label: option and column of the labels.

    Raises:
        BadInput: if a column is missing, a value is not a text, or there are no rows.
    """
    options = [*texts.items(), *([label] if label else [])]
    columns = [column for _, column in options]
    ids: list[np.ndarray] = []
    labels: list[Any] = []
    same: dict[str, str] = {}  # one object for equal labels: millions of copies would take more memory than the texts
    arrays: list[list[pyarrow.Array]] = [[] for _ in texts]
    number = 0
    # block by block, so that few rows are Python objects at a time; closed at an error, so that the reader closes its file
    try:
        with closing(_blocks(progress(table.rows(columns), f"reading {table.name}", unit="row"))) as blocks:
            for block in blocks:
                kept = _usable(block, columns[: len(texts)], table, number)
                ids.append(number + kept)
                number += len(block)
                values = list(zip(*(block[row] for row in kept.tolist()), strict=True)) or [()] * len(columns)
                for parts, of_column in zip(arrays, values, strict=False):
                    parts.append(pyarrow.array(of_column, pyarrow.large_string()))
                if label:
                    labels += [
                        same.setdefault(value, value) if isinstance(value, str) else value for value in values[-1]
                    ]
    except MissingColumn as error:
        existing = error.args[0]
        option, missing = next((option, column) for option, column in options if column not in existing)
        raise BadInput(
            f"{table.name} has no column {missing!r:.50}: it has {quoted(existing) or 'none'}; name yours with --{option}=..."
        ) from None
    # rows that were skipped
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
    """The first values, shortened, for a message: a file can have many columns and long values."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(f"{value!r:.50}" for value in values[:limit]) + more


def problem_of(column: str, text: Any) -> str | None:
    """Why a value cannot be used as a text; None if it can."""
    if isinstance(text, str) and text.strip():
        if text.isascii():
            return None
        try:
            text.encode()
            return None
        except UnicodeEncodeError:
            return f"column {column!r} contains half a surrogate pair, which is not a character; remove it"
    if text is None or isinstance(text, str):
        return f"column {column!r} is empty; fill it in or delete the row"
    return f"column {column!r} holds {text!r:.50}, which is not a string; put it between quotes"


def _blocks(rows: Iterator[Row]) -> Generator[list[Row]]:
    """The rows in lists of at most `CHUNK`; if reading fails, first those before, so that the first problem is reported."""
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
    """Which rows of a block can be used, by their positions in it, (usable rows,); `before` rows came earlier.

    Raises:
        BadInput: if one cannot, unless the table skips them.
    """
    try:  # the same as below, ten times as fast
        values = list(zip(*block, strict=True))[: len(columns)]
        if all(all(map(str.strip, of_column)) and all(map(str.encode, of_column)) for of_column in values):
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
    """Divide rows into the given shares and the rest; equal texts stay together, and every stratum is divided alike.

    The part of a text depends on a hash of the text and on its stratum, but not on a seed or on the order of rows.

    Args:
        texts: the columns that make a row's text; case and white space are ignored.
        strata: a value for each row, such as its class; or empty.
        shares: fraction of the rows for each part.

    Returns:
        The positions of the rows of each part, then those of the rest, each (rows,).
    """
    # group: the index of each row's text among the different texts, (rows,)
    digests, group = np.unique(hashes(texts), return_inverse=True)
    numbers = {value: number for number, value in enumerate(sorted(set(strata), key=repr))}
    # a text's stratum is the first of its rows' strata, since equal texts can differ in class
    stratum = np.full(len(digests), len(numbers))
    if len(strata):
        np.minimum.at(stratum, group, np.fromiter(map(numbers.__getitem__, strata), np.int64, len(strata)))
    # part: where each text goes, (texts,); those that no share takes stay in the rest
    part = np.full(len(digests), len(shares))
    ordered = np.argsort(stratum, kind="stable")  # by stratum, then by hash
    for members in np.split(ordered, np.flatnonzero(np.diff(stratum[ordered])) + 1):
        bounds = np.round(np.cumsum([0, *shares]) * len(members)).astype(int)
        for number, (start, end) in enumerate(pairwise(bounds)):
            part[members[start:end]] = number
    return [np.flatnonzero(part[group] == number) for number in range(len(shares) + 1)]


def hashes(texts: Sequence[pyarrow.ChunkedArray]) -> np.ndarray:
    """A hash of each row's text in one case and with single spaces, (rows,) uint64; far smaller than the texts."""
    parts = [b""]
    for chunks in zip(*(column.chunks for column in texts), strict=True):
        rows = zip(*(chunk.to_pylist() for chunk in chunks), strict=True)
        plain = ("\0".join(" ".join(text.casefold().split()) for text in row).encode() for row in rows)
        parts.append(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in plain))
    return np.frombuffer(b"".join(parts), ">u8").astype(np.uint64)  # in this byte order they sort as the bytes do


def read_splits(
    source: Source,
    read_split: Callable[[Table], Rows],
    choices: dict[str, SplitChoice],
    compared: int,
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Read train, validation and test, holding out from train what the source does not have.

    Args:
        source: the data set.
        read_split: reads the needed columns of a split.
        choices: what validation and test are.
        compared: how many of the text columns, from the first, must be equal for two rows to be the same text, which is
            never held out into two splits.

    Returns:
        The rows of each split, and facts for `describe`: the number of examples of each, and of texts of train elsewhere.

    Raises:
        BadInput: if a split does not exist, or there are too few rows to hold out.
    """
    tables = source.open()
    if "train" not in tables:
        raise BadInput(f"{source.name} has no split train: it has {', '.join(tables)}.")
    # the splits that the source has, and the shares to hold out
    rows: dict[str, Rows] = {}
    shares: dict[str, float] = {}
    for split, choice in choices.items():
        if choice is None:
            choice = next((name for name in ALIASES[split] if name in tables), HELD_OUT)
        if isinstance(choice, str):
            if choice not in tables:
                raise BadInput(
                    f"--data.{split}={choice}: {source.name} has no such split; it has {', '.join(tables)}; a fraction between 0 "
                    "and 1 is held out from train."
                )
            rows[split] = read_split(tables[choice])
        else:
            shares[split] = choice
    train = read_split(tables["train"])
    # texts of train that the source's other splits have too
    overlap = 0
    if rows:
        elsewhere = np.concatenate([hashes(others.texts[:compared]) for others in rows.values()])
        overlap = int(np.isin(hashes(train.texts[:compared]), elsewhere).sum())
    # hold out the rest
    if shares:
        *held_out, rest = hold_out(train.texts[:compared], train.labels, list(shares.values()))
        for split, part in zip(shares, held_out, strict=True):
            rows[split] = train.take(part)
        size, train = len(train), train.take(rest)
        for split, remaining in [*((split, rows[split]) for split in shares), ("train", train)]:
            if not len(remaining):
                raise BadInput(
                    f"{train.name} has {size} rows: holding out {' and '.join(f'{share:g} for {name}' for name, share in shares.items())} "
                    f"leaves none for {split}; give more rows, other fractions, or a file for each split."
                )
    ordered = {"train": train, **{split: rows[split] for split in choices}}
    return ordered, {"examples": {split: len(part) for split, part in ordered.items()}, "overlap": overlap}


def describe(name: str, meta: dict[str, Any]) -> str:
    """The lines about the data at the start of a run.

    Args:
        name: of the source.
        meta: the facts of `read_splits`; `columns`, column -> mean, cut and limit of its tokens; and perhaps `class_names`.
    """
    counts = ", ".join(f"{number:,} {split}" for split, number in meta["examples"].items())
    lines = [f"data       {name}: {counts}"]
    if classes := meta.get("class_names"):
        more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
        lines.append(f"classes    {', '.join(classes[:8])}{more}")
    for column, facts in meta["columns"].items():
        cut = f"{facts['cut']:,} truncated to" if facts["cut"] else "none above"
        lines.append(f"tokens     {facts['mean']:.1f} per {column}, {cut} {facts['limit']}")
    if meta["overlap"]:
        lines.append(f"warning    {meta['overlap']:,} rows of train have a text that is also in validation or test")
    return "\n".join(lines)
