"""The metrics of classifiers and summarizers, accumulated over a whole split and all ranks."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Accuracy, F1Score, Metric, MetricCollection, Precision, Recall
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC
from torchmetrics.utilities import dim_zero_cat

SENTENCE_END = re.compile(r"""[.!?]\s+(?=[A-Z0-9"'(])""")


class BinaryRocAuc(BinaryAUROC):
    """The area under the ROC curve; NaN (0 in torchmetrics) if a split has one class only."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """The area, a scalar."""
        target = dim_zero_cat(self.target)
        return super().compute() if 0 < target.sum() < len(target) else torch.tensor(torch.nan)


class RocAuc(MulticlassAUROC):
    """The mean of each class's area against the rest; classes missing in the split are excluded (torchmetrics counts them as 0)."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean area, a scalar."""
        counts = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        return super().compute()[(counts > 0) & (counts < counts.sum())].mean()


class ClassificationMetrics(MetricCollection):
    """Accuracy, precision, recall, F1 and the area under the ROC curve.

    Of two classes, the last is the positive one, as in scikit-learn and GLUE; of more, the metrics are averaged over the
    classes, each weighing the same.

    Args:
        num_classes: number of classes.
        prefix: prefix of the names, such as "val/".
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        self.binary = num_classes == 2
        kind: dict[str, Any] = (
            {"task": "binary"}
            if self.binary
            else {"task": "multiclass", "num_classes": num_classes, "average": "macro"}
        )
        super().__init__(
            {
                "accuracy": Accuracy(**{**kind, "average": "micro"}),
                "f1": F1Score(**kind),
                "precision": Precision(**kind),
                "recall": Recall(**kind),
                "roc_auc": BinaryRocAuc() if self.binary else RocAuc(num_classes, average="none"),
            },
            prefix=prefix,
        )

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            logits: (batch, classes).
            target: classes, (batch,).
        """
        probabilities = logits.float().softmax(dim=1)
        super().update(probabilities[:, 1] if self.binary else probabilities, target)


class SummarizationMetrics(Metric):
    """ROUGE-1, 2, L and Lsum as the rouge-score package counts them, with stemmer: the mean F-measure over all examples.

    Lsum compares sentence by sentence; `split_sentences` says what a sentence is. Beside them: the mean number of generated
    tokens, the share of summaries that were cut at the limit, and, if the texts are given, ROUGE of each text's first
    sentence (lead-1), which a summarizer should beat.

    Args:
        prefix: prefix of the names, such as "val/".
    """

    NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    full_state_update = False
    rouge: Tensor
    lead: Tensor
    examples: Tensor
    tokens: Tensor
    capped: Tensor

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._score: Callable[[list[str], list[str]], Any] | None = None
        for name, size in (("rouge", 4), ("lead", 4), ("examples", 1), ("tokens", 1), ("capped", 1)):
            self.add_state(name, torch.zeros(size), dist_reduce_fx="sum")

    def update(
        self, summaries: list[str], targets: list[str], lengths: Tensor, capped: Tensor, texts: list[str] | None = None
    ) -> None:
        """Add a batch.

        Args:
            summaries: generated texts.
            targets: reference texts.
            lengths: number of generated tokens, (batch,).
            capped: whether the limit of tokens was reached, (batch,) bool.
            texts: source texts, for lead-1; None: without lead-1.
        """
        self.rouge += self._sums(summaries, targets)
        if texts:
            self.lead += self._sums([split_sentences(text)[0] for text in texts], targets)
        self.examples += len(summaries)
        self.tokens += lengths.sum()
        self.capped += capped.sum()

    def compute(self) -> dict[str, Tensor]:
        """The metrics, by name."""
        means = dict(zip(self.NAMES, self.rouge / self.examples, strict=True))
        if self.lead.any():
            means |= {f"lead1_{name}": mean for name, mean in zip(self.NAMES, self.lead / self.examples, strict=True)}
        means |= {"generated_tokens": self.tokens[0] / self.examples[0], "capped": self.capped[0] / self.examples[0]}
        return {self._prefix + name: mean for name, mean in means.items()}

    def _sums(self, summaries: list[str], targets: list[str]) -> Tensor:
        if self._score is None:
            self._score = rouge_scorer(self.NAMES)
        # one sentence per line, as Lsum expects
        scores = self._score(*(["\n".join(lines_of(text)) for text in texts] for texts in (targets, summaries)))
        sums = [sum(score[name].fmeasure for score in scores) for name in self.NAMES]
        return torch.tensor(sums, device=self.device)


def rouge_scorer(names: Sequence[str]) -> Callable[[list[str], list[str]], Any]:
    """A function that computes ROUGE for pairs of targets and predictions, with rouge-score's stemmer: for each pair, scores by name.

    Uses rouge-score-rs if it is installed (`make setup FAST=1`): the same numbers, many times faster.
    """
    try:
        import rouge_score_rs

        return rouge_score_rs.RougeScorer(names, use_stemmer=True).score_batch
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer  # takes a second; most models do not need it

        score = RougeScorer(names, use_stemmer=True).score
        return lambda targets, predictions: list(map(score, targets, predictions))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: they end at a line break, or at . ! or ? before white space and a capital, digit or quote.

    Needs no model or download, unlike NLTK's; "e.g. This" is split wrongly.
    """
    lines = map(str.strip, lines_of(text))
    return [line for line in lines if line] or [text]


def lines_of(text: str) -> list[str]:
    """A text with a line break after each sentence, as lines."""
    # a function of the match: a group in the pattern makes the search three times slower
    return SENTENCE_END.sub(lambda end: end[0][0] + "\n", text).splitlines()
