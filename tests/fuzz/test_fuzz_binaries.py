"""Files that programs write: images, arrays, wheels, checkpoints, and the records of a run."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import ROUGH, damaged, texts
from fuzz.outcomes import examples, outcome
from litlab.files import cache_folder
from litlab.runs.directory import RunDirectory, find, rows
from litlab.runs.start import load
from litlab.sources import wheels
from litlab.sources.wheels import Package
from litlab.training.checkpoint_io import AtomicCheckpointIO
from project.data.mnist_files import IDX_FILES, read, unpickle_arrays

pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("limited_memory")]


# --- IDX files


def idx(dimensions: list[int], content: bytes, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(dimensions)]) + struct.pack(f">{len(dimensions)}I", *dimensions) + content


@st.composite
def idx_sets(draw: st.DrawFn) -> dict[str, bytes]:
    """The four files of a small MNIST."""
    files = {}
    for split in ("train", "test"):
        size = draw(st.integers(1, 3))
        files[f"{split}_images"] = idx(
            [size, 28, 28], bytes(range(256)) * 9 + bytes(48) if size == 3 else bytes(784 * size)
        )
        files[f"{split}_labels"] = idx(
            [size], draw(st.binary(min_size=size, max_size=size)).translate(bytes(n % 10 for n in range(256)))
        )
    return files


sizes = st.one_of(st.integers(0, 3), st.sampled_from([1, 10, 28, 784, 2**16, 2**21, 2**22, 2**31, 2**32 - 1]))
headers = st.tuples(st.lists(sizes, max_size=5), st.binary(max_size=40), st.sampled_from([8, 8, 8, 9, 0x0D, 0]))


@examples(1500)
@given(st.data())
def test_idx_files(room: Path, data: st.DataObject) -> None:
    folder = room / "idx"
    folder.mkdir(exist_ok=True)
    files = data.draw(idx_sets())
    packed = data.draw(st.sets(st.sampled_from(sorted(IDX_FILES))))
    kind = data.draw(st.sampled_from(["whole", "damaged", "damaged", "header", "empty pair"]))
    if kind == "empty pair":
        files |= {"test_images": idx([0, 28, 28], b""), "test_labels": idx([0], b"")}
    spoiled = data.draw(st.sampled_from(sorted(IDX_FILES)))
    if kind == "header":
        dimensions, content, number = data.draw(headers)
        files[spoiled] = idx(dimensions, content, number)
    contents = {name: gzip.compress(content, 1) if name in packed else content for name, content in files.items()}
    if kind == "damaged":
        contents[spoiled] = data.draw(damaged(st.just(contents[spoiled])))
    for name, content in contents.items():
        for suffix in ("", ".gz"):
            (folder / f"{IDX_FILES[name]}{suffix}").unlink(missing_ok=True)
        (folder / f"{IDX_FILES[name]}{'.gz' * (name in packed)}").write_bytes(content)
    arrays, refusal = outcome(lambda: read(str(folder)), room, str(folder))
    if refusal:
        assert kind != "whole"
        return
    assert kind != "empty pair"
    for name, array in arrays.items():
        content = gzip.decompress(contents[name]) if name in packed else contents[name]
        assert content.endswith(array.tobytes()) and array.dtype == np.uint8
        assert array.shape == (
            (len(arrays[name.replace("images", "labels")]), 784) if "images" in name else (len(array),)
        )
        assert "images" in name or array.max() < 10


# --- pickles


class Reduced:
    """An object that is pickled as a function call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles(marker: Path) -> list[bytes]:
    """Pickles that run code in all ways of the pickle protocols; each one would create the file `marker`."""
    code = f"open({str(marker)!r}, 'w')"
    shell = f"touch {marker}"
    calls = [
        Reduced(os.system, shell),
        Reduced(eval, code),
        Reduced(exec, code),
        Reduced(open, str(marker), "w"),
        Reduced(os.mkdir, str(marker)),
        Reduced(map, exec, [code]),
        Reduced(getattr, os, "system"),
        {"a": [Reduced(os.popen, shell)]},
    ]
    written = [pickle.dumps(call, protocol) for call in calls for protocol in (0, 2, 4) if call is not calls[6]]
    text, line = pickle.dumps(shell, 0)[:-1], shell.encode()
    return [
        *written,
        b"cos\nsystem\n(" + text + b"tR.",
        b"(" + text + b"ios\nsystem\n.",
        b"(cos\nsystem\n" + text + b"o.",
        b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR.",
        b"cnumpy\nndarray\ncos\nsystem\nb.",
        b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(K\x01tS'b'\ntR.",
        b"cnumpy.f2py.diagnose\nrun_command\n(S'" + line + b"'\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n0cos\nsystem\n(S'" + line + b"'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(line)]) + line + b"\x85R.",
    ]


OPCODES = [
    b"\x80\x02", b"\x80\x04", b"\x80\xff", b"(", b")", b"]", b"}", b"0", b"1", b"2", b".", b"a", b"b", b"e", b"s",
    b"t", b"u", b"R", b"o", b"l", b"d", b"N", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f", b"\x90", b"\x91",
    b"\x92", b"\x93", b"\x94", b"\x97", b"\x98", b"K\x01", b"J\xff\xff\xff\xff", b"I9\n", b"I01\n", b"Ix\n", b"L5L\n",
    b"F1e999\n", b"S'a'\n", b"S'\n", b"V\\ud800\n", b"\x8a\x08" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"U\x03abc",
    b"T\xff\xff\xff\x7f", b"X\x01\0\0\0a", b"X\xff\xff\xff\xffa", b"\x8d" + b"\xff" * 8,
    b"\x8e" + b"\xff" * 7 + b"\x7f", b"B\x02\0\0\0ab", b"\x96\x02" + bytes(7) + b"ab", b"\x95" + b"\xff" * 8,
    b"h\x00", b"j\xff\xff\xff\xff", b"g5\n", b"q\x00", b"r\xff\xff\xff\xff", b"p0\n", b"p-1\n", b"P5\n", b"Q",
    b"\x82\x01", b"\x84\xff\xff\xff\x7f", b"\x83\0\0", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n", b"cnumpy\nload\n", b"cos\nsystem\n", b"cbuiltins\neval\n", b"iposix\nsystem\n",
    b"c\n\n", b"ca.b.c\nd.e\n", b"(K\x02K\x03t", b"(I1000000000000\nt", b"(S'O8'\nI0\nI1\nt", b"(S'f4'\nI0\nI1\nt",
    b"(S'b'\nt", b"(I0\nt",
]  # fmt: skip
programs = st.lists(st.sampled_from(OPCODES), max_size=25).map(b"".join)
PLAIN = (np.ndarray, np.dtype, np.generic, str, bytes, bytearray, int, float, bool, type(None))


def parts(value: Any, depth: int = 20) -> Iterator[Any]:
    """The elements of a nested value, to a limited depth, because a pickle can contain itself."""
    if isinstance(value, list | tuple | set | frozenset | dict) and depth:
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from parts(part, depth - 1)
    elif not isinstance(value, list | tuple | set | frozenset | dict):
        yield value


def python_2(value: Any) -> bytes:
    return pickle.dumps(value, 3).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


ARRAYS: dict[bytes, Any] = {
    python_2(value): value
    for value in (
        ([np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(2)],),
        [np.zeros((0, 3), "u1"), np.array([True]), np.array("text"), np.array([b"a"])],
        np.array([1 + 2j, 3]),
    )
}


@examples(2000)
@given(st.data())
def test_arrays_are_unpickled_without_running_code(room: Path, data: st.DataObject) -> None:
    marker = room / "marker"
    hostile = st.sampled_from(hostile_pickles(marker))
    whole = st.sampled_from(list(ARRAYS))
    inputs = whole | damaged(whole) | hostile | damaged(hostile) | programs | programs.map(lambda code: code + b".")
    content = data.draw(inputs | st.binary(max_size=60))
    result, refusal = outcome(lambda: unpickle_arrays(io.BytesIO(content)), room, "the array file")
    assert not marker.exists()
    if content in ARRAYS:
        assert refusal == "" and repr(result) == repr(ARRAYS[content])
    if content in hostile_pickles(marker):
        assert "only arrays are allowed, so it was not loaded" in refusal
    if not refusal:
        strange = [part for part in parts(result) if not isinstance(part, PLAIN)]
        assert all(part in (np.ndarray, np.dtype) or "_reconstruct" in repr(part) for part in strange)


# --- wheels

MEMBERS = [
    "data.txt", "../data.txt", "/etc/passwd", "a/../../b", "C:\\a", "a\\..\\b", "a/", ".", "..", "", "\x1b[31m", "é",
    "x" * 3000,
]  # fmt: skip
members = st.sampled_from(MEMBERS) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@st.composite
def packed_wheels(draw: st.DrawFn) -> tuple[dict[str, bytes], bytes]:
    """Files, and a wheel with these files."""
    files = draw(st.dictionaries(members, st.binary(max_size=20) | st.just(bytes(5000)), max_size=4))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
            info.external_attr = draw(st.sampled_from([0o644, 0o120777, 0o40755, 0o6777])) << 16
            wheel.writestr(info, content)
    return files, file.getvalue()


def in_the_cache(content: bytes) -> Package:
    """A package whose wheel is already in the cache and has the expected sha256."""
    wheel = cache_folder() / "packages" / "any-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    wheel.write_bytes(content)
    return Package("any", "1.0", wheel.name, hashlib.sha256(content).hexdigest())


@examples(1200)
@given(packed_wheels(), members, st.data())
def test_members_of_wheels(wheel: tuple[dict[str, bytes], bytes], member: str, data: st.DataObject) -> None:
    files, content = wheel
    whole = data.draw(st.booleans())
    package = in_the_cache(content if whole else data.draw(damaged(st.just(content))))
    member = data.draw(st.sampled_from([member, *files]))

    def use() -> bytes:
        with wheels.open_member(package, member) as file:
            return file.read()

    found, refusal = outcome(use, cache_folder().parent, package.wheel)
    if whole and member in files:
        assert refusal == "" and found == files[member]
    elif whole:
        assert refusal


# --- checkpoints


class Torn(torch.nn.Module):
    """A value that a checkpoint must not contain: an object of a custom class."""


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


CHECKPOINT = {
    "state_dict": {"weight": torch.arange(12.0).reshape(3, 4)},
    "global_step": 3,
    "pytorch-lightning_version": "2.6.6",
    "name": "é",
    "list": [1, None, (2.5, True)],
}
CHECKPOINTS = [saved(CHECKPOINT), saved(CHECKPOINT, _use_new_zipfile_serialization=False), saved({})]


def with_pickle(content: bytes) -> bytes:
    """A checkpoint whose pickle is replaced."""
    before, after = io.BytesIO(CHECKPOINTS[0]), io.BytesIO()
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(after, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return after.getvalue()


def checkpoint_files(marker: Path) -> st.SearchStrategy[bytes]:
    hostile, whole = st.sampled_from(hostile_pickles(marker)), st.sampled_from(CHECKPOINTS)
    others = [saved(Torn()), saved([1]), saved(torch.zeros(3)), saved(5), pickle.dumps({}), pickle.dumps(CHECKPOINT)]
    code = hostile | damaged(hostile) | programs | programs.map(lambda program: program + b".")
    return st.one_of(
        whole,
        damaged(whole),
        damaged(whole),
        code,
        code.map(with_pickle),
        st.sampled_from(others),
        st.binary(max_size=60),
    )


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@examples(2000)
@given(st.data())
def test_checkpoints(room: Path, data: st.DataObject) -> None:
    marker, path = room / "marker", room / "a.ckpt"
    content = data.draw(checkpoint_files(marker))
    path.write_bytes(content)
    loaded, refusal = outcome(lambda: AtomicCheckpointIO().load_checkpoint(path), room, str(path))
    assert not marker.exists()
    if content in CHECKPOINTS:
        assert refusal == "" and repr(loaded) == repr({} if content == CHECKPOINTS[-1] else CHECKPOINT)
    if not refusal:
        assert isinstance(loaded, dict)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@examples(1000)
@given(st.data())
def test_checkpoints_to_resume_from(room: Path, data: st.DataObject) -> None:
    marker, path = room / "marker", room / "a.ckpt"
    whole = CHECKPOINTS[0]
    directory = whole.index(b"PK\x01\x02")  # the archive's central directory, at its end
    spoiled = damaged(st.just(whole)) | damaged(st.just(whole[directory:])).map(lambda tail: whole[:directory] + tail)
    content, original = data.draw(
        st.tuples(spoiled | st.just(whole), st.just(True)) | st.tuples(checkpoint_files(marker), st.just(False))
    )
    path.write_bytes(content)
    loaded, refusal = outcome(lambda: load(path), room, str(path))
    assert not marker.exists()
    if not refusal:
        assert isinstance(loaded, dict)
        assert not original or repr(loaded) == repr(CHECKPOINT), "a changed bit was not detected"
    assert refusal == "" or content != whole


# --- the records of a run

RECORD = json.dumps({"status": "running", "seed": 0, "score": 0.5, "command": ["fit", "é"]}, indent=2).encode()
METRICS = b"step,epoch,train/loss,val/loss\n1,0,0.5,\n2,0,0.25,1e-3\n3,1,nan,inf\n"
HOLDER = json.dumps({"host": "elsewhere", "pid": 1, "heartbeat": 1.0}).ljust(200).encode()
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["host", "pid", "heartbeat", "status", *ROUGH]), inner, max_size=3)
    ),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())
