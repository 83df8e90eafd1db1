"""Labels: check the labels of a classifier, and map them to class numbers."""

import re
import sys
from typing import Any

import numpy as np

from litlab.data.splits import Rows, problem_of, quoted
from litlab.errors import BadInput


def check_labels(rows: Rows, column: str) -> Rows:
    """Check the labels of a split.

    Args:
        rows: rows of the split.
        column: name of the label column, for messages.

    Returns:
        The rows, without unlabelled rows if the source defines class names.

    Raises:
        BadInput: if a label is missing, if labels are not all strings or all integers, or if nearly all are distinct.
    """
    # skip unlabelled rows
    if rows.class_names:
        known = np.array([label not in (None, -1) for label in rows.labels])
        # as in SNLI, where annotators disagreed; if no row has a label, encode_labels raises
        if known.any() and not known.all():
            print(f"{rows.name}: {(~known).sum()} of {len(rows)} rows have no label and are skipped", file=sys.stderr)
            rows = rows.take(known.nonzero()[0])
    # check the types
    for row, label in zip(rows.ids, rows.labels, strict=True):
        where = f"{rows.name}, row {row + 1}: column {column!r}"
        if (label is None or isinstance(label, str)) and (problem := problem_of(column, label)):
            raise BadInput(f"{rows.name}, row {row + 1}: {problem}.")
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise BadInput(f"{where} has the label {label!r:.50}; labels must be strings or integers: 1, not 1.0.")
        if isinstance(label, str) != isinstance(rows.labels[0], str):
            raise BadInput(
                f"{where} has the label {label!r:.50}, but row {rows.ids[0] + 1} has {rows.labels[0]!r:.50}: use "
                "strings or integers, not both."
            )
    # nearly every row has its own label: probably a column of ids or numbers
    if (classes := len(set(rows.labels))) > max(20, 0.8 * len(rows)):
        raise BadInput(
            f"{rows.name}: column {column!r} has {classes:,} distinct labels in {len(rows):,} rows, too many for "
            "classes: choose the label column with --data.label=..."
        )
    return rows


def encode_labels(splits: dict[str, Rows], column: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Map labels to class numbers from 0, in the order of the source's class names, or else sorted.

    Args:
        splits: rows of each split; the labels of train are the classes.
        column: name of the label column, for messages.

    Returns:
        The class names, and for each split the class number of each row, (rows,) int64.

    Raises:
        BadInput: if a label does not occur in train, or if all labels of train are equal.
    """
    train = splits["train"]
    known, names = set(train.labels), train.class_names
    if len(known) < 2:
        raise BadInput(
            f"{train.name}: all {len(train):,} labels in column {column!r} are {next(iter(known))!r:.50}; a classifier "
            "needs at least two classes."
        )
    # order the classes; integers, also as strings, by value
    if names and all(isinstance(label, int) for label in known):
        order: list[Any] = list(range(len(names)))
    else:
        integers = all(map(is_integer, known))
        order = sorted(known, key=lambda label: (int(label) if integers else 0, str(label)))  # "01" is not "1"
        names = [str(label) for label in order]
    # number the rows
    numbers = {label: number for number, label in enumerate(order)}
    for rows in splits.values():
        for row, label in zip(rows.ids, rows.labels, strict=True):
            if label not in known or label not in numbers:
                raise BadInput(
                    f"{rows.name}, row {row + 1}: the label {label!r:.50} is not in the training split, which has "
                    f"{quoted(sorted(known, key=str))}; correct it, delete the row, or choose another split."
                )
    return names, {
        split: np.array([numbers[label] for label in rows.labels], np.int64) for split, rows in splits.items()
    }


def is_integer(label: Any) -> bool:
    """Whether a label is an integer, or a string of one with at most 4,000 digits, which Python can convert."""
    return isinstance(label, int) or bool(re.fullmatch("[+-]?[0-9]{1,4000}", label))
