"""A data module of texts and their summaries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import torch
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerBase

from litlab.data import token_cache
from litlab.data.batches import Batch, EvaluationBatches, Split, TrainingBatches, by_length
from litlab.data.readers import Source, open_source
from litlab.data.splits import SplitChoice, describe, read, read_splits
from litlab.errors import BadInput
from litlab.sources import pretrained
from project.data import docstrings

KNOWN = {"docstrings": docstrings.source}
"""Packaged data sets, by the name that `source` takes."""
IGNORED = -100  # label that the losses of transformers ignore
# lengths are rounded up to multiples of these: with few shapes, freed memory is reused, which on a CPU saves more time
# than the padding costs (benchmarks/LOG.md); not measured on a GPU
TEXT_MULTIPLE, SUMMARY_MULTIPLE = 16, 8


class Summarization(LightningDataModule):
    """Texts and summaries, from a file, a folder, the Hub or Python packages.

    Both are tokenized once into a memory-mapped cache and batched by length. The id of an example is its row number in
    the source, from 0.

    Batches contain `id` (batch,), `input_ids` and `attention_mask` (batch, text length), and `labels` (batch, summary
    length), -100 after the end of a summary; all are int64, and lengths are rounded up. `decode` maps tokens (batch,
    length) to a list of strings. Evaluation batches also contain the complete texts and summaries as lists of strings,
    `source` and `target`.

    Args:
        source: docstrings (from Python packages); a .csv, .jsonl or .parquet file; a folder with train and optionally
            validation and test files; or a Hub id, optionally with @revision.
        configuration: configuration of a Hub data set that has several, such as 3.0.0.
        text: column of the text.
        summary: column of the summary.
        validation: name of the validation split, or fraction of train to hold out; null: validation if it exists, else
            0.1.
        test: name of the test split, or fraction of train to hold out; null: test if it exists, else 0.1.
        tokenizer: pretrained model whose tokenizer is used; set from model.pretrained; null: train one on the training
            split.
        tokenizer_size: maximum vocabulary size of a trained tokenizer.
        prefix: text before every input, such as T5's task prefix "summarize: ".
        max_length: maximum tokens of a text, with prefix and end token; longer texts are truncated; null: the model's
            limit, at most 512.
        max_summary_length: maximum tokens of a summary, with end token; longer summaries are truncated for the loss,
            but not for ROUGE.
        batch_size: examples per optimizer step, summed over devices and accumulated micro-batches.
        evaluation_batch_size: examples per device and step in validation and test; it affects speed, not results.
        seed: seed of the order of training examples; set from seed_everything.
    """

    def __init__(
        self,
        source: str = "docstrings",
        configuration: str | None = None,
        text: str = "text",
        summary: str = "summary",
        validation: SplitChoice = None,
        test: SplitChoice = None,
        tokenizer: str | None = None,
        tokenizer_size: PositiveInt = 8192,
        prefix: str = "",
        max_length: PositiveInt | None = None,
        max_summary_length: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        evaluation_batch_size: PositiveInt = 64,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source, self.configuration = source, configuration
        self.text, self.summary = text, summary
        self.validation, self.test = validation, test
        self.tokenizer_name, self.tokenizer_size, self.prefix = tokenizer, tokenizer_size, prefix
        self.max_length, self.max_summary_length = max_length, max_summary_length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.seed = seed
        self.fingerprint: str | None = None

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the tokenizer."""
        self.prepare_data()
        return len(self.tokenizer)

    def prepare_data(self) -> None:
        """Download and tokenize the data if it is not cached, and open the cache.

        Raises:
            BadInput: if the data or tokenizer are invalid.
        """
        if self.fingerprint:
            return
        source = open_source(self.source, self.configuration, KNOWN)
        tokenizer = pretrained.load_tokenizer(self.tokenizer_name) if self.tokenizer_name else None
        self._limit = self.max_length or pretrained.DEFAULT_LENGTH
        if tokenizer and self.tokenizer_name:
            self._limit = pretrained.sequence_limit(self.tokenizer_name, tokenizer, self.max_length)
        ingredients = {
            "what": "summarization",
            "source": source.key,
            "column_names": [self.text, self.summary],
            "splits": [self.validation, self.test],
            "tokenizer": token_cache.fingerprint(tokenizer) if tokenizer else self.tokenizer_size,
            "prefix": self.prefix,
            "max_length": [self._limit, self.max_summary_length],
        }
        folder, meta = token_cache.cached(ingredients, lambda scratch: self._build(source, tokenizer, scratch))
        self.tokenizer = tokenizer or token_cache.open_tokenizer(folder)
        self.splits = {name: Split(folder / name) for name in meta["examples"]}
        self.fingerprint = meta["key"]
        self.facts = {name: meta[name] for name in (*ingredients, "tokenizers", "examples")}
        self.description = describe(source.name, meta)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache."""
        self.prepare_data()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint depends on: the tokenizer."""
        return {"tokenizer": token_cache.fingerprint(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this tokenizer.

        Raises:
            BadInput: if the tokenizer differs, because the metrics would be meaningless.
        """
        if state_dict["tokenizer"] != token_cache.fingerprint(self.tokenizer):
            raise BadInput(
                f"the checkpoint was trained with another tokenizer than that of data.source={self.source}, which depends "
                "on the data or on model.pretrained: evaluate with both as in the run."
            )

    def train_dataloader(self) -> TrainingBatches:
        """Return batches of texts of similar length, in random order, weighted by the number of summary tokens."""
        columns = self.splits["train"]
        text_lengths, summary_lengths = columns.ragged("text").lengths, columns.ragged("summary").lengths
        plan = by_length(text_lengths, self.batch_size, self.seed, summary_lengths)
        return TrainingBatches.for_trainer(
            self.trainer, self._fetch("train"), plan, measure=lambda rows: int(summary_lengths[rows].sum())
        )

    def val_dataloader(self) -> EvaluationBatches:
        """Return the batches of the validation split, longest texts first."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches:
        """Return the batches of the test split, longest texts first."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> EvaluationBatches:
        columns = self.splits[split]
        order = np.argsort(-columns.ragged("text").lengths, kind="stable")
        fetch_tokens = self._fetch(split)
        sources, targets = columns.ragged("source"), columns.ragged("target")

        def fetch(rows: np.ndarray) -> Batch:
            return {**fetch_tokens(rows), "source": sources.texts(rows), "target": targets.texts(rows)}

        return EvaluationBatches.for_trainer(self.trainer, fetch, order, self.evaluation_batch_size)

    def _build(self, source: Source, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> dict[str, Any]:
        """Write the columns of each split, and return the facts to store with them."""
        columns = {"data.text": self.text, "data.summary": self.summary}
        splits, meta = read_splits(
            source,
            lambda table: read(table, columns),
            {"validation": self.validation, "test": self.test},
            compared=1,
        )
        if tokenizer is None:
            tokenizer = token_cache.train_tokenizer(splits["train"].texts, self.tokenizer_size, folder)
        # tokenize and write each split
        limits = {"text": self._limit, "summary": self.max_summary_length}
        cut, total = dict.fromkeys(limits, 0), dict.fromkeys(limits, 0)
        for split, rows in splits.items():
            writer = token_cache.SplitWriter(folder / split)
            writer.array("id", rows.ids)
            inputs = rows.texts[0]
            if self.prefix:
                prefix = pyarrow.scalar(self.prefix, inputs.type)
                inputs = pyarrow.compute.binary_join_element_wise(prefix, inputs, pyarrow.scalar("", inputs.type))
            for (name, limit), texts in zip(limits.items(), (inputs, rows.texts[1]), strict=True):
                doing = f"tokenizing {split}, {name}"
                counts = token_cache.tokenize(writer, name, tokenizer, [texts], limit, doing)
                cut[name], total[name] = cut[name] + counts.cut, total[name] + counts.tokens
            # the complete texts, which ROUGE and lead-1 need
            if split != "train":
                writer.texts("source", rows.texts[:1])
                writer.texts("target", rows.texts[1:])
        examples = sum(map(len, splits.values()))
        facts = {name: {"mean": total[name] / examples, "cut": cut[name], "limit": limits[name]} for name in limits}
        return {**meta, "columns": facts}

    def _fetch(self, split: str) -> Callable[[np.ndarray], Batch]:
        """Return a function from the indices of examples, (batch,), to a batch."""
        columns = self.splits[split]
        ids, texts, summaries = columns.array("id"), columns.ragged("text"), columns.ragged("summary")
        pad = self.tokenizer.pad_token_id

        def fetch(rows: np.ndarray) -> Batch:
            input_ids, mask = texts.padded(rows, pad, TEXT_MULTIPLE)
            labels, _ = summaries.padded(rows, IGNORED, SUMMARY_MULTIPLE)
            return {
                "id": torch.from_numpy(ids[rows]),
                "input_ids": input_ids,
                "attention_mask": mask.long(),
                "labels": labels,
                "decode": self._decode,
            }

        return fetch

    def _decode(self, rows: torch.Tensor) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]
