import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from litlab.data import token_cache
from litlab.data.batches import Split
from litlab.data.token_cache import (
    SplitWriter,
    cached,
    fingerprint,
    open_tokenizer,
    tokenize,
    train_tokenizer,
)
from litlab.errors import BadInput
from litlab.files import cache_folder
from litlab.sources import pretrained

FORK = multiprocessing.get_context("fork")


def column(texts) -> pyarrow.ChunkedArray:
    return pyarrow.chunked_array([texts], pyarrow.string())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=30), size=st.integers(1, 7))
def test_texts_on_disk_are_the_same_texts(texts, size, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("texts") / "split"
    if not any(texts):
        texts.append("a")  # an empty file cannot be mapped; the reader refuses empty texts
    parts = [pyarrow.array(texts[start : start + size]) for start in range(0, len(texts), size)]
    SplitWriter(folder).texts("target", [pyarrow.chunked_array(parts)])
    read = Split(folder).ragged("target")
    assert read.texts(np.arange(len(texts))) == texts
    assert read.texts(np.array([len(texts) - 1, 0])) == [texts[-1], texts[0]]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "float32"])
def test_columns_on_disk_keep_their_type_and_values(dtype: str, tmp_path: Path) -> None:
    values = np.arange(5).astype(dtype)
    SplitWriter(tmp_path / "split").array("id", values)
    split = Split(tmp_path / "split")
    assert "id" in split and "text" not in split
    assert split.array("id").dtype == values.dtype and split.array("id").tolist() == values.tolist()


def test_columns_can_be_read_after_their_files_are_deleted(tmp_path: Path) -> None:
    SplitWriter(tmp_path / "split").array("id", np.arange(5))
    split = Split(tmp_path / "split")
    shutil.rmtree(tmp_path / "split")
    assert split.array("id").tolist() == list(range(5))


# --- the cache


def build(folder: Path):
    (folder / "train").mkdir()
    (folder / "train" / "id.int64").write_bytes(bytes(80))
    return {"examples": {"train": 10}, "class_names": ["schön", "漢字"]}


def never(folder: Path):
    raise AssertionError("built again")


def left_over() -> list[str]:
    return sorted(file.name for file in (cache_folder() / "tokens").glob("*") if file.suffix != ".lock")


def test_a_second_call_finds_the_cache_of_the_first() -> None:
    folder, meta = cached({"what": "test"}, build)
    assert cached({"what": "test"}, never) == (folder, meta)
    assert meta["class_names"] == ["schön", "漢字"] and meta["what"] == "test" and meta["key"] == folder.name


def test_the_metadata_file_is_ascii_and_can_be_read_under_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = cached({"what": "test"}, build)
    (folder / "meta.json").read_bytes().decode("ascii")


INGREDIENTS = {
    "what": "classification",
    "source": "0123",
    "column_names": ["text", None, "label"],
    "splits": [None, 0.1],
    "tokenizer": "4567",
    "max_length": 64,
}


@pytest.mark.parametrize(
    "change",
    [
        {"what": "summarization"},
        {"source": "0124"},
        {"column_names": ["text", "label", None]},
        {"splits": [0.1, None]},
        {"splits": [None, "0.1"]},
        {"tokenizer": "4568"},
        {"max_length": 63},
        {"prefix": ""},
    ],
    ids=str,
)
def test_each_changed_ingredient_gives_another_folder(change) -> None:
    assert cached(INGREDIENTS, build)[0] != cached({**INGREDIENTS, **change}, build)[0]


@pytest.mark.parametrize("name", ["FORMAT", "version"])
def test_a_change_of_the_format_or_of_the_library_gives_another_folder(name, monkeypatch) -> None:
    folder, _ = cached(INGREDIENTS, build)
    monkeypatch.setattr(token_cache, name, 1000 if name == "FORMAT" else lambda package: "1000")
    assert cached(INGREDIENTS, build)[0] != folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train" / "id.int64").write_bytes(bytes(79)),
        lambda folder: (folder / "train" / "id.int64").write_bytes(b""),
        lambda folder: (folder / "train" / "id.int64").unlink(),
        lambda folder: shutil.rmtree(folder / "train"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_bytes((folder / "meta.json").read_bytes()[:-9]),
        lambda folder: (folder / "meta.json").write_bytes(b""),
        lambda folder: (folder / "meta.json").write_bytes(bytes(100)),
        lambda folder: (folder / "meta.json").write_text("{}"),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "meta.json").write_text('{"files": []}'),
        lambda folder: (folder / "meta.json").write_text("[" * 100_000),
        lambda folder: (folder / "meta.json").write_text((folder / "meta.json").read_text().replace("sch", "Sch")),
        lambda folder: (folder / "meta.sha256").unlink(),
    ],
    ids=[
        *["cut", "emptied", "deleted", "split gone", "no meta", "meta cut", "meta empty", "meta zeros", "{}", "[]"],
        *["files no mapping", "meta nested", "meta changed", "no sum"],
    ],
)
def test_a_damaged_cache_is_rebuilt(damage, capsys: pytest.CaptureFixture[str]) -> None:
    folder, meta = cached({}, build)
    damage(folder)
    assert cached({}, build) == (folder, meta)
    assert f"{folder} is damaged: building it again" in capsys.readouterr().err
    assert (folder / "train" / "id.int64").stat().st_size == 80
    cached({}, never)


