import numpy as np
import pytest

from litlab.data.labels import check_labels, encode_labels
from litlab.data.splits import Rows
from litlab.errors import BadInput


def rows(split: str, labels: list, class_names: list[str] | None = None) -> Rows:
    return Rows(f"nli, split {split}", np.arange(len(labels)), [], labels, class_names)


def test_rows_of_the_hub_without_a_label_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    kept = check_labels(rows("train", [0, -1, 1, None], ["no", "yes"]), "label")
    assert kept.labels == [0, 1] and kept.ids.tolist() == [0, 2]
    assert "nli, split train: 2 of 4 rows have no label and are skipped" in capsys.readouterr().err
    hidden = check_labels(rows("test", [-1, -1], ["no", "yes"]), "label")
    with pytest.raises(BadInput, match=r"^nli, split test, row 1: the label -1 is not in the training split"):
        encode_labels({"train": kept, "test": hidden}, "label")


@pytest.mark.parametrize(
    ("labels", "class_names", "expected", "numbers"),
    [
        (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
        (["10", "9", "-1"], None, ["-1", "9", "10"], [2, 1, 0]),
        (["1", "01", "x"], None, ["01", "1", "x"], [1, 0, 2]),
        ([5, 1, 5], None, ["1", "5"], [1, 0, 1]),
        ([1, 0, 1], ["no", "yes"], ["no", "yes"], [1, 0, 1]),
    ],
    ids=["strings", "integers as strings", "equal integers are two classes", "integers", "names of the source"],
)
def test_classes_are_in_the_order_of_the_source_or_sorted(labels, class_names, expected, numbers) -> None:
    names, targets = encode_labels({"train": rows("train", labels, class_names)}, "label")
    assert names == expected and targets["train"].tolist() == numbers
