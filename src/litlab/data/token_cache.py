"""Token cache: texts are tokenized once and stored on disk as flat arrays, which `batches.Split` memory-maps.

A column of sequences of different lengths consists of two files: the concatenated values, and the offset of each
sequence. This module runs before training; no training step uses it.
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

FORMAT = 2  # increase when the files or their meaning change, so that older caches are ignored
CHUNK = 2**18  # bytes of text per call of the tokenizer, which uses all cores and about 40 times as much memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class SplitWriter:
    """Writes the columns of one split.

    Args:
        folder: cache folder of the split; it is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    def array(self, name: str, values: np.ndarray) -> None:
        """Write a column of numbers, one per example."""
        values.tofile(self._folder / f"{name}.{values.dtype}")

    def ragged(self, name: str, chunks: Iterable[tuple[np.ndarray, np.ndarray]], dtype: str) -> None:
        """Write a column of sequences, given as chunks of concatenated values and their lengths."""
        lengths = [np.zeros(1, np.int64)]
        with (self._folder / f"{name}.{dtype}").open("wb") as file:
            for values, chunk_lengths in chunks:
                values.astype(dtype).tofile(file)
                lengths.append(chunk_lengths)
        self.array(f"{name}_offsets", np.cumsum(np.concatenate(lengths), dtype=np.int64))

    def texts(self, name: str, columns: list[pyarrow.ChunkedArray]) -> None:
        """Write a column of strings as UTF-8 bytes; several columns are joined row by row with a line break."""

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows in _in_chunks(columns):
                joined = map("\n".join, zip(*(column[rows].to_pylist() for column in columns), strict=True))
                encoded = [text.encode() for text in joined]
                yield np.frombuffer(b"".join(encoded), np.uint8), np.array([len(text) for text in encoded])

        self.ragged(name, chunks(), "uint8")


def cached(ingredients: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the cache folder for `ingredients`; if it is missing, one process builds it and the others wait.

    Args:
        ingredients: everything that the content depends on, as JSON values; their hash is the folder's name.
        build: fills a folder and returns further facts to store with it, as JSON values.

    Returns:
        The folder, and its facts: the ingredients, the facts that `build` returned, and the key.
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
    """Whether the metadata matches its hash and every file has its recorded size."""
    try:
        if (folder / "meta.sha256").read_bytes() != sha256_of(folder / "meta.json").encode():
            return False
        files = json.loads((folder / "meta.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash that changes if the tokenizer would produce different tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation(), backend.no_padding()  # reset what the last call set
    rules = [backend.to_str(), tokenizer.truncation_side, tokenizer.model_input_names, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()


def train_tokenizer(
    texts: list[pyarrow.ChunkedArray], size: int, folder: Path, sentinels: int = 0
) -> PreTrainedTokenizerBase:
    """Train a byte-level byte-pair tokenizer: it encodes every character, and decoding is lossless.

    As in T5, the padding token `<pad>` has id 0 and the end token `</s>` has id 1.

    Args:
        texts: text columns of the training split.
        size: maximum vocabulary size; texts with few distinct words give a smaller vocabulary.
        folder: folder to save it in.
        sentinels: number of extra tokens for masked spans, `<extra_id_0>` and so on, with ids from 2.

    Source: Sennrich et al., 2016; on bytes, Radford et al., 2019. Training it twice gives the same tokens, which is not
    guaranteed for T5's unigram model.
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
    print(f"training a tokenizer with {size:,} tokens (once)", file=sys.stderr)
    lines = (text for column in texts for chunk in column.chunks for text in chunk.to_pylist())
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return open_tokenizer(folder)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `train_tokenizer` saved in a folder."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        split_special_tokens=True,  # "</s>" inside a text, such as HTML, is not the end token
    )


@dataclass
class TokenCounts:
    """Number of tokens written (`tokens`) and of examples truncated (`cut`)."""

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
    """Tokenize texts or pairs of texts and write them as a column; for pairs, also write where the second text begins.

    Args:
        writer: writer of the split.
        name: name of the column.
        tokenizer: a fast tokenizer; it adds its special tokens.
        texts: one text column, or two for pairs.
        max_length: maximum tokens per example; longer ones are truncated, in a pair the longer text first.
        doing: label of the progress bar.

    Returns:
        The number of tokens and of truncated examples.
    """
    counts = TokenCounts()
    second_starts = []
    with_types = len(texts) == 2 and "token_type_ids" in tokenizer.model_input_names
    # same result as calling the tokenizer, but without its Python loop over the texts, which leaves other cores idle
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
                # the type id is 1 for the tokens of the second text
                second_lengths = np.fromiter(
                    (sum(encoding.type_ids) for encoding in encodings), np.int64, len(encodings)
                )
                second_starts.append((lengths - second_lengths).astype(np.int32))
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            yield np.fromiter(ids, np.int64, int(lengths.sum())), lengths

    # most vocabularies fit into 16 bits, which halves the size
    writer.ragged(name, chunks(), "uint16" if len(tokenizer) <= 2**16 else "int32")
    if with_types:
        writer.array(f"{name}_second", np.concatenate(second_starts))
    return counts


def _in_chunks(texts: list[pyarrow.ChunkedArray]) -> list[slice]:
    """Divide all rows into slices with about `CHUNK` bytes of text each."""
    ends = np.cumsum(sum(pyarrow.compute.binary_length(column).to_numpy() for column in texts), dtype=np.int64)
    starts = np.flatnonzero(np.diff(ends // CHUNK, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts.tolist(), len(ends)])]


def _one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function's result for each item, while a thread computes the next result."""
    upcoming = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            ready, upcoming = upcoming, thread.submit(function, item)
            if ready:
                yield ready.result()
        if upcoming:
            yield upcoming.result()
