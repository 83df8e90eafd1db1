import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from text_files import GOOD, HARD, complaint, csv_bytes, jsonl_bytes, parquet_bytes

from litlab.data.readers import MissingColumn, Source, Table, arrow_reader, open_source
from litlab.data.splits import read
from litlab.errors import BadInput

TEXT, LABEL = {"data.text": "text"}, ("data.label", "label")


def read_file(path: Path, content: bytes):
    path.write_bytes(content)
    rows = read(open_source(str(path)).open()["train"], TEXT, LABEL)
    return rows.ids.tolist(), list(zip(rows.texts[0].to_pylist(), rows.labels, strict=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv_bytes(HARD)),
        ("crlf.csv", csv_bytes(HARD, line_end="\r\n")),
        ("bom.csv", b"\xef\xbb\xbf" + csv_bytes(HARD)),
        ("no_end.csv", csv_bytes(HARD)[:-1]),
        ("other_order.csv", csv_bytes([(7, label, text) for text, label in HARD], ("id", "label", "text"))),
        ("a.jsonl", jsonl_bytes(HARD)),
        ("escaped.jsonl", jsonl_bytes(HARD, ensure_ascii=True)),
        ("crlf.jsonl", jsonl_bytes(HARD).replace(b"\n", b"\r\n")),
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl_bytes(HARD)),
        ("no_end.jsonl", jsonl_bytes(HARD)[:-1]),
        ("a.parquet", parquet_bytes(HARD)),
    ],
)
def test_every_format_gives_the_same_rows(name: str, content: bytes, tmp_path: Path) -> None:
    assert read_file(tmp_path / name, content) == (list(range(len(HARD))), HARD)


def test_integer_labels_stay_integers_if_the_format_has_integers(tmp_path: Path) -> None:
    rows = [("a", 1), ("b", 0)]
    assert read_file(tmp_path / "a.jsonl", jsonl_bytes(rows))[1] == rows
    assert read_file(tmp_path / "a.parquet", parquet_bytes(rows))[1] == rows
    assert read_file(tmp_path / "a.csv", csv_bytes(rows))[1] == [("a", "1"), ("b", "0")]


def test_a_text_longer_than_csv_allows_by_default_is_read(tmp_path: Path) -> None:
    rows = [("long " * 50_000, "a")]
    assert read_file(tmp_path / "a.csv", csv_bytes(rows))[1] == rows


def test_reading_a_csv_restores_the_field_size_limit(tmp_path: Path) -> None:
    """The limit is global in the process."""
    (tmp_path / "a.csv").write_bytes(csv_bytes([("long " * 50_000, "a"), ("b", "b"), ("", "c"), ("d", "d")]))
    table, limit = open_source(str(tmp_path / "a.csv")).open()["train"], csv.field_size_limit()
    rows = table.rows(["text"])
    next(rows)
    assert csv.field_size_limit() > limit
    assert len(list(rows)) == 3 and csv.field_size_limit() == limit
    with pytest.raises(BadInput, match="row 3: column 'text' is empty") as kept:
        read(table, TEXT)
    assert csv.field_size_limit() == limit, kept
    with pytest.raises(BadInput, match="has no column 'title'"):
        read(table, {"data.text": "title"})
    assert csv.field_size_limit() == limit
    code = "import csv; before = csv.field_size_limit(); import litlab.data.readers; assert csv.field_size_limit() == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_table_in_memory_is_read_by_column() -> None:
    rows = arrow_reader(pyarrow.table({"text": ["a", "b"], "label": [0, 1], "other": [None, None]}))
    assert list(rows(["label", "text"])) == [(0, "a"), (1, "b")]
    with pytest.raises(MissingColumn) as caught:
        list(rows(["text", "title"]))
    assert caught.value.args == (["text", "label", "other"],)


def test_the_key_changes_with_content_and_not_with_path_or_time(tmp_path: Path) -> None:
    file, copy = tmp_path / "a.csv", tmp_path / "elsewhere" / "b.csv"
    file.write_bytes(csv_bytes(HARD))
    copy.parent.mkdir()
    shutil.copy(file, copy)
    os.utime(copy, (1, 1))
    assert open_source(str(copy)).key == open_source(str(file)).key
    copy.write_bytes(csv_bytes([*HARD[:-1], ("NULL", "NaM")]))
    assert open_source(str(copy)).key != open_source(str(file)).key


