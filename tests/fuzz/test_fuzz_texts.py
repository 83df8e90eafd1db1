"""Texts and labels from files with any content: readers, checks of both text tasks, names of sources, docstrings."""

import csv
import datetime
import decimal
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import BOM, ROUGH, damaged, filled_texts, texts
from fuzz.outcomes import examples, outcome
from litlab.data import token_cache
from litlab.data.labels import check_labels, encode_labels
from litlab.data.readers import open_source
from litlab.data.splits import Rows, read, read_splits
from litlab.errors import BadInput
from litlab.files import cache_folder
from litlab.sources import hub
from litlab.sources.wheels import Package
from project.data import docstrings, summarization, text_classification
from project.data.summarization import Summarization
from project.data.text_classification import TextClassification

pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("limited_memory")]

TEXT, LABEL = {"data.text": "text"}, ("data.label", "label")
Pairs = list[tuple[Any, Any]]
rows_of_text = st.lists(st.tuples(filled_texts, texts), min_size=1, max_size=8)


def emptied(room: Path) -> Path:
    for path in room.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return room


def rows_in(path: Path) -> Rows:
    return read(open_source(str(path)).open()["train"], TEXT, LABEL)


def pairs_of(rows: Rows) -> Pairs:
    return list(zip(rows.texts[0].to_pylist(), rows.labels, strict=True))


# --- files as programs write them


@st.composite
def csv_files(draw: st.DrawFn, rows: st.SearchStrategy[Pairs] = rows_of_text) -> tuple[Pairs, bytes]:
    """Rows, and a CSV file with these rows, in one of the ways that spreadsheets write it."""
    wanted = draw(rows)
    names = draw(st.permutations(["text", "label", "note"]))
    file = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(names)
    writer.writerows([{"text": text, "label": label, "note": "x"}[name] for name in names] for text, label in wanted)
    content = file.getvalue().encode()
    content = content.removesuffix(end.encode()) if draw(st.booleans()) else content
    return wanted, draw(st.sampled_from([b"", BOM])) + content


@st.composite
def jsonl_files(draw: st.DrawFn, rows: st.SearchStrategy[Pairs] = rows_of_text) -> tuple[Pairs, bytes]:
    wanted, ascii_only = draw(rows), draw(st.booleans())
    lines = (json.dumps({"text": text, "note": 1, "label": label}, ensure_ascii=ascii_only) for text, label in wanted)
    content = draw(st.sampled_from(["\n", "\r\n"])).join(lines).encode()
    return wanted, draw(st.sampled_from([b"", BOM])) + content + draw(st.sampled_from([b"", b"\n"]))


@st.composite
def parquet_files(draw: st.DrawFn, rows: st.SearchStrategy[Pairs] = rows_of_text) -> tuple[Pairs, bytes]:
    wanted = draw(rows)
    columns = {"text": [text for text, _ in wanted], "label": [label for _, label in wanted]}
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table(columns),
        file,
        row_group_size=draw(st.integers(1, 5)),
        compression=draw(st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4"])),
        use_dictionary=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
        write_page_checksum=draw(st.booleans()),
    )
    return wanted, file.getvalue()


FILES = {"csv": csv_files, "jsonl": jsonl_files, "parquet": parquet_files}
SMALL = st.lists(st.tuples(st.sampled_from(["a", "b c", "d,\ne"]), st.sampled_from("xy")), min_size=1, max_size=6)


@pytest.mark.parametrize("suffix", FILES)
def test_rows_are_read_as_they_were_written(suffix: str, room: Path) -> None:
    path = emptied(room) / f"a.{suffix}"

    @examples(500)
    @given(FILES[suffix]())
    def check(file: tuple[Pairs, bytes]) -> None:
        wanted, content = file
        path.write_bytes(content)
        rows, refusal = outcome(lambda: rows_in(path), room, str(path))
        assert refusal == ""
        assert pairs_of(rows) == wanted and rows.ids.tolist() == list(range(len(wanted)))

    check()


