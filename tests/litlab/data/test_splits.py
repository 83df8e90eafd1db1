import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litlab.data import splits
from litlab.data.splits import Source, Table, hashes, hold_out, open_source, read, read_splits
from litlab.errors import BadInput
from litlab.files import cache_folder
from project.data.text_classification import TextClassification

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
TEXT, LABEL = {"data.text": "text"}, ("data.label", "label")


def csv_bytes(rows, header=("text", "label"), line_end="\n") -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=line_end).writerows([header, *rows])
    return file.getvalue().encode()


def jsonl_bytes(rows, ensure_ascii=False) -> bytes:
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=ensure_ascii) for text, label in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def parquet_bytes(rows) -> bytes:
    file = io.BytesIO()
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("text", "label"))}
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=3)
    return file.getvalue()


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


def test_integer_labels_stay_integers_where_the_format_has_them(tmp_path: Path) -> None:
    rows = [("a", 1), ("b", 0)]
    assert read_file(tmp_path / "a.jsonl", jsonl_bytes(rows))[1] == rows
    assert read_file(tmp_path / "a.parquet", parquet_bytes(rows))[1] == rows
    assert read_file(tmp_path / "a.csv", csv_bytes(rows))[1] == [("a", "1"), ("b", "0")]


def test_a_text_longer_than_csv_allows_by_default_is_read(tmp_path: Path) -> None:
    rows = [("long " * 50_000, "a")]
    assert read_file(tmp_path / "a.csv", csv_bytes(rows))[1] == rows


def test_the_key_changes_with_content_and_not_with_path_or_time(tmp_path: Path) -> None:
    file, copy = tmp_path / "a.csv", tmp_path / "elsewhere" / "b.csv"
    file.write_bytes(csv_bytes(HARD))
    copy.parent.mkdir()
    shutil.copy(file, copy)
    os.utime(copy, (1, 1))
    assert open_source(str(copy)).key == open_source(str(file)).key
    copy.write_bytes(csv_bytes([*HARD[:-1], ("NULL", "NaM")]))
    assert open_source(str(copy)).key != open_source(str(file)).key


def test_the_key_of_a_folder_tells_its_splits_apart(tmp_path: Path) -> None:
    for name, (first, second) in {"a": (HARD, HARD[:3]), "b": (HARD[:3], HARD), "c": (HARD, HARD[:3])}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_bytes(csv_bytes(first))
        (tmp_path / name / "test.csv").write_bytes(csv_bytes(second))
    keys = [open_source(str(tmp_path / name)).key for name in "abc"]
    assert keys[0] != keys[1] and keys[0] == keys[2]


def splits_of(source: Source, validation=None, test=None, compared=1):
    return read_splits(
        source, lambda table: read(table, TEXT, LABEL), {"validation": validation, "test": test}, compared
    )


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_has_one_file_per_split(name: str, suffix: str, tmp_path: Path) -> None:
    write = {"csv": csv_bytes, "jsonl": jsonl_bytes, "parquet": parquet_bytes}[suffix]
    (tmp_path / f"train.{suffix}").write_bytes(write(HARD[:4]))
    (tmp_path / f"{name}.{suffix}").write_bytes(write(HARD[4:6]))
    (tmp_path / f"test.{suffix}").write_bytes(write(HARD[6:]))
    (tmp_path / "README.md").write_text("not a split")
    splits, meta = splits_of(open_source(str(tmp_path)))
    assert meta == {"examples": {"train": 4, "validation": 2, "test": 2}, "overlap": 0}
    assert list(splits) == ["train", "validation", "test"]
    assert {split: rows.texts[0].to_pylist() for split, rows in splits.items()} == {
        "train": [text for text, _ in HARD[:4]],
        "validation": [text for text, _ in HARD[4:6]],
        "test": [text for text, _ in HARD[6:]],
    }
    assert splits["validation"].place.endswith(f"{name}.{suffix}")