def test_the_key_of_a_folder_depends_on_which_split_has_which_content(tmp_path: Path) -> None:
    for name, (first, second) in {"a": (HARD, HARD[:3]), "b": (HARD[:3], HARD), "c": (HARD, HARD[:3])}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_bytes(csv_bytes(first))
        (tmp_path / name / "test.csv").write_bytes(csv_bytes(second))
    keys = [open_source(str(tmp_path / name)).key for name in "abc"]
    assert keys[0] != keys[1] and keys[0] == keys[2]


def test_the_first_of_two_problems_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 2: column 'text' is empty"):
        read_file(tmp_path / "a.csv", b"text,label\na,x\n,y\nb,x,z\n")
    with pytest.raises(BadInput, match="row 2 has 3 values"):
        read_file(tmp_path / "a.csv", b"text,label\na,x\nb,x,z\n,y\n")


def file_bytes(*lines: str, end="\n") -> bytes:
    return "".join(f"{line}{end}" for line in lines).encode("utf-8", "surrogatepass")


def twin_parquet() -> bytes:
    file = io.BytesIO()
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"]), pyarrow.array(["z"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "label", "text"]), file)
    return file.getvalue()


def undecodable_parquet() -> bytes:
    file = io.BytesIO()
    buffers = [None, pyarrow.py_buffer(np.array([0, 1, 2], np.int32)), pyarrow.py_buffer(b"a\xff")]
    columns = [pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers), pyarrow.array(["x", "y"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "label"]), file)
    return file.getvalue()


def parquet_of_dates() -> bytes:
    file = io.BytesIO()
    beyond = pyarrow.array(np.array([2**31 - 1], np.int32)).view(pyarrow.date32())  # in days; too late for Python
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": beyond}), file)
    return file.getvalue()


FEW = jsonl_bytes([("one", "a"), ("two", "b")])
OBJECT = '{"text": "one", "label": "a"}'

