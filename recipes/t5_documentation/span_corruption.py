"""Pretraining data for an encoder-decoder: sentinels replace spans of a text, and the model predicts these spans."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt

from litlab.data import token_cache
from litlab.data.batches import Batch, EvaluationBatches, Split, TrainingBatches, shuffled
from litlab.data.readers import Source, open_source
from litlab.data.splits import SplitChoice, describe, read, read_splits
from litlab.errors import BadInput
from recipes.t5_documentation import documentation

SENTINELS = 100  # number of sentinels, <extra_id_0> to <extra_id_99>, as in T5
TOKENIZER_SAMPLE = 20_000_000  # bytes of text to train the tokenizer on; with more, the vocabulary hardly changes
SMALLEST_TOKENIZER = 400  # minimum vocabulary size in tokens: all bytes, the sentinels, and some words
NO_LIMIT = 2**30  # maximum tokens of a document; in practice none is cut


class SpanCorruption(LightningDataModule):
    """Documents from a file, a folder or the Hub, packed into windows of equal length without padding.

    The documents of a split are concatenated into one sequence of tokens, with `</s>` after each document. In every
    epoch, this sequence is cut into windows, and spans of each window are hidden as in T5 (Raffel et al., 2020, section
    3.1.4): 15 % of the tokens, in spans with a mean length of three. A sentinel replaces each span in the input. The
    target lists the sentinels and the tokens that they replace. Windows and spans differ between epochs.

    All batches have the same shape. Their tokens depend on the data, the seed, the epoch and the batch size, not on the
    number of ranks.

    Batches contain int64 tensors: `id` (batch,), the index of the window; `input_ids` and `attention_mask` (all ones),
    (batch, input_length); and `labels` (batch, target length).

    Args:
        source: recipes/t5_documentation/data/texts.parquet, created if missing; another .jsonl, .csv or .parquet file;
            a folder with train and optionally validation in one of these formats; or a Hub id, optionally with
            @revision.
        configuration: name of the configuration, for a Hub data set that has several.
        text: column of the documents.
        validation: name of a split, or the fraction of train to hold out; null: the validation split, or 0.1 without
            one.
        tokenizer_size: maximum vocabulary size, including sentinels; the tokenizer is trained on the training split.
        input_length: length of the encoder input in tokens, including sentinels and the end token.
        noise_density: fraction of the tokens that are hidden.
        mean_span: mean length of a hidden span, in tokens.
        batch_size: windows per optimizer step, over all devices and accumulated micro-batches.
        evaluation_batch_size: windows per device and validation step; affects speed, not results.
        seed: seed of the windows, the spans and the order; set from seed_everything.
    """

    def __init__(
        self,
        source: str = "recipes/t5_documentation/data/texts.parquet",
        configuration: str | None = None,
        text: str = "text",
        validation: SplitChoice = None,
        tokenizer_size: Annotated[int, Field(ge=SMALLEST_TOKENIZER)] = 8192,
        input_length: Annotated[int, Field(ge=16)] = 256,
        noise_density: Annotated[float, Field(gt=0, lt=0.5)] = 0.15,
        mean_span: Annotated[float, Field(ge=1)] = 3.0,
        batch_size: PositiveInt = 64,
        evaluation_batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source, self.configuration, self.text, self.validation = source, configuration, text, validation
        self.tokenizer_size = tokenizer_size
        self.window, self.hidden, self.spans = window_for(input_length, noise_density, mean_span)
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.seed = seed
        self.fingerprint: str | None = None
        if self.spans > SENTINELS:
            raise BadInput(
                f"data.input_length={input_length} needs {self.spans} sentinels, but there are only {SENTINELS}: reduce it, reduce "
                "data.noise_density or raise data.mean_span."
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the tokenizer's vocabulary."""
        self.prepare_data()
        return len(self.tokenizer)

    def prepare_data(self) -> None:
        """Create or download the documents and tokenize them if they are not in the cache, then open the cache.

        Raises:
            BadInput: if the data cannot be used, or a split is too short for its windows.
        """
        if self.fingerprint:
            return
        # tokenize, or find the tokens of an earlier run: the ingredients are the key of the cache
        documentation.prepare(self.source)
        source = open_source(self.source, self.configuration)
        ingredients = {
            "what": "documents",
            "source": source.key,
            "column_names": [self.text],
            "splits": [self.validation],
            "tokenizer": [self.tokenizer_size, SENTINELS, TOKENIZER_SAMPLE],
        }
        folder, meta = token_cache.cached(ingredients, lambda scratch: self._build(source, scratch))
        # open the tokens
        self.tokenizer = token_cache.open_tokenizer(folder)
        self.streams = {name: Split(folder / name).ragged("text").values for name in meta["examples"]}
        for name, stream in self.streams.items():
            if len(stream) < 2 * self.window:
                raise BadInput(
                    f"{self.source}, split {name}, has {len(stream):,} tokens: windows of {self.window} tokens need at least "
                    f"{2 * self.window:,}; provide more text or reduce data.input_length."
                )
        # what the run records and prints
        self.fingerprint = meta["key"]
        self.facts = {name: meta[name] for name in (*ingredients, "tokenizers", "examples")}
        length = self.window - self.hidden + self.spans + 1
        self.description = (
            f"{describe(source.name, {**meta, 'columns': {}})}\n"
            f"tokens     {', '.join(f'{len(stream):,} {name}' for name, stream in self.streams.items())}\n"
            f"windows    {self.window} tokens, {self.hidden} of them hidden in {self.spans} spans: {length} encoder tokens, "
            f"{self.hidden + self.spans + 1} decoder tokens, no padding"
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the cache."""
        self.prepare_data()

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint of the tokenizer; a checkpoint works with this tokenizer only."""
        return {"tokenizer": token_cache.fingerprint(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the tokenizer is the one of the checkpoint.

        Raises:
            BadInput: if it is another one.
        """
        if state_dict["tokenizer"] != token_cache.fingerprint(self.tokenizer):
            raise BadInput(
                f"the checkpoint was trained with another tokenizer than that of data.source={self.source}: use the data of that run."
            )

    def train_dataloader(self) -> TrainingBatches:
        """All windows of an epoch, in random order."""
        windows = len(self.streams["train"]) // self.window - 1  # one less, because the first starts at a random offset
        order = shuffled(windows, self.batch_size, self.seed)

        def plan(epoch: int) -> list[np.ndarray]:  # each index encodes the epoch and the window
            return [batch + epoch * windows for batch in order(epoch)]

        def fetch(rows: np.ndarray) -> Batch:
            epoch = int(rows[0]) // windows
            numbers = rows - epoch * windows
            starts = _generator(self.seed, epoch).integers(self.window) + self.window * numbers
            return self._batch("train", rows, starts, [_generator(self.seed, epoch, int(at)) for at in numbers])

        return TrainingBatches.for_trainer(self.trainer, fetch, plan)

    def val_dataloader(self) -> EvaluationBatches:
        """The windows of the validation split; their spans are the same for all seeds and epochs."""
        windows = len(self.streams["validation"]) // self.window

        def fetch(rows: np.ndarray) -> Batch:
            return self._batch("validation", rows, self.window * rows, [_generator(int(row)) for row in rows])

        return EvaluationBatches.for_trainer(self.trainer, fetch, np.arange(windows), self.evaluation_batch_size)

    def _batch(self, split: str, rows: np.ndarray, starts: np.ndarray, generators: list[np.random.Generator]) -> Batch:
        windows = self.streams[split][starts[:, None] + np.arange(self.window)].astype(np.int64)
        hidden = np.stack([spans(random, self.window, self.hidden, self.spans) for random in generators])
        sentinel_and_end: Any = self.tokenizer.convert_tokens_to_ids(["<extra_id_0>", "</s>"])
        inputs, labels = corrupt(windows, hidden, *sentinel_and_end)
        return {
            "id": torch.from_numpy(rows),
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.ones(inputs.shape, dtype=torch.int64),
            "labels": torch.from_numpy(labels),
        }

    def _build(self, source: Source, folder: Path) -> dict[str, Any]:
        """Train the tokenizer, tokenize all splits, and write both to a cache folder."""
        columns = {"data.text": self.text}
        splits, meta = read_splits(
            source, lambda table: read(table, columns), {"validation": self.validation}, compared=1
        )
        documents = splits["train"].texts[0]
        every = max(1, documents.nbytes // TOKENIZER_SAMPLE)
        sample = documents.take(np.arange(0, len(documents), every))
        tokenizer = token_cache.train_tokenizer([sample], self.tokenizer_size, folder, SENTINELS)
        for split, rows in splits.items():
            token_cache.tokenize(
                token_cache.SplitWriter(folder / split), "text", tokenizer, rows.texts, NO_LIMIT, f"tokenizing {split}"
            )
        return meta


def window_for(input_length: int, noise_density: float, mean_span: float) -> tuple[int, int, int]:
    """The largest window whose encoder input fits a given length.

    The input consists of the visible tokens, one sentinel per span, and the end token.

    Returns:
        Tokens per window, hidden tokens per window, and spans per window.
    """

    def parts(window: int) -> tuple[int, int]:
        hidden = min(max(round(window * noise_density), 1), window - 1)
        return hidden, min(max(round(hidden / mean_span), 1), window - hidden)

    def length(window: int) -> int:
        hidden, spans = parts(window)
        return window - hidden + spans + 1

    window = input_length // 2
    while length(window + 1) <= input_length:
        window += 1
    return window, *parts(window)


def spans(random: np.random.Generator, window: int, hidden: int, count: int) -> np.ndarray:
    """A random mask of hidden tokens, (window,) bool, with `count` spans; the first token is always visible."""
    lengths = np.empty(2 * count, np.int64)
    lengths[0::2], lengths[1::2] = _parts(random, window - hidden, count), _parts(random, hidden, count)
    return np.repeat(np.arange(2 * count) % 2 == 1, lengths)


def corrupt(windows: np.ndarray, hidden: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Encoder inputs and decoder targets, with `end` at the end of each row.

    Args:
        windows: tokens, (batch, window).
        hidden: mask of the hidden tokens, (batch, window) bool; all rows have the same number of spans and hidden tokens.
        first: id of the first sentinel; the ids of the other sentinels follow it.
        end: id of the end token.
    """
    # the first tokens of hidden spans, and of the visible text between them, (batch, window) bool
    before = np.pad(hidden, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    span_starts, text_starts = hidden & ~before, ~hidden & before
    ends = np.full((len(windows), 1), end)

    def sequence(sentinels: np.ndarray, kept: np.ndarray) -> np.ndarray:
        numbered = np.where(sentinels, first - 1 + np.cumsum(sentinels, axis=1), windows)
        return np.concatenate([numbered[kept | sentinels].reshape(len(windows), -1), ends], axis=1)

    return sequence(span_starts, ~hidden), sequence(text_starts, hidden)


def _parts(random: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`count` random positive integers that sum to `total`, (count,)."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(numbers))
