import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from litlab.errors import BadInput
from recipes.t5_documentation.span_corruption import SENTINELS, SpanCorruption, corrupt, spans, window_for

END, FIRST = 1, 2  # token ids of </s> and <extra_id_0>
LENGTH = 32


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    words = [
        "the",
        "a",
        "boat",
        "clock",
        "tree",
        "river",
        "holds",
        "turns",
        "grows",
        "flows",
        "slowly",
        "quickly",
        "and",
        "under",
        "over",
        "because",
    ]
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    texts = (" ".join(random.choice(words, random.integers(5, 60))) + f" {number}." for number in range(300))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def opened(file: Path, trainer: object = None, **options: object) -> SpanCorruption:
    settings = {"validation": 0.2, "tokenizer_size": 500, "input_length": LENGTH, "batch_size": 10, **options}
    data = SpanCorruption(str(file), **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.trainer = trainer  # type: ignore[assignment]
    return data


def process(rank: int, world_size: int = 1, accumulation: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, accumulate_grad_batches=accumulation, overfit_batches=0
    )


def restored(inputs: list[int], labels: list[int]) -> list[int]:
    """The original window, from its input and target."""
    hidden: dict[int, list[int]] = {}
    for token in labels[:-1]:
        if FIRST <= token < FIRST + SENTINELS:
            hidden[token] = current = []
        else:
            current.append(token)
    return [token for item in inputs[:-1] for token in hidden.get(item, [item])]


@pytest.mark.parametrize("length", [16, 32, 128, 256, 512])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.3, 1.0), (0.45, 8.0)])
def test_the_largest_window_that_fits_the_input_length_is_chosen(length, density, mean) -> None:
    window, hidden, count = window_for(length, density, mean)
    assert length - 1 <= window - hidden + count + 1 <= length  # because of rounding, some lengths cannot be reached
    assert hidden == round(window * density) and 1 <= count <= hidden


def test_spans_hide_the_given_number_of_tokens_and_never_touch() -> None:
    random = np.random.default_rng(0)
    masks = np.stack([spans(random, 141, 21, 7) for _ in range(2000)])
    assert (masks.sum(axis=1) == 21).all() and not masks[:, 0].any()
    begins = masks[:, 1:] & ~masks[:, :-1]
    assert (begins.sum(axis=1) == 7).all()
    shares = masks.mean(axis=0)[20:-20]
    assert shares.min() > 0.1 and shares.max() < 0.2  # about 15 % at every position


def test_each_sentinel_replaces_the_tokens_that_follow_it_in_the_target() -> None:
    windows = np.array([[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 25, 26, 27]])
    hidden = np.array([[0, 1, 1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0, 1, 1]], bool)
    inputs, labels = corrupt(windows, hidden, first=2, end=1)
    assert inputs.tolist() == [[10, 2, 13, 14, 15, 16, 3, 1], [20, 21, 2, 23, 24, 25, 3, 1]]
    assert labels.tolist() == [[2, 11, 12, 3, 17, 1], [2, 22, 3, 26, 27, 1]]


def test_an_epoch_contains_the_documents_once_without_padding(file: Path) -> None:
    data = opened(file)
    loader = data.train_dataloader()
    batches = list(loader)
    stream = data.streams["train"].tolist()
    windows = [
        restored(inputs, labels)
        for batch in batches
        for inputs, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    ]
    assert {tuple(batch["input_ids"].shape[1:]) for batch in batches} == {(LENGTH,)}
    assert all(batch["attention_mask"].all() and (batch["labels"] > 0).all() for batch in batches)
    order = np.argsort(torch.cat([batch["id"] for batch in batches]).numpy())
    together = [token for number in order for token in windows[number]]
    start = next(start for start in range(data.window) if stream[start : start + len(together)] == together)
    assert len(together) > len(stream) - 2 * data.window and 0 <= start < data.window
    assert len(data.tokenizer.decode(windows[0]).split()) > 5


def test_an_end_token_separates_the_documents(file: Path) -> None:
    data = opened(file)
    documents = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    texts = data.tokenizer.decode(data.streams["train"].tolist()).split("</s>")
    assert set(map(str.strip, texts[:-1])) < set(documents) and len(texts) - 1 > 0.7 * len(documents)


def test_windows_and_spans_differ_between_epochs_and_seeds(file: Path) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        loader = opened(file, seed=seed).train_dataloader()
        loader.set_epoch(epoch)
        return next(iter(loader))["input_ids"]

    views = [first(0, 0), first(0, 1), first(1, 0)]
    assert torch.equal(views[0], first(0, 0))
    assert not any(torch.equal(views[a], views[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_batches_are_the_same_for_any_number_of_ranks(file: Path) -> None:
    whole = opened(file, process(0)).train_dataloader()
    halves = [opened(file, process(rank, 2)).train_dataloader() for rank in range(2)]
    micro = opened(file, process(0, accumulation=2)).train_dataloader()
    for loader in (whole, *halves, micro):
        loader.set_epoch(3)
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch["input_ids"], torch.cat([part["input_ids"] for part in parts]))
    again = opened(file, process(0)).train_dataloader()
    again.set_epoch(3)
    slices = list(micro)
    for number, batch in enumerate(again):
        assert torch.equal(batch["labels"], torch.cat([part["labels"] for part in slices[2 * number : 2 * number + 2]]))


def test_a_restored_dataloader_continues_with_the_next_batch(file: Path) -> None:
    loader = opened(file).train_dataloader()
    loader.set_epoch(2)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    other = opened(file).train_dataloader()
    other.load_state_dict(state)
    rest = list(other)
    for before, after in zip(iterator, rest, strict=True):
        assert torch.equal(before["input_ids"], after["input_ids"]) and torch.equal(before["labels"], after["labels"])


def test_validation_is_the_same_for_all_seeds_and_batch_sizes(file: Path) -> None:
    one, other = (opened(file, seed=seed, evaluation_batch_size=size) for seed, size in ((0, 7), (5, 64)))
    views = [torch.cat([batch["input_ids"] for batch in data.val_dataloader()]) for data in (one, other)]
    assert torch.equal(*views)
    held_out = set(one.streams["validation"].tolist())
    assert held_out and len(one.streams["validation"]) < 0.4 * len(one.streams["train"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"input_length": 4096}, ["data.input_length=4096", "100"]),
        ({"input_length": 512, "validation": 0.02}, ["validation", "tokens"]),
        ({"text": "body"}, ["no column 'body'", "--data.text"]),
    ],
)
def test_bad_input_gives_one_sentence(file: Path, options, expected) -> None:
    with pytest.raises(BadInput) as error:
        opened(file, **options)
    assert all(part in str(error.value) for part in expected) and "\n" not in str(error.value)


def test_a_checkpoint_with_another_tokenizer_is_refused(file: Path) -> None:
    with pytest.raises(BadInput, match="another tokenizer"):
        opened(file).load_state_dict(opened(file, tokenizer_size=450).state_dict())


def test_the_last_window_ends_within_the_documents(file: Path) -> None:
    data = opened(file, validation=0.2)
    for epoch in range(5):
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        assert all(batch["labels"][:, -1].eq(END).all() for batch in loader)