nested = st.integers(1, 3000).map(lambda depth: b"[" * depth + b"]" * depth)


def contents_like(whole: bytes) -> st.SearchStrategy[bytes]:
    return st.just(whole) | damaged(st.just(whole)) | json_texts | nested | st.binary(max_size=40)


@pytest.fixture(scope="module")
def run(room: Path) -> RunDirectory:
    folder = room / "runs" / "a" / "20261122-093015-123-9f3a61c2"
    folder.mkdir(parents=True)
    return RunDirectory(folder)


@examples(1000)
@given(contents_like(RECORD))
def test_records_of_runs(room: Path, run: RunDirectory, content: bytes) -> None:
    (run.path / "run.json").write_bytes(content)
    record, refusal = outcome(run.record, room, str(run.path / "run.json"))
    assert refusal or json.loads(content) == record or "NaN" in str(content)
    assert refusal or isinstance(record, dict)


@examples(500)
@given(contents_like(RECORD))
def test_changed_records_of_runs(room: Path, run: RunDirectory, content: bytes) -> None:
    file = run.path / "run.json"
    file.write_bytes(content)
    _, refusal = outcome(lambda: run.update_record(status="done"), room, str(file))
    assert file.read_bytes() == content if refusal else json.loads(file.read_bytes())["status"] == "done"