@pytest.mark.parametrize("suffix", FILES)
def test_random_bytes(suffix: str, room: Path) -> None:
    path = emptied(room) / f"a.{suffix}"

    @examples(400)
    @given(st.binary(max_size=300), st.sampled_from([b"", BOM, b"text,label\n", b'{"text": "a", "label": ', b"PAR1"]))
    def check(content: bytes, beginning: bytes) -> None:
        path.write_bytes(beginning + content)
        rows, refusal = outcome(lambda: rows_in(path), room, str(path))
        assert refusal or pairs_of(rows) == as_another_reader_sees(path)

    check()


def as_another_reader_sees(path: Path) -> Pairs:
    """The rows as the format's standard library reads them, all at once."""
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True))
    content = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        rows = list(map(json.loads, content.removesuffix("\n").split("\n")))
    else:
        limit = csv.field_size_limit(2**31 - 1)
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
        csv.field_size_limit(limit)
    return [(row["text"], row["label"]) for row in rows]


@pytest.mark.parametrize("suffix", FILES)
def test_damaged_files(suffix: str, room: Path) -> None:
    path = emptied(room) / f"a.{suffix}"

    @examples(1200)
    @given(damaged(FILES[suffix](SMALL | rows_of_text).map(lambda file: file[1])))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        rows, refusal = outcome(lambda: rows_in(path), room, str(path))
        if not refusal:
            assert repr(pairs_of(rows)) == repr(as_another_reader_sees(path))  # repr, because NaN is not equal to NaN
            assert all(isinstance(text, str) and text.strip() for text in rows.texts[0].to_pylist())

    check()


# --- rows of unexpected shapes and types

json_values = st.recursive(
    st.one_of(
        texts, st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["\ud800", 10**4000, "a\udfff"])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
column_names = st.sampled_from(["text", "label", "Text", "text ", "", "a.b", "text\n", "\ud800", "x" * 5000])


def usable(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in text)


@examples(1200)
@given(st.lists(st.tuples(filled_texts | json_values, json_values), min_size=1, max_size=5))
def test_json_values_of_any_type_are_texts_or_refused_with_their_row(room: Path, pairs: Pairs) -> None:
    path = emptied(room) / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))
    rows, refusal = outcome(lambda: rows_in(path), room, str(path))
    wrong = [number for number, (text, _) in enumerate(pairs, 1) if not usable(text)]
    assert f"row {wrong[0]}: " in refusal if wrong else repr(pairs_of(rows)) == repr(pairs)


@examples(700)
@given(st.lists(st.dictionaries(column_names, json_values, max_size=4) | json_values, max_size=4))
def test_json_lines_of_any_shape(room: Path, lines: list[Any]) -> None:
    path = emptied(room) / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, refusal = outcome(lambda: rows_in(path), room, str(path))
    complete = all(isinstance(line, dict) and {"text", "label"} <= set(line) for line in lines)
    assert refusal or (lines and complete and len(rows) == len(lines))


@examples(200)
@given(st.sampled_from(["text", "label"]), st.integers(1, 2500), st.sampled_from(["[]", '{"":}']))
def test_json_nested_to_any_depth(room: Path, column: str, depth: int, brackets: str) -> None:
    path = emptied(room) / "a.jsonl"
    nested = brackets[:-1] * depth + "1" + brackets[-1] * depth
    path.write_text(json.dumps({"text": "a", "label": "a", column: None}).replace("null", nested))
    rows, refusal = outcome(lambda: check_labels(rows_in(path), "label"), room, str(path))
    assert rows is None and "row 1" in refusal


