"""Texts are tokenized once and cached as flat arrays on disk; `batches.Split` memory-maps them.

A column of sequences of different lengths is two files: all values one after the other, and the offsets at which each
sequence begins. This module runs before training; no step of a training calls it.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.compute
from tokenizers import Encoding, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from litlab.files import build_once, cache_folder, sha256_of
from litlab.progress import progress

FORMAT = 2  # increase when files or their meaning change: older caches are then ignored
CHUNK = 2**18  # bytes of text that are tokenized at a time, on all cores; their tokens take about 40 times as many

Item = TypeVar("Item")
Result = TypeVar("Result")


class SplitWriter:
    """Writes the columns of one split.

    Args:
        folder: the cache folder of the split.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    def array(self, name: str, values: np.ndarray) -> None:
        """Write a column of numbers, one per example."""
        values.tofile(self._folder / f"{name}.{values.dtype}")

    def ragged(self, name: str, chunks: Iterable[tuple[np.ndarray, np.ndarray]], dtype: str) -> None:
        """Write a column of sequences, given as chunks of flat values and lengths."""
        lengths = [np.zeros(1, np.int64)]
        with (self._folder / f"{name}.{dtype}").open("wb") as file:
            for values, of_chunk in chunks:
                values.astype(dtype).tofile(file)
                lengths.append(of_chunk)
        self.array(f"{name}_offsets", np.cumsum(np.concatenate(lengths), dtype=np.int64))

    def texts(self, name: str, columns: list[pyarrow.ChunkedArray]) -> None:
        """Write a column of strings as UTF-8 bytes; several columns are joined by a line break, row by row."""

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows in _in_chunks(columns):
                joined = map("\n".join, zip(*(column[rows].to_pylist() for column in columns), strict=True))
                encoded = [text.encode() for text in joined]
                yield np.frombuffer(b"".join(encoded), np.uint8), np.array([len(text) for text in encoded])

        self.ragged(name, chunks(), "uint8")


def cached(ingredients: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The cache folder of `ingredients`; one process builds it if it is missing, while others wait.

    Args:
        ingredients: everything that the content depends on, as plain values; their hash names the folder.
        build: fills a folder and returns further facts to store with it, as plain values.

    Returns:
        The folder, and its facts: the ingredients, what `build` returned, and the key.
    """
    ingredients = {**ingredients, "format": FORMAT, "tokenizers": version("tokenizers")}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "tokens" / key
    with build_once(folder, "caching tokens", _is_intact) as scratch:
        if scratch:
            scratch.mkdir()
            facts = build(scratch)
            files = {str(file.relative_to(scratch)): file.stat().st_size for file in sorted(scratch.rglob("*.*"))}
            content = {**ingredients, **facts, "files": files}
            (scratch / "meta.json").write_text(json.dumps(content, indent=1))
            (scratch / "meta.sha256").write_text(sha256_of(scratch / "meta.json"))
    return folder, {"key": key, **json.loads((folder / "meta.json").read_text())}


def _is_intact(folder: Path) -> bool:
    try:
        if (folder / "meta.sha256").read_bytes() != sha256_of(folder / "meta.json").encode():
            return False
        files = json.loads((folder / "meta.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that changes when the tokenizer gives other tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation(), backend.no_padding()  # reset what the last call has set
    rules = [backend.to_str(), tokenizer.truncation_side, tokenizer.model_input_names, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()


def train_tokenizer(
    texts: list[pyarrow.ChunkedArray], size: int, folder: Path, sentinels: int = 0
) -> PreTrainedTokenizerBase:
    """Train a byte-pair tokenizer on texts: it knows every character, and decoding gives back what was encoded.

    The tokens that end and pad a sequence are T5's, `</s>` 1 and `<pad>` 0.

    Args:
        texts: columns of texts, of the training split only.
        size: vocabulary size at most; texts with few different words give fewer tokens.
        folder: where to save it.
        sentinels: how many further tokens to reserve for masked spans, `<extra_id_0>` and so on, from 2.

    Source: Sennrich et al., 2016; on bytes, Radford et al., 2019. Training it twice gives the same tokens, which the
    expectation-maximization of T5's unigram model does not promise.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", *(f"<extra_id_{number}>" for number in range(sentinels))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    print(f"training a tokenizer of {size:,} tokens (once)", file=sys.stderr)
    lines = (text for column in texts for chunk in column.chunks for text in chunk.to_pylist())
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return open_tokenizer(folder)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that `train_tokenizer` saved in a folder."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        split_special_tokens=True,  # "</s>" inside a text, as in HTML, does not end it
    )


@dataclass
class TokenCounts:
    """How many tokens were written, and how many examples were cut."""

    tokens: int = 0
    cut: int = 0


def tokenize(
    writer: SplitWriter,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[pyarrow.ChunkedArray],
    max_length: int,
    doing: str,
) -> TokenCounts:
    """Write the tokens of texts, or of pairs of texts, as a column; of pairs also where the second text begins.

    Args:
        writer: where to.
        name: of the column.
        tokenizer: a fast one; it adds its special tokens.
        texts: one column of texts, or two for pairs.
        max_length: most tokens of an example; longer ones are truncated, the longer text of a pair first.
        doing: label of the progress bar.

    Returns:
        The numbers of tokens and of examples that were cut.
    """
    counts = TokenCounts()
    second_starts = []
    with_types = len(texts) == 2 and "token_type_ids" in tokenizer.model_input_names
    # the same as calling the tokenizer, without its loop over the texts, which leaves the other cores idle
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = tokenizer.split_special_tokens

    def encode(rows: slice) -> list[Encoding]:
        parts = [column[rows].to_pylist() for column in texts]
        return backend.encode_batch_fast(parts[0] if len(parts) == 1 else list(zip(*parts, strict=True)))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for encodings in _one_ahead(encode, progress(_in_chunks(texts), doing, unit="chunk")):
            counts.cut += sum(bool(encoding.overflowing) for encoding in encodings)
            lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
            counts.tokens += int(lengths.sum())
            if with_types:
                ones = np.fromiter((sum(encoding.type_ids) for encoding in encodings), np.int64, len(encodings))
                second_starts.append((lengths - ones).astype(np.int32))
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            yield np.fromiter(ids, np.int64, int(lengths.sum())), lengths

    # most vocabularies fit into half the space
    writer.ragged(name, chunks(), "uint16" if len(tokenizer) <= 2**16 else "int32")
    if with_types:
        writer.array(f"{name}_second", np.concatenate(second_starts))
    return counts


def _in_chunks(texts: list[pyarrow.ChunkedArray]) -> list[slice]:
    """All rows, as slices that hold about `CHUNK` bytes of text: the longer the texts, the fewer rows."""
    ends = np.cumsum(sum(pyarrow.compute.binary_length(column).to_numpy() for column in texts), dtype=np.int64)
    starts = np.flatnonzero(np.diff(ends // CHUNK, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts.tolist(), len(ends)])]


def _one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The function's result for each item; while one is used, a thread computes the next."""
    upcoming = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            ready, upcoming = upcoming, thread.submit(function, item)
            if ready:
                yield ready.result()
        if upcoming:
            yield upcoming.result()
