import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from text_files import GOOD, HARD, complaint, csv_bytes, jsonl_bytes, parquet_bytes

from litlab.data import splits
from litlab.data.readers import Source, Table, open_source
from litlab.data.splits import hashes, hold_out, read, read_splits
from litlab.errors import BadInput

TEXT, LABEL = {"data.text": "text"}, ("data.label", "label")


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
    assert splits["validation"].name.endswith(f"{name}.{suffix}")


def table_of(rows, name="here"):
    return Table(name, lambda columns: iter(rows))


def source_of(**splits) -> Source:
    return Source("source", "key", lambda: {name: table_of(rows, name) for name, rows in splits.items()})


NUMBERED = [(f"text {number}", f"class {number % 2}") for number in range(100)]


def test_a_tenth_of_train_is_held_out_for_each_missing_split() -> None:
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


def test_a_source_that_skips_rows_without_text_counts_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = read(
        Table("the Hub", lambda columns: iter([("a", 0), (None, 1), ("  ", 1), ("b", 1)]), skip_unusable=True), TEXT
    )
    assert rows.ids.tolist() == [0, 3] and rows.texts[0].to_pylist() == ["a", "b"]
    assert "the Hub: 2 of 4 rows have no text and are skipped" in capsys.readouterr().err


VALUES = st.sampled_from(["a", " b ", "größe", "", " \u2028", None, 5, "\ud800", ["a"]])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, st.sampled_from("xyz")), min_size=1, max_size=25), st.integers(1, 9))
def test_the_check_of_rows_does_not_depend_on_the_size_of_blocks(rows, size) -> None:
    texts, choice = {"data.text": "text", "data.text_pair": "other"}, [("text", 0), ("other", 1)]
    problems = [
        next(filter(None, (splits.problem_of(name, row[place]) for name, place in choice)), None) for row in rows
    ]
    usable = [number for number, problem in enumerate(problems) if not problem]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK", size)
        if usable:
            found = read(Table("there", lambda columns: iter(rows), skip_unusable=True), texts, LABEL)
            assert found.ids.tolist() == usable and found.labels == [rows[number][2] for number in usable]
            assert [column.to_pylist() for column in found.texts] == [[rows[n][p] for n in usable] for p in (0, 1)]
        if first := next((number for number, problem in enumerate(problems, 1) if problem), None):
            with pytest.raises(BadInput) as caught:
                read(table_of(rows), texts, LABEL)
            assert str(caught.value) == f"here, row {first}: {problems[first - 1]}."


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
def test_every_stratum_is_divided_in_the_same_proportions(strata, shares) -> None:
    parts = hold_out([chunked([f"text {row}" for row in range(len(strata))])], strata, shares)
    for part, share in zip(parts, [*shares, 1 - sum(shares)], strict=True):
        counts = Counter(strata[row] for row in part)
        for stratum, size in Counter(strata).items():
            assert abs(counts[stratum] - share * size) <= 1


def test_a_smaller_fraction_only_moves_rows_to_train() -> None:
    texts = [chunked([f"text {row}" for row in range(200)])]
    small, large = hold_out(texts, [], [0.1])[0], hold_out(texts, [], [0.3])[0]
    assert len(small) == 20 and len(large) == 60 and set(small) < set(large)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=20))
def test_texts_are_compared_without_case_and_with_single_spaces(texts) -> None:
    plain = [as_compared(text) for text in texts]
    assert list(hashes([chunked(texts)])) == list(hashes([chunked(plain)]))
    assert len(set(hashes([chunked(texts)]))) == len(set(plain))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"validation": "dev"},
            r"^--data\.validation=dev: .* has no such split; use test, train, or a fraction between 0 and 1 to hold out",
        ),
        ({"test": "tset"}, r"^--data\.test=tset: .* has no such split; use test, train, or a fraction between 0 and 1"),
        ({"validation": 0.99}, r"train\.csv has 40 rows: holding out 0\.99 for validation leaves none for train; give"),
        ({"validation": 0.01}, r"train\.csv has 40 rows: holding out 0\.01 for validation leaves none for validation"),
        ({"validation": 0.6, "test": 0.6}, r"holding out 0\.6 for validation and 0\.6 for test leaves none for train"),
        ({"text": "review"}, r"has no column 'review': it has 'text', 'label'; choose one with --data\.text=\.\.\."),
        ({"text_pair": "b"}, r"has no column 'b': it has 'text', 'label'; choose one with --data\.text_pair=\.\.\."),
        ({"label": "class"}, r"has no column 'class': it has 'text', 'label'; choose one with --data\.label=\.\.\."),
    ],
)
def test_an_option_that_does_not_fit_the_source_gives_one_sentence(options, expected, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(GOOD)
    (tmp_path / "test.csv").write_bytes(GOOD)
    message = complaint(tmp_path, **options)
    assert re.search(expected, message), message