@examples(700)
@given(
    st.lists(column_names | texts, max_size=4).map(lambda names: [name.replace("\ud800", "") for name in names]),
    st.lists(st.lists(texts, max_size=4), max_size=4),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_csv_of_any_shape(room: Path, header: list[str], lines: list[list[str]], comma: str, quoting: Any) -> None:
    path = emptied(room) / "a.csv"
    file = io.StringIO(newline="")
    try:
        csv.writer(file, delimiter=comma, quoting=quoting).writerows([header, *lines])
    except csv.Error:  # csv cannot write a row with one empty value without quotes
        file.write("\n")
    path.write_bytes(file.getvalue().encode())
    rows, refusal = outcome(lambda: rows_in(path), room, str(path))
    if not refusal:
        assert header.count("text") == header.count("label") == 1
        assert len(rows) == len(lines) and all(len(line) == len(header) for line in lines)


ARROW_TYPES = [
    pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.int8(),
    pyarrow.uint64(), pyarrow.bool_(), pyarrow.float16(), pyarrow.float64(), pyarrow.null(), pyarrow.date32(),
    pyarrow.date64(), pyarrow.time64("ns"), pyarrow.timestamp("ns"), pyarrow.timestamp("us", tz="Nowhere/Town"),
    pyarrow.duration("ns"), pyarrow.decimal128(38, 5), pyarrow.list_(pyarrow.string()),
    pyarrow.struct([("text", pyarrow.string()), ("label", pyarrow.int64())]),
    pyarrow.map_(pyarrow.string(), pyarrow.int64()), pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
]  # fmt: skip


def arrow_array(kind: pyarrow.DataType, size: int) -> pyarrow.Array:
    """An array of any type; dates and times have values that are too large for Python's datetime."""
    if pyarrow.types.is_nested(kind):
        inner = {"text": "a", "label": 1} if pyarrow.types.is_struct(kind) else [("a", 1)]
        return pyarrow.array([inner if not pyarrow.types.is_list(kind) else ["a"]] * size, kind)
    if pyarrow.types.is_temporal(kind):
        numbers = np.full(size, 2**31 - 1 if kind.bit_width == 32 else 2**62, f"int{kind.bit_width}")
        return pyarrow.array(numbers).view(kind)
    values = {"bool": True, "halffloat": np.float16(1), "double": 1.5, "null": None, "binary": b"\xff"}
    if str(kind) in ("int8", "uint64"):
        return pyarrow.array([1] * size, kind)
    if pyarrow.types.is_decimal(kind):
        return pyarrow.array([decimal.Decimal("1.5")] * size, kind)
    return pyarrow.array([values.get(str(kind), "a text")] * size, kind)


@examples(600)
@given(
    st.lists(st.tuples(column_names, st.sampled_from(ARROW_TYPES)), max_size=4),
    st.integers(0, 3),
    st.sampled_from(["text", "a.b", "text.text", "label", "\x00"]),
)
def test_parquet_columns_of_any_type(room: Path, columns: list[tuple[str, Any]], size: int, text: str) -> None:
    path = emptied(room) / "a.parquet"
    columns = [(name.replace("\ud800", "half"), kind) for name, kind in columns]
    table = pyarrow.Table.from_arrays([arrow_array(kind, size) for _, kind in columns], [name for name, _ in columns])
    pyarrow.parquet.write_table(table, path)
    table_of_texts = open_source(str(path)).open()["train"]
    rows, refusal = outcome(lambda: read(table_of_texts, {"data.text": text}, LABEL), room, str(path))
    if not refusal:
        kinds = dict(columns)
        assert "string" in str(kinds[text]) and "label" in kinds
        assert rows.texts[0].to_pylist() == ["a text"] * size


# --- folders, splits and classes

SPLIT_NAMES = ["train", "validation", "valid", "val", "dev", "test", "extra", "Train", "train.old", ""]
choices = st.one_of(st.none(), st.sampled_from([*SPLIT_NAMES, "tset"]), st.floats(1e-9, 1, exclude_max=True))
labelled = st.lists(st.tuples(filled_texts, st.sampled_from(["x", "y", "z", "1"])), max_size=30)


@examples(700)
@given(st.data())
def test_folders_of_splits(room: Path, data: st.DataObject) -> None:
    folder = emptied(room) / "source"
    folder.mkdir()
    written = {}
    names = data.draw(st.lists(st.sampled_from(SPLIT_NAMES), min_size=1, max_size=4, unique=True))
    for name in ["train", *names] if data.draw(st.booleans()) else names:
        suffix = data.draw(st.sampled_from([*FILES, "txt"]))
        pairs, content = data.draw((FILES.get(suffix) or csv_files)(labelled))
        (folder / f"{name}.{suffix}").write_bytes(content)
        written[str(folder / f"{name}.{suffix}")] = pairs
    validation, test = data.draw(choices), data.draw(choices)

    def use() -> tuple[dict[str, Rows], Any, list[str], dict[str, np.ndarray]]:
        splits, meta = read_splits(
            open_source(str(folder)),
            lambda table: check_labels(read(table, TEXT, LABEL), "label"),
            {"validation": validation, "test": test},
            compared=1,
        )
        return splits, meta, *encode_labels(splits, "label")

    result, refusal = outcome(use, room, str(folder))
    if refusal:
        return
    splits, meta, classes, targets = result
    assert list(splits) == ["train", "validation", "test"] == list(targets)
    for name, rows in splits.items():
        pairs = written[rows.name]
        assert meta["examples"][name] == len(rows) > 0
        assert pairs_of(rows) == [pairs[row] for row in rows.ids]
        assert [classes[number] for number in targets[name]] == rows.labels
    held_out = [name for name in ("validation", "test") if splits[name].name == splits["train"].name]
    if held_out and not (validation == "train" or test == "train"):
        found = [
            {" ".join(pair[0].casefold().split()) for pair in pairs_of(splits[name])} for name in ("train", *held_out)
        ]
        assert sum(map(len, found)) == len(set().union(*found)), "a text is in more than one split"


labels = st.one_of(
    st.sampled_from(["a", "b", "a", 0, 1, 0, 1, -1, None, True]),
    st.sampled_from(["\ud800", "9" * 5000, "-" + "1" * 4400, "x" * 3000, "٣", "²", "+1", "01", "1", " ", ""]),
    st.sampled_from([1.0, float("nan"), decimal.Decimal(1), datetime.date(2026, 1, 1), b"a", 10**4000, 2**64, {}, [1]]),
    st.sampled_from([0, 1]),
    texts,
)
several_labels = st.one_of(
    st.lists(labels, min_size=1, max_size=8),
    st.lists(st.sampled_from([0, 1, 2, -1, None]), min_size=1, max_size=8),
    st.lists(st.sampled_from(["a", "b", "10", "9", *ROUGH]), min_size=1, max_size=40),
    st.lists(st.integers(0, 10**9), min_size=20, max_size=40),
)


@examples(1500)
@given(st.tuples(several_labels, several_labels), st.sampled_from([None, None, ["no", "yes"], ["one"], []]))
def test_labels_of_any_type(room: Path, lists: tuple[list, list], class_names: list[str] | None) -> None:
    def split(place: str, values: list[Any]) -> Rows:
        column = pyarrow.chunked_array([[f"text {row}" for row in range(len(values))]])
        return Rows(place, np.arange(len(values)), [column], list(values), class_names)

    def use() -> tuple[dict[str, Rows], list[str], dict[str, np.ndarray]]:
        splits = {
            name: check_labels(split(f"here, {name}", values), "label")
            for name, values in zip(("train", "test"), lists, strict=True)
        }
        return splits, *encode_labels(splits, "label")

    result, refusal = outcome(use, emptied(room), "here")
    if refusal:
        return
    splits, names, targets = result
    assert len(set(names)) == len(names) >= 2
    for rows, values in zip(splits.values(), lists, strict=True):
        kept = [label for label in values if not (class_names and label in (None, -1))]
        assert rows.labels == kept
    for name, rows in splits.items():
        numbered = all(isinstance(label, int) for label in rows.labels) and bool(class_names)
        expected = rows.labels if numbered else [names.index(str(label)) for label in rows.labels]
        assert targets[name].tolist() == expected


# --- names of sources

SOURCES = [
    "~", "~nobody-here/a", "~nobody-here/a.csv", "a" * 300, "a" * 300 + ".csv", "/" * 5000, "..", "/", "/dev/null", "",
]  # fmt: skip
ids = st.sampled_from(["owner/name", "a", ".a/b", "a/b/c", "-/-"])
revisions = st.sampled_from(["@", "@main", "@" + "0" * 40, "@\n"])
names_of_sources = st.one_of(
    st.text(st.sampled_from("aZ09._-/~@\0\n é漢\\:%"), max_size=12),
    st.sampled_from(SOURCES),
    st.tuples(ids, revisions).map("".join),
    texts,
)


@examples(1500)
@given(names_of_sources)
def test_names_of_sources(room: Path, name: str) -> None:
    known = {**text_classification.KNOWN, **summarization.KNOWN}
    source, _ = outcome(lambda: open_source(name, known=known), emptied(room))
    if source and not os.path.exists(os.path.expanduser(name)) and name not in known:
        assert hub.is_id(name)
        repository, revision = hub.parse_id(name)
        assert hub.is_id(repository) and "@" not in repository
        assert name in (f"{repository}@{revision}", repository, f"{repository}@")
        assert f"{repository} None {revision or 'main'}" in source.key


# --- both tasks as a whole, down to the tokens on disk

ROWS = 12
many_rows = st.lists(st.tuples(filled_texts, st.sampled_from("xy")), min_size=ROWS, max_size=30)


def cached_folders() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "tokens").glob("*") if path.suffix != ".lock")