def table_of(rows, place="here"):
    return Table(place, lambda columns: iter(rows))


def source_of(**splits) -> Source:
    return Source("source", "key", lambda: {name: table_of(rows, name) for name, rows in splits.items()})


NUMBERED = [(f"text {number}", f"class {number % 2}") for number in range(100)]


def test_what_a_source_lacks_is_held_out_by_a_tenth() -> None:
    splits, meta = splits_of(source_of(train=NUMBERED))
    assert meta["examples"] == {"train": 80, "validation": 10, "test": 10}
    assert sorted(np.concatenate([rows.ids for rows in splits.values()])) == list(range(100))
    for rows in splits.values():
        assert [f"text {id}" for id in rows.ids] == rows.texts[0].to_pylist()
        assert [f"class {id % 2}" for id in rows.ids] == rows.labels


def test_a_fraction_or_a_name_takes_precedence_over_the_sources_own_split() -> None:
    source = source_of(train=NUMBERED, validation=NUMBERED[:2], extra=NUMBERED[:7], test=NUMBERED[:3])
    assert splits_of(source)[1]["examples"] == {"train": 100, "validation": 2, "test": 3}
    assert splits_of(source, validation=0.2)[1]["examples"] == {"train": 80, "validation": 20, "test": 3}
    assert splits_of(source, validation="extra", test=0.5)[1]["examples"] == {"train": 50, "validation": 7, "test": 50}


def test_texts_of_train_in_other_predefined_splits_are_counted() -> None:
    train = [("One  text", "a"), ("one text", "b"), ("another", "a"), ("third", "a"), ("fourth", "b")]
    source = source_of(train=train, validation=[("ONE TEXT ", "a")], test=[("third", "b"), ("new", "a")])
    assert splits_of(source)[1]["overlap"] == 3
    assert splits_of(source_of(train=train, test=[("new", "a")]), validation=0.5)[1]["overlap"] == 0


def test_pairs_overlap_only_if_both_texts_do() -> None:
    train, test = [("a", "b"), ("a", "c"), ("d", "b")], [("a", "b"), ("A", "e")]
    columns = {"data.text": "text", "data.text_pair": "other"}
    source = source_of(train=train, validation=test, test=test)
    choices = {"validation": None, "test": None}
    assert read_splits(source, lambda table: read(table, columns), choices, compared=2)[1]["overlap"] == 1
    assert read_splits(source, lambda table: read(table, columns), choices, compared=1)[1]["overlap"] == 2


def test_foreign_rows_without_text_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = read(Table("the Hub", lambda columns: iter([("a", 0), (None, 1), ("  ", 1), ("b", 1)]), foreign=True), TEXT)
    assert rows.ids.tolist() == [0, 3] and rows.texts[0].to_pylist() == ["a", "b"]
    assert "the Hub: 2 of 4 rows have no text and are left out" in capsys.readouterr().err


VALUES = st.sampled_from(["a", " b ", "größe", "", " \u2028", None, 5, "\ud800", ["a"]])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, st.sampled_from("xyz")), min_size=1, max_size=25), st.integers(1, 9))
def test_rows_are_checked_alike_wherever_blocks_of_them_end(rows, size) -> None:
    texts, choice = {"data.text": "text", "data.text_pair": "other"}, [("text", 0), ("other", 1)]
    problems = [
        next(filter(None, (splits.problem_of(name, row[place]) for name, place in choice)), None) for row in rows
    ]
    usable = [number for number, problem in enumerate(problems) if not problem]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK", size)
        if usable:
            found = read(Table("there", lambda columns: iter(rows), foreign=True), texts, LABEL)
            assert found.ids.tolist() == usable and found.labels == [rows[number][2] for number in usable]
            assert [column.to_pylist() for column in found.texts] == [[rows[n][p] for n in usable] for p in (0, 1)]
        if first := next((number for number, problem in enumerate(problems, 1) if problem), None):
            with pytest.raises(BadInput) as caught:
                read(table_of(rows), texts, LABEL)
            assert str(caught.value) == f"here, row {first}: {problems[first - 1]}."


