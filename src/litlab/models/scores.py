"""The scores of a classifier, accumulated over a whole split and all processes."""

from torchmetrics import Accuracy, F1Score, MetricCollection


def classification_scores(num_classes: int, prefix: str) -> MetricCollection:
    """Accuracy over all examples, and the F1 score averaged over the classes.

    Args:
        num_classes: number of classes.
        prefix: put before the names, as in "val/".
    """
    return MetricCollection(
        {
            "accuracy": Accuracy(task="multiclass", num_classes=num_classes),
            "f1": F1Score(task="multiclass", num_classes=num_classes, average="macro"),
        },
        prefix=prefix,
    )