@examples(250)
@given(
    file=csv_files(many_rows)
    | csv_files(many_rows).flatmap(lambda file: damaged(st.just(file[1])).map(lambda content: (None, content)))
)
def test_classification_of_any_texts(room: Path, tiny_bert: Path, file: tuple[Pairs | None, bytes]) -> None:
    path = emptied(room) / "a.csv"
    path.write_bytes(file[1])
    before = cached_folders()
    data = TextClassification(str(path), tokenizer=str(tiny_bert), validation=0.3, test=0.3, evaluation_batch_size=4)
    _, refusal = outcome(data.prepare_data, room, str(path))
    if refusal:
        assert cached_folders() == before
        return
    pairs = file[0] or as_another_reader_sees(path)
    for batch in [*data.val_dataloader(), *data.test_dataloader()]:
        for row, source, target in zip(batch["id"], batch["source"], batch["target"], strict=True):
            assert (source, data.class_names[target]) == pairs[row]


@examples(250)
@given(
    pairs=st.lists(st.tuples(filled_texts, texts), min_size=ROWS, max_size=30),
    prefix=texts,
    lengths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_summarization_of_any_texts(room: Path, tiny_t5: Path, pairs: Pairs, prefix: str, lengths: tuple) -> None:
    path = emptied(room) / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "summary": summary}) + "\n" for text, summary in pairs))
    data = Summarization(
        str(path), tokenizer=str(tiny_t5), prefix=prefix, validation=0.3, test=0.3, max_length=lengths[0] + 2,
        max_summary_length=lengths[1], evaluation_batch_size=4,
    )  # fmt: skip
    _, refusal = outcome(data.prepare_data, room, str(path))
    wrong = [row for row, (_, summary) in enumerate(pairs, 1) if not summary.strip()]
    if refusal:
        assert f"row {wrong[0]}: column 'summary' is empty" in refusal if wrong else "leaves none for" in refusal
        return
    assert not wrong
    for batch in [*data.val_dataloader(), *data.test_dataloader()]:
        assert list(zip(batch["source"], batch["target"], strict=True)) == [pairs[row] for row in batch["id"]]
        assert batch["input_ids"].shape[1] <= lengths[0] + 2 and batch["labels"].shape[1] <= lengths[1]