@examples(500)
@given(contents_like(b'{"val": {"accuracy": 0.5}}'))
def test_evaluations_of_runs(room: Path, run: RunDirectory, content: bytes) -> None:
    file = run.path / "eval.json"
    file.write_bytes(content)
    _, refusal = outcome(lambda: run.write_evaluation("test", {"accuracy": 1.0}), room, str(file))
    assert file.read_bytes() == content if refusal else json.loads(file.read_bytes())["test"] == {"accuracy": 1.0}


@examples(1000)
@given(contents_like(METRICS))
def test_metrics_of_runs(room: Path, run: RunDirectory, content: bytes) -> None:
    file = run.path / "metrics.csv"
    file.write_bytes(content)
    found, refusal = outcome(lambda: list(rows(run.path)), room, str(file))
    if content == METRICS:
        assert [row["step"] for row in found] == [1, 2, 3] and "val/loss" not in found[0]
    if not refusal:
        assert all(isinstance(value, float) for row in found for value in row.values())


@examples(500)
@given(contents_like(HOLDER))
def test_locks_of_runs(room: Path, run: RunDirectory, content: bytes) -> None:
    (run.path / "lock").write_bytes(content)
    alive, refusal = outcome(run.is_alive, room)
    assert refusal == "" and alive in (True, False)


references = st.one_of(
    texts,
    st.text(st.sampled_from("a*?[]!/.~\\-2"), max_size=8),
    st.sampled_from(
        [
            "latest",
            "a",
            "20261122-093015-123-9f3a61c2",
            "a/latest",
            "..",
            "a" * 300,
            "**",
            "a**",
            "/",
            "*/*",
            "[",
            "~nobody",
        ]
    ),
)


@examples(800)
@given(references)
def test_references_to_runs(room: Path, run: RunDirectory, reference: str) -> None:
    (run.path / "run.json").write_bytes(RECORD)
    found, refusal = outcome(lambda: find(room / "runs", reference), room)
    assert refusal or found.path == run.path
    if reference == run.id:
        assert refusal == ""