def test_a_build_that_raises_leaves_no_files() -> None:
    def fail(folder: Path):
        build(folder)
        raise BadInput("row 7 is bad.")

    with pytest.raises(BadInput, match=r"^row 7 is bad\.$"):
        cached({}, fail)
    assert left_over() == []
    cached({}, build)


def in_children(count: int, work) -> list[int]:
    """Exit statuses of processes that do the same work at the same time."""
    children = [FORK.Process(target=work) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=30)
    return [child.exitcode for child in children]


def test_a_killed_build_is_repeated_and_leaves_no_files() -> None:
    def killed(folder: Path):
        build(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(1, lambda: cached({}, killed)) == [-signal.SIGKILL]
    folder, meta = cached({}, build)
    assert meta["examples"] == {"train": 10}
    assert (folder / "train" / "id.int64").stat().st_size == 80
    assert left_over() == [folder.name]


@pytest.mark.parametrize("before", ["nothing", "a damaged cache"])
def test_concurrent_processes_build_the_same_cache_once(before: str, tmp_path: Path) -> None:
    if before != "nothing":
        folder, _ = cached({}, build)
        (folder / "train" / "id.int64").unlink()
    log, start = tmp_path / "log", FORK.Barrier(4)

    def slow(folder: Path):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return build(folder)

    def work() -> None:
        start.wait(timeout=20)
        folder, meta = cached({}, slow)
        assert meta["examples"] == {"train": 10}
        assert (folder / "train" / "id.int64").stat().st_size == 80

    assert in_children(4, work) == [0, 0, 0, 0]
    assert log.read_text() == "built\n"
    assert len(left_over()) == 1


# --- a trained tokenizer

CORPUS = ["the film is good", "the films are not good at all", "größer als die Größe", "漢字 漢字", "a b c d e f g"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    return train_tokenizer([column(CORPUS)], 300, tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
@example(text="do n't stop . , ! ?")
@example(text="two\r\n lines\t\x00\ufeff\u2028")
@example(text="e\u0301 ﬁ Å K")  # normalizing would change them
@example(text="<pad>one <s>word</s> and <unk> <extra_id_0>")
def test_decoding_returns_the_encoded_text(text: str, trained) -> None:
    ids = trained(text)["input_ids"]
    assert ids[-1] == trained.eos_token_id == 1 and trained.pad_token_id == 0
    assert all(0 <= id < len(trained) for id in ids)
    assert trained.decode(ids, skip_special_tokens=True).removeprefix(" ") == text.removeprefix(" ")


def test_a_saved_tokenizer_is_the_trained_one(tmp_path: Path) -> None:
    made = train_tokenizer([column(CORPUS[:2]), column(CORPUS[2:])], 300, tmp_path)
    opened = open_tokenizer(tmp_path)
    assert fingerprint(opened) == fingerprint(made) and opened.eos_token_id == 1 and opened.pad_token_id == 0
    assert len(made) <= 300
    assert fingerprint(train_tokenizer([column(CORPUS)], 299, tmp_path)) != fingerprint(made)


TRAIN = """
import json, pathlib, sys, pyarrow
from litlab.data.token_cache import train_tokenizer
folder = pathlib.Path(sys.argv[1])
train_tokenizer([pyarrow.chunked_array([json.loads((folder / "texts.json").read_text())])], 600, folder)
"""


def test_training_in_another_process_gives_the_same_tokens(tmp_path: Path) -> None:
    texts = [f"word{n % 97} other{n % 89} more{n % 83}" for n in range(2000)]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    train_tokenizer([column(texts)], 600, here)
    (there / "texts.json").write_text(json.dumps(texts))
    environment = {**os.environ, "PYTHONHASHSEED": "5", "RAYON_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", TRAIN, str(there)], env=environment, check=True, timeout=120)
    assert (here / "tokenizer.json").read_bytes() == (there / "tokenizer.json").read_bytes()


def changed(folder: Path, to: Path, **change) -> Path:
    shutil.copytree(folder, to)
    file = to / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return to


def test_the_fingerprint_changes_with_the_tokens_only(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    before = fingerprint(tokenizer)
    tokenizer(["some words", "more"], truncation=True, max_length=3, padding=True)
    assert fingerprint(tokenizer) == before == fingerprint(pretrained.load_tokenizer(str(tiny_bert)))
    for change in ({"do_lower_case": False}, {"truncation_side": "left"}):
        other = pretrained.load_tokenizer(str(changed(tiny_bert, tmp_path / "-".join(change), **change)))
        assert fingerprint(other) != before, change


# --- tokenize

FIRST = ["the film is good", "a very good story and a great actor", "bad", "one two three", "cat?", "not too dull!"]
SECOND = ["it was not", "no", "the plot is very poor and too dull", "a", "red green blue red green blue", "cat dog"]


def write(tokenizer, texts, max_length, tmp_path):
    writer = SplitWriter(tmp_path / "split")
    made = tokenize(writer, "tokens", tokenizer, [column(part) for part in texts], max_length, "tokenizing")
    return made, Split(tmp_path / "split")


@pytest.mark.parametrize("max_length", [7, 9, 64])
@pytest.mark.parametrize("chunk", [1, 60, 2**18])
def test_pairs_are_truncated_and_typed_as_by_the_tokenizer(chunk, max_length, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK", chunk)
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    made, split = write(tokenizer, [FIRST, SECOND], max_length, tmp_path)
    expected = tokenizer(FIRST, SECOND, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    batch, real = split.ragged("tokens").padded(np.arange(len(FIRST)), tokenizer.pad_token_id)
    assert batch.tolist() == expected["input_ids"].tolist()
    assert real.long().tolist() == expected["attention_mask"].tolist()
    second = split.array("tokens_second")
    types = [
        [int(start <= place < length) for place in range(batch.shape[1])]
        for start, length in zip(second, real.sum(1), strict=True)
    ]
    assert types == expected["token_type_ids"].tolist()
    assert made.tokens == int(expected["attention_mask"].sum())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_t5"])
def test_tokens_are_those_of_the_tokenizer_called_on_each_text(model, side, request, tmp_path, monkeypatch) -> None:
    tokenizer = pretrained.load_tokenizer(str(request.getfixturevalue(model)))
    tokenizer.truncation_side = side
    texts = [*FIRST, "the [SEP] film </s> is [PAD]", "größer 漢字 🦊", " ", "word " * 50] * 3
    monkeypatch.setattr(token_cache, "CHUNK", 100)
    _, split = write(tokenizer, [texts], 12, tmp_path)
    batch, real = split.ragged("tokens").padded(np.arange(len(texts)), -1)
    made = [row[kept].tolist() for row, kept in zip(batch, real, strict=True)]
    assert made == [tokenizer(text, truncation=True, max_length=12)["input_ids"] for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=30), st.integers(1, 40))
def test_a_chunk_exceeds_its_size_by_at_most_one_text(rows, size) -> None:
    columns = [column([row[place] for row in rows]) for place in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "CHUNK", size)
        chunks = [rows[places] for places in token_cache._in_chunks(columns)]
    assert all(chunks) and [row for chunk in chunks for row in chunk] == rows
    sizes = [[len("".join(row).encode()) for row in chunk] for chunk in chunks]
    assert all(sum(chunk[1:]) < size for chunk in sizes)
    assert len(chunks) <= 1 + sum(map(sum, sizes)) // size


def test_texts_that_are_too_long_are_truncated_and_counted(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    whole = [len(tokenizer(text)["input_ids"]) for text in FIRST]
    limit = whole[0]
    made, split = write(tokenizer, [FIRST], limit, tmp_path)
    assert split.ragged("tokens").lengths.tolist() == [min(length, limit) for length in whole]
    assert made.cut == sum(length > limit for length in whole) > 0
    assert made.tokens == sum(min(length, limit) for length in whole)
    assert "tokens_second" not in split


def test_a_vocabulary_beyond_16_bits_keeps_its_ids(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = pretrained.load_tokenizer(str(tiny_bert))
    tokenizer.add_tokens([f"token{number}" for number in range(2**16)])
    _, split = write(tokenizer, [[f"token{2**16 - 1}"]], 9, tmp_path)
    assert split.ragged("tokens").values.tolist() == tokenizer(f"token{2**16 - 1}")["input_ids"]
    assert max(split.ragged("tokens").values) > 2**16