# --- the token cache


def build(folder: Path) -> dict[str, Any]:
    (folder / "train").mkdir()
    (folder / "train" / "id.int64").write_bytes(bytes(80))
    return {"examples": {"train": 10}, "class_names": ["good", "bad"]}


@examples(800)
@given(st.data())
def test_a_damaged_token_cache_is_rebuilt(data: st.DataObject) -> None:
    folder, meta = token_cache.cached({"what": "fuzz"}, build)
    file = folder / data.draw(st.sampled_from(["meta.json", "meta.json", "train/id.int64"]))
    content = file.read_bytes()
    if file.name == "meta.json":
        facts = st.dictionaries(st.sampled_from(["files", "examples", "class_names", *ROUGH]), json_values, max_size=3)
        edited = (facts | json_values).map(lambda value: json.dumps(value).encode())
        changed = facts.map(lambda values: json.dumps(json.loads(content) | values).encode())
        file.write_bytes(data.draw(damaged(st.just(content)) | edited | changed))
    else:
        file.write_bytes(data.draw(damaged(st.just(content)).filter(lambda damage: len(damage) != len(content))))
    whole = file.read_bytes() == content
    (again, found), _ = outcome(lambda: token_cache.cached({"what": "fuzz"}, build), folder.parent)
    assert (again, found) == (folder, meta), "wrong facts" if whole else "the damage was not detected"
    assert (folder / "train" / "id.int64").stat().st_size == 80


