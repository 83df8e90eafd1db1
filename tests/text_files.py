"""Files of texts and labels in all formats that litlab reads, and the error message for sources it cannot use."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from litlab.data.readers import Source, open_source
from litlab.data.splits import read, read_splits
from litlab.data.token_cache import cached
from litlab.errors import BadInput
from litlab.files import cache_folder

HARD = [
    ("plain words", "good"),
    ('he said "no", twice', "bad"),
    ("two\nlines, and a tab\t", "good"),
    ("two lines\r\nof Windows", "bad"),
    ("Größe 漢字 🦊 \u2028 \u00a0", "très bien"),
    ("  spaces around  ", "good"),
    ("'single' \\ backslash \\n", "-"),
    ("NULL", "NaN"),
]


def csv_bytes(rows: Sequence[Sequence[Any]], header: Sequence[str] = ("text", "label"), line_end: str = "\n") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=line_end).writerows([header, *rows])
    return file.getvalue().encode()


def jsonl_bytes(rows: Sequence[Sequence[Any]], ensure_ascii: bool = False) -> bytes:
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=ensure_ascii) for text, label in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def parquet_bytes(rows: Sequence[Sequence[Any]]) -> bytes:
    file = io.BytesIO()
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("text", "label"))}
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=3)
    return file.getvalue()


GOOD = csv_bytes([(f"words {number}", "ab"[number % 2]) for number in range(40)])


def complaint(
    source: Path | str,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str = "label",
    known: dict[str, Callable[[], Source]] | None = None,
    **choices: Any,
) -> str:
    """The error message for a source that cannot be read into the token cache; checks that no file is left behind.

    Args:
        source: the file, folder or name.
        text: column of the text, the value of data.text.
        text_pair: column of a second text, the value of data.text_pair.
        label: column of the label, the value of data.label.
        known: the named sources.
        choices: the values of validation and test.
    """
    texts = {"data.text": text} | ({"data.text_pair": text_pair} if text_pair else {})

    def build(folder: Path) -> dict[str, Any]:
        (folder / "train").mkdir()
        splits = {"validation": None, "test": None, **choices}
        return read_splits(opened, lambda table: read(table, texts, ("data.label", label)), splits, len(texts))[1]

    with pytest.raises(BadInput) as caught:
        opened = open_source(str(source), known=known)
        cached({"source": opened.key}, build)
    assert [file for file in (cache_folder() / "tokens").glob("*") if file.suffix != ".lock"] == []
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message
