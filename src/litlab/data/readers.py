"""Readers: rows of text from a local file, a folder with one file per split, or the Hugging Face Hub.

A reader yields the rows of the requested columns. An invalid row raises BadInput with the file and the row number.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from litlab.errors import BadInput
from litlab.files import sha256_of
from litlab.sources import hub

Row = tuple[Any, ...]
Reader = Callable[[Sequence[str]], Iterator[Row]]
"""Yields the values of the given columns, row by row; raises MissingColumn if a column does not exist."""

SUFFIXES = (".jsonl", ".csv", ".parquet")
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")  # control characters and line separators
CHUNK = 20_000  # rows in memory as Python objects at the same time
LONGEST_CSV_FIELD = 2**31 - 1  # characters; some texts exceed Python's default limit of 131,072


class MissingColumn(Exception):
    """A requested column does not exist; the argument is the list of existing columns."""


@dataclass(frozen=True)
class Table:
    """A split whose rows have not been read yet.

    Args:
        name: name of the split in messages.
        rows: reads the rows of the given columns.
        class_names: names of the integer labels of each column, in numeric order, if the source defines them.
        skip_unusable: whether to skip and count rows without text instead of raising an error; true for sources that
            the user cannot edit.
    """

    name: str
    rows: Reader
    class_names: dict[str, list[str]] = field(default_factory=dict)
    skip_unusable: bool = False


@dataclass(frozen=True)
class Source:
    """A data set whose splits have not been opened yet.

    Args:
        name: name that the user gave.
        key: identifies the content, for the cache.
        open: returns the splits by name.
    """

    name: str
    key: str
    open: Callable[[], dict[str, Table]]


def open_source(
    name: str, configuration: str | None = None, known: Mapping[str, Callable[[], Source]] | None = None
) -> Source:
    """Return the data set with this name, without reading its rows.

    Args:
        name: a name in `known`; a .csv, .jsonl or .parquet file; a folder with train and optionally validation and test
            files; or a Hub id, optionally with @revision.
        configuration: configuration of a Hub data set that has several.
        known: packaged data sets: for each name, a function that returns the source.

    Raises:
        BadInput: if there is no such data set.
    """
    known = known or {}
    if name in known:
        return known[name]()
    # a local file or folder; a name with control characters is never used as a path
    if not CONTROL.search(name):
        path = Path(os.path.expanduser(name))  # unlike pathlib, os.path does not raise for long names or unknown users
        if path.suffix in SUFFIXES or os.path.isdir(path):
            return _from_files(path)
        if os.path.exists(path):
            raise BadInput(
                f"{path}: data.source takes files that end in .jsonl, .csv or .parquet, not in {path.suffix!r:.50}."
            )
    # a Hub id
    catalog = f"a packaged data set ({', '.join(known)})" if known else ""
    if not hub.is_id(name) or name.startswith((".", "/", "~")):
        choices = ["a .jsonl, .csv or .parquet file", "a folder with one file per split"]
        choices += ["a Hub id", f"or {catalog}"] if catalog else ["or a Hub id"]
        raise BadInput(f"data.source is {name!r:.200}: there is no such file; use {', '.join(choices)}.")
    return _from_hub(name, configuration, instead=f"use {catalog} or a local file" if catalog else "use a local file")


def _from_files(path: Path) -> Source:
    """Return the files of a folder as splits, or a single file as the split train."""
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
                f"{path} has no train.jsonl, train.csv or train.parquet: data.source takes a folder with one file per "
                "split."
            )
    # the key is a hash of the content, so that moved or copied files reuse the cache
    digest = hashlib.sha256()
    for split, file in files.items():
        try:
            digest.update(f"{split}{file.suffix} {sha256_of(file)}\n".encode())
        except OSError as error:
            raise BadInput(
                f"{file} cannot be read ({error.strerror}): data.source must name a readable file."
            ) from error
    readers = {".jsonl": jsonl_reader, ".csv": csv_reader, ".parquet": parquet_reader}
    tables = {split: Table(str(file), readers[file.suffix](file)) for split, file in files.items()}
    return Source(str(path), digest.hexdigest(), lambda: tables)


def _from_hub(name: str, configuration: str | None, instead: str) -> Source:
    """Return a Hub data set at the current commit of its branch."""
    repository, commit = hub.parse_id(name)
    if not hub.is_commit(commit):
        with hub.access("dataset", name, instead) as commit:
            pass

    def tables() -> dict[str, Table]:
        import datasets  # imported here: it takes a second, and most runs do not need it

        with hub.access("dataset", f"{repository}@{commit}", instead):
            builder = datasets.load_dataset_builder(repository, configuration, revision=commit)
            if hub.is_commit(commit) and hub.is_commit(builder.hash) and builder.hash != commit:
                # without a network, the client accepts any cached revision
                raise BadInput(
                    f"the Hub's cache has {repository} at {builder.hash}, not at {commit}: download it once online."
                )
            builder.download_and_prepare()
            splits = builder.as_dataset()
        return {
            split: Table(
                f"{name}, split {split}",
                _hub_reader(data),
                {column: kind.names for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)},
                skip_unusable=True,
            )
            for split, data in splits.items()
        }

    return Source(name, f"hub {repository} {configuration} {commit}", tables)


def csv_reader(path: Path) -> Reader:
    """Return a reader of a CSV file whose first line names the columns; values are strings."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        limit = csv.field_size_limit(LONGEST_CSV_FIELD)  # this limit is process-wide, so it is restored at the end
        number = 0
        try:
            # the header
            reader = csv.reader(_lines(path), strict=True)
            header = next(reader, [])
            if not header:
                raise BadInput(f"{path} is empty: the first line must name the columns.")
            if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
                raise BadInput(f"{path}: the first line is {header[0]!r:.80}; columns must be separated by commas.")
            _refuse_duplicates(path, header)
            require_columns(columns, header)
            positions = [header.index(column) for column in columns]
            # the rows
            for number, row in enumerate(reader, 1):
                if not row:
                    raise BadInput(f"{path}, row {number}: the line is empty; delete it.")
                if len(row) != len(header):
                    raise BadInput(
                        f"{path}, row {number} has {len(row)} values, but the header has {len(header)}: put a text "
                        'with commas or line breaks in double quotes ("), and write "" for a quote inside it.'
                    )
                yield tuple(row[position] for position in positions)
        except csv.Error as error:
            raise BadInput(
                f'{path}, row {number + 1} is not valid CSV ({error}): close every double quote ("), and write "" for '
                "a quote inside a text."
            ) from error
        finally:
            csv.field_size_limit(limit)

    return rows


