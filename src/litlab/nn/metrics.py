"""Metrics of classifiers and summarizers, accumulated over a split and across ranks."""

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
    """The area under the ROC curve; NaN if the split has only one class, where torchmetrics returns 0."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the area, a scalar."""
        target = dim_zero_cat(self.target)
        return super().compute() if 0 < target.sum() < len(target) else torch.tensor(torch.nan)


class RocAuc(MulticlassAUROC):
    """The mean one-vs-rest area under the ROC curve, without classes missing in the split (0 in torchmetrics)."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean area, a scalar."""
        counts = torch.bincount(dim_zero_cat(self.target), minlength=self.num_classes)
        return super().compute()[(counts > 0) & (counts < counts.sum())].mean()


class ClassificationMetrics(MetricCollection):
    """Accuracy, precision, recall, F1 and the area under the ROC curve.

    With two classes, the second is the positive class, as in scikit-learn and GLUE. With more classes, all metrics
    except accuracy are macro averages: means over the classes.

    Args:
        num_classes: number of classes.
        prefix: prefix of the metric names, such as "val/".
    """

    def __init__(self, num_classes: int, prefix: str) -> None:
        self.binary = num_classes == 2
        task: dict[str, Any] = (
            {"task": "binary"}
            if self.binary
            else {"task": "multiclass", "num_classes": num_classes, "average": "macro"}
        )
        super().__init__(
            {
                "accuracy": Accuracy(**{**task, "average": "micro"}),
                "f1": F1Score(**task),
                "precision": Precision(**task),
                "recall": Recall(**task),
                "roc_auc": BinaryRocAuc() if self.binary else RocAuc(num_classes, average="none"),
            },
            prefix=prefix,
        )

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        Args:
            logits: (batch, classes).
            target: class numbers, (batch,).
        """
        probabilities = logits.float().softmax(dim=1)
        super().update(probabilities[:, 1] if self.binary else probabilities, target)


class SummarizationMetrics(Metric):
    """ROUGE-1, 2, L and Lsum of the rouge-score package, with stemming: the mean F-measure over all examples.

    Lsum compares sentence by sentence; `split_sentences` defines the sentences. Further metrics are the mean number of
    generated tokens, the fraction of summaries truncated at the token limit and, if source texts are given, ROUGE of
    each text's first sentence (lead-1), a baseline that a summarizer should beat.

    Args:
        prefix: prefix of the metric names, such as "val/".
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
            summaries: generated summaries.
            targets: reference summaries.
            lengths: number of generated tokens, (batch,).
            capped: whether the summary reached the token limit, (batch,) bool.
            texts: source texts, for lead-1; None: no lead-1.
        """
        self.rouge += self._sums(summaries, targets)
        if texts:
            self.lead += self._sums([split_sentences(text)[0] for text in texts], targets)
        self.examples += len(summaries)
        self.tokens += lengths.sum()
        self.capped += capped.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name."""
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
    """Return a function of targets and predictions that computes the ROUGE scores of each pair, by name, with stemming.

    It uses rouge-score-rs if installed (`make setup FAST=1`), which gives the same scores many times faster.
    """
    try:
        import rouge_score_rs

        return rouge_score_rs.RougeScorer(names, use_stemmer=True).score_batch
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer  # imported here: it takes a second, and few models need it

        score = RougeScorer(names, use_stemmer=True).score
        return lambda targets, predictions: list(map(score, targets, predictions))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences: at line breaks, and after . ! or ? before white space and a capital, digit or quote.

    Unlike NLTK's tokenizer, it needs no model or download, but it splits "e.g. This" incorrectly.
    """
    lines = map(str.strip, lines_of(text))
    return [line for line in lines if line] or [text]


def lines_of(text: str) -> list[str]:
    """Return a text as lines, after adding a line break after each sentence."""
    # replaced by a function, because a group in the pattern would make the search three times slower
    return SENTENCE_END.sub(lambda end: end[0][0] + "\n", text).splitlines()
