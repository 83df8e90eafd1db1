"""Texts as tokens: made once, kept as flat arrays on disk, mapped into memory, and turned into batches by indexing.

A column of sequences of different lengths is two files: all values one after the other, and the offsets at which each
sequence begins. Any rows make a padded batch without a loop over examples.
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
import torch
from tokenizers import Encoding, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from litlab.files import build_once, cache_folder, sha256_of
from litlab.progress import progress

FORMAT = 2  # raise it when files or their meaning change: older caches are then left alone
CHUNK = 2**18  # bytes of text that are tokenized at a time, on all cores; their tokens take some 40 times as much

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ragged:
    """Sequences of different lengths, one after the other in one array.

    Args:
        values: all sequences, (sum of lengths,).
        offsets: where each begins, and the end of the last, (sequences + 1,).
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values = values
        self.starts = offsets[:-1]
        self.lengths = np.diff(offsets)
        self.longest = int(self.lengths.max(initial=0))

    def padded(self, rows: np.ndarray, fill: int, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequences of some rows, (batch, length) int64, filled up with `fill`, and where they are real, as bool.

        The length is that of the longest, rounded up to a multiple of `multiple`, but not above that of the longest there is:
        a model may have no positions beyond it.
        """
        lengths = self.lengths[rows]
        length = min(-(-int(lengths.max()) // multiple) * multiple, self.longest)
        columns = np.arange(length)
        real = columns < lengths[:, None]  # (batch, length)
        places = (self.starts[rows][:, None] + columns)[real]
        batch = np.full(real.shape, fill, np.int64)
        batch[real] = self.values[places]
        return torch.from_numpy(batch), torch.from_numpy(real)

    def text(self, row: int) -> str:
        """One sequence of UTF-8 bytes as a string."""
        return bytes(self.values[self.starts[row] : self.starts[row] + self.lengths[row]]).decode()


class Split:
    """The columns of one split in a cache folder, mapped into memory: they stay usable if the cache is emptied meanwhile.

    Args:
        folder: the cache folder of the split; a file's suffix is the type of its numbers.
    """

    def __init__(self, folder: Path) -> None:
        self._arrays = {file.stem: np.memmap(file, file.suffix[1:], mode="r") for file in folder.iterdir()}

    def __contains__(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self._arrays

    def array(self, name: str) -> np.ndarray:
        """A column of numbers, one per example."""
        return self._arrays[name]

    def ragged(self, name: str) -> Ragged:
        """A column of sequences."""
        return Ragged(self.array(name), self.array(f"{name}_offsets"))


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
        """Write a column of strings as UTF-8 bytes; of several columns, the strings of a row are joined by a line break."""

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows in _in_chunks(columns):
                joined = map("\n".join, zip(*(column[rows].to_pylist() for column in columns), strict=True))
                encoded = [text.encode() for text in joined]
                yield np.frombuffer(b"".join(encoded), np.uint8), np.array([len(text) for text in encoded])

        self.ragged(name, chunks(), "uint8")


def cached(ingredients: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The cache folder that belongs to `ingredients`; built if it is not there, by one process while others wait.

    Args:
        ingredients: everything that the content depends on, as plain values; their hash names the folder.
        build: fills a folder and returns what else is to be remembered, as plain values.

    Returns:
        The folder, and what `build` remembered with the ingredients.
    """
    ingredients = {**ingredients, "format": FORMAT, "tokenizers": version("tokenizers")}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "tokens" / key
    with build_once(folder, "caching tokens", _is_whole) as scratch:
        if scratch:
            scratch.mkdir()
            remembered = build(scratch)
            files = {str(file.relative_to(scratch)): file.stat().st_size for file in sorted(scratch.rglob("*.*"))}
            content = {**ingredients, **remembered, "files": files}
            (scratch / "meta.json").write_text(json.dumps(content, indent=1))
            (scratch / "meta.sha256").write_text(sha256_of(scratch / "meta.json"))
    return folder, {"key": key, **json.loads((folder / "meta.json").read_text())}


def _is_whole(folder: Path) -> bool:
    try:
        if (folder / "meta.sha256").read_bytes() != sha256_of(folder / "meta.json").encode():
            return False
        files = json.loads((folder / "meta.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer gives other tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation(), backend.no_padding()  # what its last use has left
    rules = [backend.to_str(), tokenizer.truncation_side, tokenizer.model_input_names, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()


def train_tokenizer(
    texts: list[pyarrow.ChunkedArray], size: int, folder: Path, sentinels: int = 0
) -> PreTrainedTokenizerBase:
    """Train a byte-pair tokenizer on texts: no character is unknown to it, and decoding gives back what was encoded.

    The tokens that end and fill up a sequence are T5's, `</s>` 1 and `<pad>` 0.

    Args:
        texts: columns of texts, of the training split only.
        size: most tokens; texts of few different words give fewer.
        folder: where to save it.
        sentinels: how many further tokens stand for what is hidden, `<extra_id_0>` and so on, from 2.

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
        split_special_tokens=True,  # a text with "</s>" in it, as HTML has, does not end there
    )


@dataclass
class Made:
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
) -> Made:
    """Write the tokens of texts, or of pairs of texts, as a column; of pairs also where the second text begins.

    Args:
        writer: where to.
        name: of the column.
        tokenizer: a fast one; it adds its special tokens.
        texts: one column of texts, or two.
        max_length: most tokens of an example; longer ones are cut, the longer text of a pair first.
        doing: what the progress bar says.

    Returns:
        What was made.
    """
    made = Made()
    second_starts = []
    with_types = len(texts) == 2 and "token_type_ids" in tokenizer.model_input_names
    # what calling the tokenizer itself does, without its loop over the texts, which keeps the other cores waiting
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = tokenizer.split_special_tokens

    def encode(rows: slice) -> list[Encoding]:
        parts = [column[rows].to_pylist() for column in texts]
        return backend.encode_batch_fast(parts[0] if len(parts) == 1 else list(zip(*parts, strict=True)))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for encodings in _one_ahead(encode, progress(_in_chunks(texts), doing, unit="chunk")):
            made.cut += sum(bool(encoding.overflowing) for encoding in encodings)
            lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
            made.tokens += int(lengths.sum())
            if with_types:
                ones = np.fromiter((sum(encoding.type_ids) for encoding in encodings), np.int64, len(encodings))
                second_starts.append((lengths - ones).astype(np.int32))
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            yield np.fromiter(ids, np.int64, int(lengths.sum())), lengths

    writer.ragged(name, chunks(), "uint16" if len(tokenizer) <= 2**16 else "int32")
    if with_types:
        writer.array(f"{name}_second", np.concatenate(second_starts))
    return made


def _in_chunks(texts: list[pyarrow.ChunkedArray]) -> list[slice]:
    """All rows, as slices that hold about `CHUNK` bytes of text: the longer the texts, the fewer rows."""
    ends = np.cumsum(sum(pyarrow.compute.binary_length(column).to_numpy() for column in texts), dtype=np.int64)
    starts = np.flatnonzero(np.diff(ends // CHUNK, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts.tolist(), len(ends)])]


def _one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What the function makes of each item; while one result is used, a thread makes the next."""
    coming = None
    with ThreadPoolExecutor(1) as thread:
        for item in items:
            ready, coming = coming, thread.submit(function, item)
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()
