"""ROUGE of 1,000 texts of 54 words: litlab with the fast extra against torchmetrics and against rouge-score."""

import random
import sys
import time

import rouge_score_rs  # noqa: F401  # fail early if it is not installed
import torch
from torchmetrics.text.rouge import ROUGEScore

from benchmarks.race import race, report, shorter
from litlab.nn.metrics import SummarizationMetrics
from project.data import docstrings

PAIRS, WORDS, ROUNDS = 1000, 54, 9


def main() -> None:
    """Run the race and report seconds."""
    rows = [row for row in docstrings.table().to_pylist() if row["split"] == "validation"][:PAIRS]
    # targets as long as the highlights of CNN/DailyMail; the summaries are the same words in another order
    words = [row["source"].split()[:WORDS] for row in rows]
    targets = [" ".join(some) for some in words]
    generator = random.Random(0)
    summaries = [" ".join(generator.sample(some, len(some))) for some in words]
    zeros = torch.zeros(PAIRS)  # for the lengths and the cut summaries, which are not measured

    def litlab() -> float:
        metric = SummarizationMetrics("val/")
        began = time.perf_counter()
        metric.update(summaries, targets, zeros, zeros)
        metric.compute()
        return time.perf_counter() - began

    def slow() -> float:
        fast = sys.modules["rouge_score_rs"]
        sys.modules["rouge_score_rs"] = None  # type: ignore[assignment]  # as if it were not installed
        try:
            return litlab()
        finally:
            sys.modules["rouge_score_rs"] = fast

    def torchmetrics() -> float:
        # all keys except rougeLsum, which needs the download of a sentence splitter
        metric = ROUGEScore(use_stemmer=True, rouge_keys=("rouge1", "rouge2", "rougeL"))
        began = time.perf_counter()
        metric.update(summaries, targets)
        metric.compute()
        return time.perf_counter() - began

    medians = race({"with the fast extra": litlab, "rouge-score": slow, "torchmetrics": torchmetrics}, ROUNDS)
    what = "ROUGE of 1,000 texts of 54 words with the fast extra against"
    report(
        [
            shorter(f"{what} torchmetrics", medians, "with the fast extra", "torchmetrics", "s", 50),
            shorter(f"{what} litlab with rouge-score", medians, "with the fast extra", "rouge-score", "s"),
        ]
    )


if __name__ == "__main__":
    main()