def test_of_two_problems_the_first_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 2: column 'text' is empty"):
        read_file(tmp_path / "a.csv", b"text,label\na,x\n,y\nb,x,z\n")
    with pytest.raises(BadInput, match="row 2 has 3 values"):
        read_file(tmp_path / "a.csv", b"text,label\na,x\nb,x,z\n,y\n")


def test_equal_labels_are_one_object(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes([(f"text {number}", f"class {number % 2}") for number in range(50)]))
    labels = read(open_source(str(tmp_path / "a.csv")).open()["train"], TEXT, LABEL).labels
    assert len({id(label) for label in labels}) == 2


WORDS = st.sampled_from(["a b", "A  B", " a b ", "c", "C\n", "straße", "STRASSE", "\u00a0d", "e f g", "h", "漢字"])
TEXTS = st.lists(st.tuples(st.one_of(WORDS, st.text(min_size=1, max_size=5)), st.sampled_from("xyz")), max_size=60)
SHARES = st.lists(st.floats(0.05, 0.45), min_size=1, max_size=2)


def chunked(texts, size=7) -> pyarrow.ChunkedArray:
    parts = [pyarrow.array(texts[start : start + size], pyarrow.string()) for start in range(0, len(texts), size)]
    return pyarrow.chunked_array(parts, pyarrow.string())


def as_compared(text: str) -> str:
    return " ".join(text.casefold().split())


@settings(max_examples=150, deadline=None)
@given(TEXTS, SHARES)
def test_holding_out_partitions_the_rows_and_keeps_equal_texts_together(rows, shares) -> None:
    texts, strata = [text for text, _ in rows], [stratum for _, stratum in rows]
    parts = hold_out([chunked(texts)], strata, shares)
    assert len(parts) == len(shares) + 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows)))
    found = [{as_compared(texts[row]) for row in part} for part in parts]
    assert sum(map(len, found)) == len(set().union(*found))


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.floats(0.05, 0.7), min_size=1, max_size=3), st.booleans())
def test_holding_out_equals_a_loop_over_the_texts(rows, shares, stratified) -> None:
    groups: dict[bytes, list[int]] = {}
    for number, (text, _) in enumerate(rows):
        digest = hashlib.blake2b(as_compared(text).encode(), digest_size=8).digest()
        groups.setdefault(digest, []).append(number)
    by_stratum: dict[str, list[bytes]] = {}
    for digest in sorted(groups):
        stratum = min(rows[number][1] for number in groups[digest]) if stratified else ""
        by_stratum.setdefault(stratum, []).append(digest)
    expected: list[list[int]] = [[] for _ in [*shares, "rest"]]
    for members in by_stratum.values():
        ends = np.round(np.cumsum(shares) * len(members))
        for place, digest in enumerate(members):
            expected[int(np.searchsorted(ends, place, side="right"))] += groups[digest]
    parts = hold_out([chunked([text for text, _ in rows])], [stratum for _, stratum in rows] * stratified, shares)
    assert [part.tolist() for part in parts] == [sorted(part) for part in expected]


@settings(max_examples=150, deadline=None)
@given(TEXTS, SHARES, st.randoms(use_true_random=False))
@example([("c", "x"), ("c", "y"), ("d", "x"), ("h", "y")], [0.4], None)
def test_holding_out_does_not_depend_on_the_order_of_rows(rows, shares, random) -> None:
    order = list(range(len(rows)))[::-1]
    if random:
        random.shuffle(order)
    parts = hold_out([chunked([text for text, _ in rows])], [stratum for _, stratum in rows], shares)
    shuffled = [rows[row] for row in order]
    again = hold_out([chunked([text for text, _ in shuffled])], [stratum for _, stratum in shuffled], shares)
    assert [sorted(order[row] for row in part) for part in again] == [part.tolist() for part in parts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("xyz"), max_size=120), SHARES)