def jsonl_reader(path: Path) -> Reader:
    """Return a reader of a file with one JSON object per line; values keep their types."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                raise BadInput(f"{path}, row {number}: the line is empty; delete it.")
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}, row {number} is not JSON ({error}): write one object per line.") from error
            if not isinstance(content, dict):
                raise BadInput(
                    f'{path}, row {number} is not an object: write lines like {{"{columns[0]}": "...", ...}}.'
                )
            if number == 1:
                require_columns(columns, list(content))
            if missing := [column for column in columns if column not in content]:
                raise BadInput(f"{path}, row {number} has no {missing[0]!r}: every row needs {', '.join(columns)}.")
            yield tuple(content[column] for column in columns)

    return rows


def parquet_reader(path: Path) -> Reader:
    """Return a reader of a Parquet file; it reads one chunk of rows at a time."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                _refuse_duplicates(path, names)
                require_columns(columns, names)
                yield from _rows_of(file.iter_batches(CHUNK, columns=list(columns)), columns)
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            # OverflowError: a date outside Python's range; the error text may quote unprintable bytes of the file
            lines = str(error).splitlines() or [type(error).__name__]
            reason = "".join(filter(str.isprintable, lines[0].split(". ")[0]))[:120]
            raise BadInput(f"{path} is not a valid parquet file ({reason}): write or download it again.") from error

    return rows


def arrow_reader(table: pyarrow.Table) -> Reader:
    """Return a reader of a table in memory."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        require_columns(columns, table.column_names)
        yield from _rows_of(table.to_batches(), columns)

    return rows


def _hub_reader(data: Any) -> Reader:
    """Return a reader of one split of a `datasets.Dataset`."""

    def rows(columns: Sequence[str]) -> Iterator[Row]:
        require_columns(columns, data.column_names)
        yield from _rows_of(data.with_format("arrow").iter(CHUNK), columns)

    return rows


def require_columns(columns: Sequence[str], existing: list[str]) -> None:
    """Check that all columns to read exist.

    Raises:
        MissingColumn: if a column does not exist.
    """
    if not set(columns) <= set(existing):
        raise MissingColumn(existing)


def _rows_of(batches: Iterable[Any], columns: Sequence[str]) -> Iterator[Row]:
    for batch in batches:
        yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, including their line ends."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{path}, line {number}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as "
                    "UTF-8, for instance with iconv -f latin1 -t utf-8."
                ) from error


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{path} has two columns named {duplicate!r:.50}: rename one of them.")
