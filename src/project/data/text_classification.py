"""A data module of texts, or pairs of texts, and their classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt

from litlab.data import token_cache
from litlab.data.batches import Batch, EvaluationBatches, Split, TrainingBatches, by_length
from litlab.data.labels import check_labels, encode_labels
from litlab.data.readers import Source, open_source
from litlab.data.splits import SplitChoice, describe, read, read_splits
from litlab.errors import BadInput
from litlab.sources import pretrained
from project.data import rotten_tomatoes

KNOWN = {"rotten_tomatoes": rotten_tomatoes.source}
"""Packaged data sets, by the name that `source` takes."""


class TextClassification(LightningDataModule):
    """Texts, or pairs of texts, and their classes, from a file, a folder, the Hub or a Python package.

    Texts are tokenized once into a memory-mapped cache and batched by length. The id of an example is its row number in
    the source, from 0. With two classes, the second is the positive class of precision, recall and F1.

    Batches contain `id` (batch,), `target` (batch,), `input_ids` and `attention_mask` (batch, length) and, for pairs,
    if the model uses them, `token_type_ids` (batch, length); all are int64. Evaluation batches also contain `source`,
    the complete texts as a list of strings; a line break separates the texts of a pair.

    Args:
        source: rotten_tomatoes (from a Python package); a .csv, .jsonl or .parquet file; a folder with train and
            optionally validation and test files; or a Hub id, optionally with @revision.
        configuration: configuration of a Hub data set that has several, such as mrpc.
        text: column of the text.
        text_pair: column of the second text of a pair; null: single texts.
        label: column of the class, as strings or integers.
        validation: name of the validation split, or fraction of train to hold out, stratified by class; null:
            validation if it exists, else 0.1.
        test: name of the test split, or fraction of train to hold out, stratified by class; null: test if it exists,
            else 0.1.
        tokenizer: pretrained model whose tokenizer is used; set from model.pretrained.
        max_length: maximum tokens of an example, with special tokens; longer ones are truncated; null: the model's
            limit, at most 512.
        batch_size: examples per optimizer step, summed over devices and accumulated micro-batches.
        evaluation_batch_size: examples per device and step in validation and test; it affects speed, not results.
        seed: seed of the order of training examples; set from seed_everything.
    """

    def __init__(
        self,
        source: str = "rotten_tomatoes",
        configuration: str | None = None,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        validation: SplitChoice = None,
        test: SplitChoice = None,
        tokenizer: str = "all-MiniLM-L6-v2",
        max_length: PositiveInt | None = None,
        batch_size: PositiveInt = 32,
        evaluation_batch_size: PositiveInt = 128,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source, self.configuration = source, configuration
        self.text, self.text_pair, self.label = text, text_pair, label
        self.validation, self.test = validation, test
        self.tokenizer_name, self.max_length = tokenizer, max_length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.seed = seed
        self.fingerprint: str | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        self.prepare_data()
        return len(self.class_names)

    def prepare_data(self) -> None:
        """Download and tokenize the data if it is not cached, and open the cache.

        Raises:
            BadInput: if the data, labels or tokenizer are invalid.
        """
        if self.fingerprint:
            return
        source = open_source(self.source, self.configuration, KNOWN)
        self.tokenizer = pretrained.load_tokenizer(self.tokenizer_name)
        self._limit = pretrained.sequence_limit(self.tokenizer_name, self.tokenizer, self.max_length)
        ingredients = {
            "what": "classification",
            "source": source.key,
            "column_names": [self.text, self.text_pair, self.label],
            "splits": [self.validation, self.test],
            "tokenizer": token_cache.fingerprint(self.tokenizer),
            "max_length": self._limit,
        }
        folder, meta = token_cache.cached(ingredients, lambda scratch: self._build(source, scratch))
        self.splits = {name: Split(folder / name) for name in meta["examples"]}
        self.class_names: list[str] = meta["class_names"]
        self.fingerprint = meta["key"]
        self.facts = {name: meta[name] for name in (*ingredients, "tokenizers", "examples")}
        self.description = describe(source.name, meta)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache."""
        self.prepare_data()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint depends on: the class names in the order of their numbers, and the tokenizer."""
        return {"class_names": self.class_names, "tokenizer": token_cache.fingerprint(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to these classes and this tokenizer.

        Raises:
            BadInput: if classes or tokenizer differ, because the metrics would be meaningless.
        """
        if state_dict["class_names"] != self.class_names:
            raise BadInput(
                f"the checkpoint has the classes {', '.join(state_dict['class_names'])}, but data.source={self.source} "
                f"has {', '.join(self.class_names)}: evaluate with the classes of the run."
            )
        if state_dict["tokenizer"] != token_cache.fingerprint(self.tokenizer):
            raise BadInput(
                f"the checkpoint was trained with another tokenizer than that of {self.tokenizer_name}: use the "
                "model.pretrained of the run."
            )

    def train_dataloader(self) -> TrainingBatches:
        """Return batches of texts of similar length, in random order."""
        lengths = self.splits["train"].ragged("tokens").lengths
        plan = by_length(lengths, self.batch_size, self.seed)
        return TrainingBatches.for_trainer(self.trainer, self._fetch("train"), plan)

    def val_dataloader(self) -> EvaluationBatches:
        """Return the batches of the validation split, longest texts first."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches:
        """Return the batches of the test split, longest texts first."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> EvaluationBatches:
        columns = self.splits[split]
        order = np.argsort(-columns.ragged("tokens").lengths, kind="stable")
        fetch_tokens, sources = self._fetch(split), columns.ragged("source")

        def fetch(rows: np.ndarray) -> Batch:
            return {**fetch_tokens(rows), "source": sources.texts(rows)}

        return EvaluationBatches.for_trainer(self.trainer, fetch, order, self.evaluation_batch_size)

    def _build(self, source: Source, folder: Path) -> dict[str, Any]:
        """Write the columns of each split, and return the facts to store with them."""
        columns = {"data.text": self.text} | ({"data.text_pair": self.text_pair} if self.text_pair else {})
        splits, meta = read_splits(
            source,
            lambda table: check_labels(read(table, columns, ("data.label", self.label)), self.label),
            {"validation": self.validation, "test": self.test},
            compared=len(columns),
        )
        names, targets = encode_labels(splits, self.label)
        # tokenize and write each split
        cut, total = 0, 0
        for split, rows in splits.items():
            writer = token_cache.SplitWriter(folder / split)
            writer.array("id", rows.ids)
            writer.array("target", targets[split])
            counts = token_cache.tokenize(
                writer, "tokens", self.tokenizer, rows.texts, self._limit, f"tokenizing {split}"
            )
            cut, total = cut + counts.cut, total + counts.tokens
            if split != "train":
                writer.texts("source", rows.texts)
        mean = total / sum(map(len, splits.values()))
        facts = {"text": {"mean": mean, "cut": cut, "limit": self._limit}}
        return {**meta, "class_names": names, "columns": facts}

    def _fetch(self, split: str) -> Callable[[np.ndarray], Batch]:
        """Return a function from the indices of examples, (batch,), to a batch."""
        columns = self.splits[split]
        ids, targets, texts = columns.array("id"), columns.array("target"), columns.ragged("tokens")
        second = columns.array("tokens_second") if "tokens_second" in columns else None
        pad = self.tokenizer.pad_token_id

        def fetch(rows: np.ndarray) -> Batch:
            input_ids, mask = texts.padded(rows, pad)
            batch = {
                "id": torch.from_numpy(ids[rows]),
                "target": torch.from_numpy(targets[rows]),
                "input_ids": input_ids,
                "attention_mask": mask.long(),
            }
            if second is not None:
                starts = torch.from_numpy(second[rows])[:, None]
                batch["token_type_ids"] = (mask & (torch.arange(mask.shape[1]) >= starts)).long()
            return batch

        return fetch