def test_every_stratum_is_divided_alike(strata, shares) -> None:
    parts = hold_out([chunked([f"text {row}" for row in range(len(strata))])], strata, shares)
    for part, share in zip(parts, [*shares, 1 - sum(shares)], strict=True):
        counts = Counter(strata[row] for row in part)
        for stratum, size in Counter(strata).items():
            assert abs(counts[stratum] - share * size) <= 1


def test_holding_out_less_moves_rows_only_towards_train() -> None:
    texts = [chunked([f"text {row}" for row in range(200)])]
    small, large = hold_out(texts, [], [0.1])[0], hold_out(texts, [], [0.3])[0]
    assert len(small) == 20 and len(large) == 60 and set(small) < set(large)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=20))
def test_texts_are_compared_in_one_case_and_with_single_spaces(texts) -> None:
    plain = [as_compared(text) for text in texts]
    assert list(hashes([chunked(texts)])) == list(hashes([chunked(plain)]))
    assert len(set(hashes([chunked(texts)]))) == len(set(plain))


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
    beyond = pyarrow.array(np.array([2**31 - 1], np.int32)).view(pyarrow.date32())  # as days, later than Python's last
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": beyond}), file)
    return file.getvalue()


GOOD = file_bytes("text,label", *(f"words {number},{'ab'[number % 2]}" for number in range(40)))
FEW = jsonl_bytes([("one", "a"), ("two", "b")])
OBJECT = '{"text": "one", "label": "a"}'