# name -> files of the source, message; a single file is the source itself, several files are in a folder
BAD = {
    "a column is missing in csv": (
        {"a.csv": GOOD.replace(b"text,", b"review,")},
        r"a\.csv has no column 'text': it has 'review', 'label'; choose one with --data\.text=\.\.\.",
    ),
    "a column is missing in jsonl": (
        {"a.jsonl": file_bytes('{"text": "one", "stars": 3}')},
        r"a\.jsonl has no column 'label': it has 'text', 'stars'; choose one with --data\.label=\.\.\.",
    ),
    "a column is missing in parquet": (
        {"a.parquet": parquet_bytes(HARD).replace(b"text", b"tent")},
        r"a\.parquet has no column 'text': it has 'tent', 'label'; choose one with --data\.text=\.\.\.",
    ),
    "a column is missing among a thousand, one of them long": (
        {"a.csv": file_bytes(",".join(["x" * 9000, *map(str, range(1000))]), "a")},
        r"a\.csv has no column 'text': it has 'x{49}, '0', '1', .*, '6' and 993 more; choose one with --data\.text=",
    ),
    "a column is missing in one split": (
        {"train.csv": GOOD, "test.csv": b"text,class\na,b\n"},
        r"test\.csv has no column 'label': it has 'text', 'class'; choose one with --data\.label=\.\.\.",
    ),
    "an empty csv": ({"a.csv": b""}, r"a\.csv is empty: the first line must name the columns"),
    "an empty jsonl": ({"a.jsonl": b""}, r"a\.jsonl has no rows: nothing to train on"),
    "an empty parquet": (
        {"a.parquet": b""},
        r"a\.parquet is not a valid parquet file \(.*0 bytes\): write or download",
    ),
    "only a header": ({"a.csv": b"text,label\r\n"}, r"a\.csv has no rows: nothing to train on"),
    "a parquet without rows": ({"a.parquet": parquet_bytes([])}, r"a\.parquet has no rows: nothing to train on"),
    "an empty text in csv": (
        {"a.csv": b"text,label\na,x\n,y\n"},
        r"a\.csv, row 2: column 'text' is empty; fill it in or delete the row",
    ),
    "only white space in csv": (
        {"a.csv": b'text,label\n" \n\t",x\n'},
        r"a\.csv, row 1: column 'text' is empty; fill it in or delete the row",
    ),
    "null instead of a text": (
        {"a.jsonl": file_bytes(OBJECT, '{"text": null, "label": "a"}')},
        r"a\.jsonl, row 2: column 'text' is empty; fill it in or delete the row",
    ),
    "null in parquet": (
        {"a.parquet": parquet_bytes([("a", "x"), (None, "y")])},
        r"a\.parquet, row 2: column 'text' is empty; fill it in or delete the row",
    ),
    "a number instead of a text": (
        {"a.jsonl": file_bytes(OBJECT, '{"text": 5, "label": "a"}')},
        r"a\.jsonl, row 2: column 'text' contains 5, which is not a string; put it in quotes",
    ),
    "a list instead of a text": (
        {"a.jsonl": file_bytes('{"text": ["one"], "label": "a"}')},
        r"a\.jsonl, row 1: column 'text' contains \['one'\], which is not a string; put it in quotes",
    ),
    "an unpaired surrogate": (
        {"a.jsonl": file_bytes(OBJECT, r'{"text": "one \ud800", "label": "a"}')},
        r"a\.jsonl, row 2: column 'text' contains an unpaired surrogate, which is not a valid character; remove it",
    ),
    "a value too many": (
        {"a.csv": b"text,label\na,x\nHello, world,y\n"},
        r"a\.csv, row 2 has 3 values, but the header has 2: put a text with commas .* in double quotes",
    ),
    "a value too few": (
        {"a.csv": b"text,label\na\n"},
        r"a\.csv, row 1 has 1 values, but the header has 2: put a text with commas .* in double quotes",
    ),
    "an unclosed quote": (
        {"a.csv": b'text,label\na,x\n"b,y\nc,x\n'},
        r"a\.csv, row 2 is not valid CSV \(unexpected end of data\): close every double quote",
    ),
    "a quote inside a quoted text": (
        {"a.csv": b'text,label\n"say "no"",x\n'},
        r"a\.csv, row 1 is not valid CSV .*: close .* for a quote inside a text",
    ),
    "an empty line in csv": ({"a.csv": b"text,label\na,x\n\nb,y\n"}, r"a\.csv, row 2: the line is empty; delete it"),
    "an empty line in jsonl": ({"a.jsonl": FEW + b"\n"}, r"a\.jsonl, row 3: the line is empty; delete it"),
    "another encoding": (
        {"a.csv": 'text,label\n"one\ntwo",x\nGröße,y\n'.encode("latin1")},
        r"a\.csv, line 4: byte 0xf6 is not UTF-8; save the file as UTF-8, for instance with iconv",
    ),
    "another encoding behind a byte order mark": (
        {"a.csv": b"\xef\xbb\xbf" + "text,größe\n".encode("latin1")},
        r"a\.csv, line 1: byte 0xf6 is not UTF-8; save the file as UTF-8",
    ),
    "UTF-16": ({"a.jsonl": OBJECT.encode("utf-16")}, r"a\.jsonl, line 1: byte 0xff is not UTF-8; save the file"),
    "bytes that are not UTF-8 in parquet": (
        {"a.parquet": undecodable_parquet()},
        r"a\.parquet is not a valid parquet file \(.*0xff.*\): write or download it again",
    ),
    "not JSON": (
        {"a.jsonl": file_bytes(OBJECT, "{'text': 'one'}")},
        r"a\.jsonl, row 2 is not JSON \(.*\): write one object per line",
    ),
    "an object over several lines": (
        {"a.jsonl": json.dumps(json.loads(OBJECT), indent=2).encode()},
        r"a\.jsonl, row 1 is not JSON \(.*\): write one object per line",
    ),
    "JSON nested beyond reason": ({"a.jsonl": b"[" * 100_000}, r"a\.jsonl, row 1 is not JSON \(.*\): write one"),
    "a list instead of an object": (
        {"a.jsonl": file_bytes(OBJECT, '["one", "a"]')},
        r'a\.jsonl, row 2 is not an object: write lines like \{"text": "\.\.\.", \.\.\.\}',
    ),
    "a row that lacks a key": (
        {"a.jsonl": file_bytes(OBJECT, OBJECT, '{"text": "one"}')},
        r"a\.jsonl, row 3 has no 'label': every row needs text, label",
    ),
    "a column twice in csv": (
        {"a.csv": b"text,label,text\na,b,c\n"},
        r"a\.csv has two columns named 'text': rename one",
    ),
    "a column twice in parquet": (
        {"a.parquet": twin_parquet()},
        r"a\.parquet has two columns named 'text': rename one",
    ),
    "a .txt file": ({"a.txt": GOOD}, r"a\.txt: data\.source takes files that end in \.jsonl, .*, not in '\.txt'"),
    "a .json file": ({"a.json": FEW}, r"a\.json: data\.source takes files that end in \.jsonl, .*, not in '\.json'"),
    "no such file": (
        {},
        r"missing\.csv cannot be read \(No such file or directory\): data\.source must name a readable",
    ),
    "a folder without train": (
        {"test.csv": GOOD, "training.csv": GOOD},
        r" has no train\.jsonl, train\.csv or train\.parquet: data\.source takes a folder with one file per split",
    ),
    "two files of one split": (
        {"train.csv": GOOD, "train.jsonl": FEW},
        r" has both train\.csv and train\.jsonl: keep one of them",
    ),
    "a parquet file that was cut": (
        {"a.parquet": parquet_bytes(HARD)[:-5]},
        r"a\.parquet is not a valid parquet file \(.*\): write or download it again",
    ),
    "a parquet file damaged inside": (
        {"a.parquet": parquet_bytes(HARD * 20)[:40] + bytes(60) + parquet_bytes(HARD * 20)[100:]},
        r"a\.parquet is not a valid parquet file \(.*\): write or download it again",
    ),
    "a date that Python does not know": (
        {"a.parquet": parquet_of_dates()},
        r"a\.parquet is not a valid parquet file \(days=2147483647; must have .*\): write or download it again",
    ),
    "a parquet file whose damage quotes control characters": (
        {"a.parquet": b"\xef\xbb\xbf" + parquet_bytes(HARD)},
        r"a\.parquet is not a valid parquet file \([ -~]*\): write or download it again",
    ),
    "not a parquet file": (
        {"a.parquet": GOOD},
        r"a\.parquet is not a valid parquet file \(.*\): write or download it again",
    ),
    "too few rows to hold out": (
        {"a.jsonl": FEW},
        r"a\.jsonl has 2 rows: holding out 0\.1 for validation and 0\.1 for test leaves none for validation; give more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_source_that_cannot_be_used_gives_one_sentence(case: str, tmp_path: Path) -> None:
    files, expected = BAD[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = tmp_path / next(iter(files), "missing.csv") if len(files) < 2 else tmp_path
    message = complaint(source)
    assert str(tmp_path) in message and re.search(expected, message), message


@pytest.mark.parametrize(
    "name",
    [
        *["./missing", "../missing", "~/missing", "/missing", "two words", "a/b/c", "a.txt?"],
        *["~nobody-here/reviews", "~\0", "a\n.csv", "/" + "a" * 300, "a" * 300 + "/b/c", "\x1b[31m.csv"],
    ],
    ids=ascii,
)
def test_for_an_unknown_name_the_message_says_what_a_source_can_be(name: str) -> None:
    expected = r"there is no such file; use a \.jsonl, \.csv or \.parquet file, a folder with one file per split, {}\.$"
    assert re.search(expected.format("or a Hub id"), complaint(name))
    named = r"a Hub id, or a packaged data set \(reviews, news\)"
    assert re.search(expected.format(named), complaint(name, known=dict.fromkeys(["reviews", "news"], reviews)))


def reviews() -> Source:
    table = pyarrow.table({"text": [f"text {number}" for number in range(30)], "label": ["a", "b", "c"] * 10})
    return Source("reviews", "a key", lambda: {"train": Table("reviews", arrow_reader(table))})


def test_a_named_source_is_opened_by_its_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    assert open_source("reviews", known={"reviews": reviews}).key == "a key"
    assert len(read(open_source("reviews", known={"reviews": reviews}).open()["train"], TEXT, LABEL)) == 30
    assert "reviews has no train.jsonl" in complaint("reviews")
    assert complaint("reviews", known={"reviews": reviews}, label="stars").startswith("reviews has no column 'stars'")


def test_a_file_name_that_is_too_long_gives_one_sentence() -> None:
    message = complaint("a" * 300 + ".csv")
    assert re.search(
        r"a\.csv cannot be read \(File name too long\): data\.source must name a readable file\.$", message
    )


def test_an_unreachable_hub_gives_one_sentence() -> None:
    expected = r"owner/name@main could not be downloaded .*: HF_HUB_OFFLINE is set .* download it once online, or use {}a local file\.$"
    assert re.search(expected.format(""), complaint("owner/name"))
    named = r"a packaged data set \(reviews\) or "
    assert re.search(expected.format(named), complaint("owner/name", known={"reviews": reviews}))