# --- docstrings

CODE = [
    '"""', "'''", '"', "'", "#", "\n", "\n    ", "\n\t", "    ", "def f():", "class C:", "async def f():", "lambda: ",
    "(", ")", "[", "{", "}", "@x", "\\", "\\\n", "\0", "\f", "# coding: latin-1\n", "# coding: nowhere\n", "\ufeff",
    "f'{", "0" * 5000, "(" * 300, "-" * 5000, "not " * 3000, "if x:\n" * 50, "x = ", "await ", "yield",
    "match x:\n case [*a, {}]:", "é", "\ud7ff", ";", "None", "...", ":=", "*", "**", "1_", "0x", "1e", "\r",
    "class C:\n  def f(self):\n    '''One line.\n\n    More.'''\n",
]  # fmt: skip
PROSE = [
    "The screen keeps one buffer for every window and copies the visible part of it whenever it moves, so that",
    "Copy the visible part.", "\n\n", "\n", "  ", ". ", "e.g. ", "A. ", "`", "``", "*", "**", "_", "|", "[", "](",
    ")", "<", ">", "L{", "}", "~a.b", ":class:", ":math:`a`", ">>> ", "-----", "Args:", ".. note::", "1. ", "$", "\\",
    "\\(", "é", "\u2019", "http://a", "deprecated", "\x1c", "\0", "and", "[`", "`]", "[#a]_", "`_", " <a>`_", "_a",
    "a_", "|a", "." * 30, "(((", "\u2028", "B", "1", ", ", "! ", '"',
]  # fmt: skip
OWN_CODE = [Path(module.__file__).read_bytes() for module in (docstrings, hub)]


@examples(700)
@given(
    st.one_of(
        st.lists(st.sampled_from(CODE), max_size=25).map(lambda parts: "".join(parts).encode()),
        damaged(st.sampled_from(OWN_CODE)),
        damaged(st.lists(st.sampled_from(PROSE), max_size=60).map(lambda parts: f'"""{"".join(parts)}"""\n'.encode())),
        st.binary(max_size=100),
    )
)
def test_docstrings_of_any_code(room: Path, code: bytes) -> None:
    wheel = cache_folder() / "packages" / "any-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("any/code.py", code)
    package = Package("any", "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "PACKAGES", {"train": [package], "validation": [], "test": []})
        table, refusal = outcome(docstrings.table, emptied(room))
    assert refusal == ""
    for row in table.to_pylist():
        assert row["name"].startswith("any.code") and row["target"].endswith(".") and len(row["source"].split()) >= 30


@examples(1500)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(PROSE),
            st.tuples(st.sampled_from(PROSE[3:]), st.integers(2, 2000)).map(lambda run: run[0] * run[1]),
            texts,
        ),
        max_size=30,
    )
)
def test_pairs_of_any_docstring(room: Path, parts: list[str]) -> None:
    def use() -> tuple[str, str]:
        pair = docstrings.pair_of(" ".join(parts))
        if pair is None:
            raise BadInput("the docstring gives no pair.")
        return pair

    pair, _ = outcome(use, emptied(room))
    if pair:
        source, target = pair
        assert len(source.split()) >= 30 and 3 <= len(target.split()) <= 20 and (source + target).isascii()