# the files of the source, the message; a single file is the source itself, several are a folder
BAD = {
    "a column is missing in csv": (
        {"a.csv": GOOD.replace(b"text,", b"review,")},
        r"a\.csv has no column 'text': it has 'review', 'label'; name yours with --data\.text=\.\.\.",
    ),
    "a column is missing in jsonl": (
        {"a.jsonl": file_bytes('{"text": "one", "stars": 3}')},
        r"a\.jsonl has no column 'label': it has 'text', 'stars'; name yours with --data\.label=\.\.\.",
    ),
    "a column is missing in parquet": (
        {"a.parquet": parquet_bytes(HARD).replace(b"text", b"tent")},
        r"a\.parquet has no column 'text': it has 'tent', 'label'; name yours with --data\.text=\.\.\.",
    ),
    "a column is missing among a thousand, one of them long": (
        {"a.csv": file_bytes(",".join(["x" * 9000, *map(str, range(1000))]), "a")},
        r"a\.csv has no column 'text': it has 'x{49}, '0', '1', .*, '6' and 993 more; name yours with --data\.text=",
    ),
    "a column is missing in one split": (
        {"train.csv": GOOD, "test.csv": b"text,class\na,b\n"},
        r"test\.csv has no column 'label': it has 'text', 'class'; name yours with --data\.label=\.\.\.",
    ),
    "an empty csv": ({"a.csv": b""}, r"a\.csv is empty: a first line with the names of the columns is right"),
    "an empty jsonl": ({"a.jsonl": b""}, r"a\.jsonl has no rows: nothing to learn from"),
    "an empty parquet": ({"a.parquet": b""}, r"a\.parquet is no valid parquet file \(.*0 bytes\): write or download"),
    "only a header": ({"a.csv": b"text,label\r\n"}, r"a\.csv has no rows: nothing to learn from"),
    "a parquet without rows": ({"a.parquet": parquet_bytes([])}, r"a\.parquet has no rows: nothing to learn from"),
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
        r"a\.jsonl, row 2: column 'text' holds 5, which is no text; put it between quotes",
    ),
    "a list instead of a text": (
        {"a.jsonl": file_bytes('{"text": ["one"], "label": "a"}')},
        r"a\.jsonl, row 1: column 'text' holds \['one'\], which is no text; put it between quotes",
    ),
    "half a surrogate pair": (
        {"a.jsonl": file_bytes(OBJECT, r'{"text": "one \ud800", "label": "a"}')},
        r"a\.jsonl, row 2: column 'text' holds half a surrogate pair, which is no character; remove it",
    ),
    "half a surrogate pair in a label": (
        {"a.jsonl": file_bytes(OBJECT, r'{"text": "one", "label": "\udfff"}')},
        r"a\.jsonl, row 2: column 'label' holds half a surrogate pair, which is no character; remove it",
    ),
    "a value too many": (
        {"a.csv": b"text,label\na,x\nHello, world,y\n"},
        r"a\.csv, row 2 has 3 values, the header names 2: put a text with commas .* between double quotes",
    ),
    "a value too few": (
        {"a.csv": b"text,label\na\n"},
        r"a\.csv, row 1 has 1 values, the header names 2: put a text with commas .* between double quotes",
    ),
    "an unclosed quote": (
        {"a.csv": b'text,label\na,x\n"b,y\nc,x\n'},
        r"a\.csv, row 2 is no valid CSV \(unexpected end of data\): a quote .* must end it",
    ),
    "a quote inside a quoted text": (
        {"a.csv": b'text,label\n"say "no"",x\n'},
        r"a\.csv, row 1 is no valid CSV .*: a quote .* one inside is written twice",
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
    "bytes that are no text in parquet": (
        {"a.parquet": undecodable_parquet()},
        r"a\.parquet is no valid parquet file \(.*0xff.*\): write or download it again",
    ),
    "no JSON": (
        {"a.jsonl": file_bytes(OBJECT, "{'text': 'one'}")},
        r"a\.jsonl, row 2 is no JSON \(.*\): one object per line is right",
    ),
    "an object over several lines": (
        {"a.jsonl": json.dumps(json.loads(OBJECT), indent=2).encode()},
        r"a\.jsonl, row 1 is no JSON \(.*\): one object per line is right",
    ),
    "JSON nested beyond reason": ({"a.jsonl": b"[" * 100_000}, r"a\.jsonl, row 1 is no JSON \(.*\): one object per"),
    "a list instead of an object": (
        {"a.jsonl": file_bytes(OBJECT, '["one", "a"]')},
        r'a\.jsonl, row 2 is no object: a line like \{"text": "\.\.\.", \.\.\.\} is right',
    ),
    "a row that lacks a key": (
        {"a.jsonl": file_bytes(OBJECT, OBJECT, '{"text": "one"}')},
        r"a\.jsonl, row 3 lacks 'label': every row needs text, label",
    ),
    "a column twice in csv": ({"a.csv": b"text,label,text\na,b,c\n"}, r"a\.csv has two columns 'text': rename one"),
    "a column twice in parquet": ({"a.parquet": twin_parquet()}, r"a\.parquet has two columns 'text': rename one"),
    "a .txt file": ({"a.txt": GOOD}, r"a\.txt: data\.source takes files that end in \.jsonl, .*, not in '\.txt'"),
    "a .json file": ({"a.json": FEW}, r"a\.json: data\.source takes files that end in \.jsonl, .*, not in '\.json'"),
    "no such file": ({}, r"missing\.csv cannot be read \(No such file or directory\): data\.source must name a file"),
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
        r"a\.parquet is no valid parquet file \(.*\): write or download it again",
    ),
    "a parquet file damaged inside": (
        {"a.parquet": parquet_bytes(HARD * 20)[:40] + bytes(60) + parquet_bytes(HARD * 20)[100:]},
        r"a\.parquet is no valid parquet file \(.*\): write or download it again",
    ),
    "a date that Python does not know": (
        {"a.parquet": parquet_of_dates()},
        r"a\.parquet is no valid parquet file \(days=2147483647; must have .*\): write or download it again",
    ),
    "a parquet file whose damage quotes control characters": (
        {"a.parquet": b"\xef\xbb\xbf" + parquet_bytes(HARD)},
        r"a\.parquet is no valid parquet file \([ -~]*\): write or download it again",
    ),
    "no parquet file": (
        {"a.parquet": GOOD},
        r"a\.parquet is no valid parquet file \(.*\): write or download it again",
    ),
    "too few rows to hold out": (
        {"a.jsonl": FEW},
        r"a\.jsonl has 2 rows: holding out 0\.1 for validation and 0\.1 for test leaves none for validation; give more",
    ),
}


