import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score
from torchmetrics.text.rouge import ROUGEScore

from litlab.nn.metrics import ClassificationMetrics, SummarizationMetrics, rouge_scorer, split_sentences

WORDS = [
    "the",
    "cat",
    "cats",
    "sat",
    "running",
    "runs",
    "ran",
    "on",
    "a",
    "mat",
    "quickly",
    "news",
    "of",
    "2024",
    "won't",
    "Über",
    "naïve",
]


def merged(metrics: list) -> dict[str, float]:
    """The result over several ranks: the states of all metrics, added up."""
    whole = metrics[0]
    for other in metrics[1:]:
        for name, reduction in whole._reductions.items():
            assert reduction is torch.sum or reduction.__name__ == "dim_zero_sum", name
            setattr(whole, name, getattr(whole, name) + getattr(other, name))
    return numbers(whole.compute())


def numbers(scores: dict) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


def random_logits(classes: int, size: int, seed: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with few distinct values, so that there are ties, and labels with every class at least once."""
    generator = np.random.default_rng([classes, size, seed])
    target = np.concatenate([np.arange(classes), generator.integers(classes, size=size)])
    logits = generator.integers(levels, size=(len(target), classes)) / 2 + 2 * np.eye(classes)[target] * (
        generator.random((len(target), 1)) < 0.5
    )
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(2, 5),
    size=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    levels=st.integers(2, 1000),
    batch=st.integers(1, 70),
)
def test_the_classification_metrics_equal_those_of_scikit_learn(
    classes: int, size: int, seed: int, levels: int, batch: int
) -> None:
    logits, target = random_logits(classes, size, seed, levels)
    scores = ClassificationMetrics(classes, "val/")
    for part, labels in zip(logits.split(batch), target.split(batch), strict=True):
        scores.update(part, labels)
    probabilities, prediction = logits.softmax(1).numpy(), logits.argmax(1).numpy()
    average = "binary" if classes == 2 else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(target, prediction, average=average, zero_division=0)
    area = (
        roc_auc_score(target, probabilities[:, 1])
        if classes == 2
        else roc_auc_score(target, probabilities, multi_class="ovr", average="macro", labels=range(classes))
    )
    assert numbers(scores.compute()) == pytest.approx(
        {
            "val/accuracy": accuracy_score(target, prediction),
            "val/precision": precision,
            "val/recall": recall,
            "val/f1": f1,
            "val/roc_auc": area,
        },
        abs=1e-6,
    )


def test_the_second_of_two_classes_is_the_positive_one() -> None:
    scores = ClassificationMetrics(2, "")
    scores.update(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 0, 0]))
    assert numbers(scores.compute()) == pytest.approx(
        {"accuracy": 2 / 3, "precision": 1 / 2, "recall": 1, "f1": 2 / 3, "roc_auc": 3 / 4}
    )


def test_a_reset_classification_metric_starts_from_zero() -> None:
    scores = ClassificationMetrics(3, "")
    logits, target = random_logits(3, 20, 0, 1000)
    scores.update(logits, (target + 1) % 3)
    scores.reset()
    scores.update(torch.eye(3), torch.arange(3))
    assert set(numbers(scores.compute()).values()) == {1.0}


def random_texts(size: int, seed: int) -> list[str]:
    """Texts of zero to five sentences, some on separate lines."""
    source = random.Random(seed)

    def sentence() -> str:
        return " ".join(source.choice(WORDS) for _ in range(source.randint(1, 8))).capitalize() + source.choice(".!?")

    return ["".join(sentence() + source.choice(" \n") for _ in range(source.randint(0, 5))) for _ in range(size)]


def summarization_batches(size: int, batch: int, seed: int) -> list[tuple]:
    summaries, targets, texts = (random_texts(size, 10 * seed + number) for number in range(3))
    texts = [text or "Nothing. At all." for text in texts]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 50, (size,), generator=generator)
    capped = torch.rand(size, generator=generator) < 0.3
    return [
        (summaries[rows], targets[rows], lengths[rows], capped[rows], texts[rows])
        for rows in (slice(start, start + batch) for start in range(0, size, batch))
    ]


def updated(batches: list[tuple]) -> SummarizationMetrics:
    scores = SummarizationMetrics("val/")
    for batch in batches:
        scores.update(*batch)
    return scores


def column(batches: list[tuple], number: int) -> list:
    return [value for batch in batches for value in batch[number]]


def reference(summaries: list[str], targets: list[str], name: str) -> float:
    """The mean of rouge-score's own results; Lsum expects one sentence per line."""
    scorer = RougeScorer([name], use_stemmer=True)
    if name == "rougeLsum":
        summaries, targets = (["\n".join(split_sentences(text)) for text in texts] for texts in (summaries, targets))
    return float(
        np.mean([scorer.score(target, text)[name].fmeasure for target, text in zip(targets, summaries, strict=True)])
    )


@pytest.fixture(params=["rouge_score", "rouge_score_rs"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one of the two packages, and check that it is the one in use."""
    if request.param == "rouge_score":
        monkeypatch.setitem(sys.modules, "rouge_score_rs", None)
    score = rouge_scorer(["rouge1"])(["a"], ["a"])[0]["rouge1"]
    assert type(score).__module__.split(".")[0] == request.param


@pytest.mark.usefixtures("scorer")
@pytest.mark.parametrize(("size", "batch", "seed"), [(1, 1, 0), (23, 5, 1), (40, 64, 2), (33, 8, 3)])
def test_rouge_is_the_mean_of_rouge_score(size: int, batch: int, seed: int) -> None:
    batches = summarization_batches(size, batch, seed)
    scores = numbers(updated(batches).compute())
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        expected = reference(column(batches, 0), column(batches, 1), name)
        assert scores[f"val/{name}"] == pytest.approx(expected, abs=1e-6), name


def test_rouge_agrees_with_torchmetrics() -> None:
    batches = summarization_batches(60, 7, 4)
    theirs = ROUGEScore(use_stemmer=True, rouge_keys=("rouge1", "rouge2", "rougeL"))
    expected = numbers(theirs(column(batches, 0), column(batches, 1)))
    scores = numbers(updated(batches).compute())
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scores[f"val/{name}"] == pytest.approx(expected[f"{name}_fmeasure"], abs=1e-6), name


def test_lsum_compares_sentences_that_share_a_line() -> None:
    """The longest common subsequence of the two texts with swapped sentences is only half of their length."""
    scores = SummarizationMetrics("")
    scores.update(["Dogs bark loudly. Cats sleep here."], ["Cats sleep here. Dogs bark loudly."], *lengths_of(1))
    result = numbers(scores.compute())
    assert result["rougeLsum"] == pytest.approx(1) and result["rougeL"] == pytest.approx(0.5)


def lengths_of(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(lengths), torch.zeros(len(lengths), dtype=torch.bool)


def test_lead_1_is_the_rouge_of_each_texts_first_sentence() -> None:
    batches = summarization_batches(30, 4, 5)
    scores = numbers(updated(batches).compute())
    first = [split_sentences(text)[0] for text in column(batches, 4)]
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        expected = reference(first, column(batches, 1), name)
        assert scores[f"val/lead1_{name}"] == pytest.approx(expected, abs=1e-6), name


def test_without_the_texts_there_is_no_lead_1() -> None:
    scores = updated([batch[:4] for batch in summarization_batches(5, 2, 6)])
    assert not [name for name in scores.compute() if "lead1" in name]


def test_generated_tokens_and_capped_are_means_over_examples_not_over_batches() -> None:
    batches = summarization_batches(11, 4, 7)
    scores = numbers(updated(batches).compute())
    assert scores["val/generated_tokens"] == pytest.approx(np.mean(column(batches, 2)))
    assert scores["val/capped"] == pytest.approx(np.mean(column(batches, 3)))


def test_the_summarization_metrics_of_two_ranks_equal_those_of_one() -> None:
    batches = summarization_batches(50, 6, 8)
    whole = numbers(updated(batches).compute())
    assert merged([updated(batches[::2]), updated(batches[1::2])]) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_classification_metrics_of_two_ranks_equal_those_of_one(classes: int) -> None:
    logits, target = random_logits(classes, 40, 9, 1000)
    whole, *parts = (ClassificationMetrics(classes, "") for _ in range(3))
    whole.update(logits, target)
    for part, rows in zip(parts, (slice(0, 13), slice(13, None)), strict=True):
        part.update(logits[rows], target[rows])
    for name, metric in parts[0].items():
        for state, reduction in metric._reductions.items():
            both = [getattr(part[name], state) for part in parts]
            assert reduction.__name__ in ("dim_zero_sum", "dim_zero_cat")
            joined = both[0] + both[1]  # adds numbers, concatenates lists of batches
            setattr(metric, state, joined)
    assert numbers(parts[0].compute()) == pytest.approx(numbers(whole.compute()), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("first line\nsecond line\r\nthird", ["first line", "second line", "third"]),
        ('He left. "Why?" she asked.', ["He left.", '"Why?" she asked.']),
        ("It costs 3.50 in all. 7 were sold.", ["It costs 3.50 in all.", "7 were sold."]),
        ("see torch.nn.functional for more", ["see torch.nn.functional for more"]),
        ("lower. case goes on", ["lower. case goes on"]),
        ("  spaces \n\n around.  ", ["spaces", "around."]),
        ("", [""]),
        (" \n ", [" \n "]),
    ],
)
def test_sentences_end_at_line_breaks_and_before_capitals(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB1 .!?\n\t\"'(é", max_size=80))
def test_splitting_into_sentences_loses_only_white_space(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
    assert split_sentences(text)


@pytest.mark.filterwarnings("ignore:No positive samples in targets")  # the case of this test
def test_a_class_without_examples_does_not_lower_the_area_under_the_curve() -> None:
    scores = ClassificationMetrics(3, "")
    scores.update(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 1]))
    assert scores.compute()["roc_auc"] == 1.0
    one_class = ClassificationMetrics(2, "")
    one_class.update(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 1]))
    assert one_class.compute()["roc_auc"].isnan()