def complaint(source: Path | str, tokenizer: Path, **options) -> str:
    """What the data module says of a source that cannot be used; nothing must be left of the attempt."""
    with pytest.raises(BadInput) as caught:
        TextClassification(str(source), tokenizer=str(tokenizer), **options).prepare_data()
    left = [file for file in (cache_folder() / "tokens").glob("*") if file.suffix != ".lock"]
    assert left == []
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("case", BAD)
def test_a_source_that_cannot_be_used_is_one_sentence(case: str, tmp_path: Path, tiny_bert: Path) -> None:
    files, expected = BAD[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = tmp_path / next(iter(files), "missing.csv") if len(files) < 2 else tmp_path
    message = complaint(source, tiny_bert)
    assert str(tmp_path) in message and re.search(expected, message), message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"validation": "dev"},
            r"^--data\.validation=dev: .* has no such split; it has test, train; a fraction between 0 and 1 is held out",
        ),
        ({"test": "tset"}, r"^--data\.test=tset: .* has no such split; it has test, train; a fraction between 0 and 1"),
        ({"validation": 0.99}, r"train\.csv has 40 rows: holding out 0\.99 for validation leaves none for train; give"),
        ({"validation": 0.01}, r"train\.csv has 40 rows: holding out 0\.01 for validation leaves none for validation"),
        ({"validation": 0.6, "test": 0.6}, r"holding out 0\.6 for validation and 0\.6 for test leaves none for train"),
        ({"text": "review"}, r"has no column 'review': it has 'text', 'label'; name yours with --data\.text=\.\.\."),
        ({"text_pair": "b"}, r"has no column 'b': it has 'text', 'label'; name yours with --data\.text_pair=\.\.\."),
        ({"label": "class"}, r"has no column 'class': it has 'text', 'label'; name yours with --data\.label=\.\.\."),
    ],
)
def test_an_option_that_does_not_fit_the_source_is_one_sentence(options, expected, tmp_path, tiny_bert) -> None:
    (tmp_path / "train.csv").write_bytes(GOOD)
    (tmp_path / "test.csv").write_bytes(GOOD)
    message = complaint(tmp_path, tiny_bert, **options)
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    "name",
    [
        *["./missing", "../missing", "~/missing", "/missing", "two words", "a/b/c", "a.txt?"],
        *["~nobody-here/reviews", "~\0", "a\n.csv", "/" + "a" * 300, "a" * 300 + "/b/c", "\x1b[31m.csv"],
    ],
    ids=ascii,
)
def test_a_name_of_nothing_says_what_a_source_can_be(name: str, tiny_bert: Path) -> None:
    expected = r"there is no such file; a \.jsonl, \.csv or \.parquet file, .* a name of the catalog \(rotten_tomatoes, docstrings, documentation, documentation_gaps, documentation_pairs\) is right"
    assert re.search(expected, complaint(name, tiny_bert))


def test_a_file_name_that_is_too_long_is_one_sentence(tiny_bert: Path) -> None:
    message = complaint("a" * 300 + ".csv", tiny_bert)
    assert re.search(
        r"a\.csv cannot be read \(File name too long\): data\.source must name a file that can\.$", message
    )


def test_the_hub_out_of_reach_is_one_sentence(tiny_bert: Path) -> None:
    expected = r"owner/name@main could not be had .*: HF_HUB_OFFLINE is set .* fetch it once online, or use a name of the catalog \(rotten_tomatoes"
    assert re.search(expected, complaint("owner/name", tiny_bert))
