import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from litlab.data import token_cache
from litlab.errors import BadInput
from litlab.files import cache_folder
from project.data import summarization
from project.data.summarization import Summarization

VOCABULARY = "the a film movie plot story actor good great fine bad poor dull not very too größer 漢字 tree's red 12"

RANDOM = np.random.default_rng(0)


def sentence(most: int) -> str:
    return " ".join(RANDOM.choice(VOCABULARY.split(), RANDOM.integers(1, most)))


TEXTS = [f"{sentence(40)}, number {number}." for number in range(150)]
SUMMARIES = [sentence(12) for _ in TEXTS]


def write(file: Path, texts=TEXTS, summaries=SUMMARIES) -> Path:
    rows = ({"text": text, "summary": summary} for text, summary in zip(texts, summaries, strict=True))
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("texts") / "news.jsonl")


def opened(source: Path, tokenizer: Path | None = None, **options) -> Summarization:
    data = Summarization(str(source), tokenizer=str(tokenizer) if tokenizer else None, **options)
    data.prepare_data()
    data.setup()
    return data


def trained_tokenizer(data: Summarization):
    return token_cache.open_tokenizer(cache_folder() / "tokens" / data.fingerprint)


def loaders(data: Summarization):
    return {"train": data.train_dataloader(), "validation": data.val_dataloader(), "test": data.test_dataloader()}


def ids_of(loader) -> list[int]:
    return [id for batch in loader for id in batch["id"].tolist()]


def filled(rows: torch.Tensor, multiple: int, most: int, fill: int) -> torch.Tensor:
    more = min(-rows.shape[1] % multiple, most - rows.shape[1])
    return torch.nn.functional.pad(rows, (0, more), value=fill)


@pytest.mark.parametrize("limits", [(512, 64), (30, 5)])
@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("prefix", ["", "summarize: "])
def test_batches_equal_the_output_of_the_tokenizer_for_the_rows(limits, pretrained, prefix, file, tiny_t5) -> None:
    options = {"max_length": limits[0], "max_summary_length": limits[1], "prefix": prefix, "batch_size": 7}
    data = opened(file, tiny_t5 if pretrained else None, tokenizer_size=400, **options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5) if pretrained else trained_tokenizer(data)
    assert data.vocab_size == len(tokenizer)
    seen = []
    for loader in loaders(data).values():
        batches = list(loader)
        longest = max(int(batch["attention_mask"].sum(dim=1).max()) for batch in batches)
        longest_summary = max(int((batch["labels"] >= 0).sum(dim=1).max()) for batch in batches)
        for batch in batches:
            ids = batch["id"].tolist()
            seen += ids
            how = {"padding": True, "truncation": True, "return_tensors": "pt"}
            inputs = tokenizer([prefix + TEXTS[id] for id in ids], max_length=limits[0], **how)
            labels = tokenizer([SUMMARIES[id] for id in ids], max_length=limits[1], **how)
            expected = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
            assert batch["input_ids"].tolist() == filled(inputs["input_ids"], 16, longest, 0).tolist()
            assert batch["attention_mask"].tolist() == filled(inputs["attention_mask"], 16, longest, 0).tolist()
            assert batch["labels"].tolist() == filled(expected, 8, longest_summary, -100).tolist()
            kinds = {batch[name].dtype for name in ("id", "input_ids", "attention_mask", "labels")}
            assert kinds == {torch.int64}
            for row in batch["labels"]:  # every summary has an end token, followed by padding only
                assert (row == 1).sum() == 1 and (row[row.tolist().index(1) + 1 :] == -100).all()
    assert sorted(seen) == list(range(len(TEXTS)))


def test_training_batches_count_the_tokens_of_their_summaries(file: Path, tiny_t5: Path) -> None:
    for batch in opened(file, tiny_t5, batch_size=7).train_dataloader():
        assert batch["size"] == int((batch["labels"] != -100).sum())
        assert batch["weight"] == 1


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 3), (2, 3), (3, 2)])
def test_weighted_token_means_of_slices_average_to_the_mean_of_the_global_batch(
    processes, accumulation, file: Path, tiny_t5: Path
) -> None:
    def token_mean(batch) -> float:
        labels = batch["labels"][batch["labels"] != -100]
        return float(torch.sin(labels.double()).mean())  # stands for a loss that differs between tokens

    def batches(rank=0, processes=1, accumulation=1):
        data = opened(file, tiny_t5, batch_size=8)  # 120 texts: batches of 8, sliced into 2, 3 and 6
        settings = {"accumulate_grad_batches": accumulation, "overfit_batches": 0}
        data.trainer = SimpleNamespace(global_rank=rank, world_size=processes, **settings)
        return list(data.train_dataloader())

    whole = batches()
    ranks = [batches(rank, processes, accumulation) for rank in range(processes)]
    assert {len(rank) for rank in ranks} == {len(whole) * accumulation}
    for step, batch in enumerate(whole):
        slices = [share for rank in ranks for share in rank[step * accumulation : (step + 1) * accumulation]]
        assert np.mean([token_mean(share) * share["weight"] for share in slices]) == pytest.approx(token_mean(batch))
        assert sum(share["size"] for share in slices) == batch["size"]
        assert sorted(id for share in slices for id in share["id"].tolist()) == sorted(batch["id"].tolist())
    sizes = [share["size"] / len(share["id"]) for rank in ranks for share in rank]
    assert len(set(sizes)) > 5  # with summaries of equal length, a mean over examples would pass too


@pytest.mark.parametrize("pretrained", [True, False])
def test_evaluation_batches_contain_the_texts_and_a_decoder(pretrained: bool, file: Path, tiny_t5: Path) -> None:
    data = opened(file, tiny_t5 if pretrained else None, prefix="summarize: ")
    for split in ("validation", "test"):
        for batch in loaders(data)[split]:
            ids = batch["id"].tolist()
            assert batch["source"] == [TEXTS[id] for id in ids]
            assert batch["target"] == [SUMMARIES[id] for id in ids]
            labels = batch["labels"].masked_fill(batch["labels"] == -100, 0)  # generate pads with 0
            assert batch["decode"](labels) == batch["target"]
            assert batch["decode"](batch["input_ids"]) == [f"summarize: {text}" for text in batch["source"]]
            starts = torch.cat([torch.zeros(len(ids), 1, dtype=torch.int64), labels], 1)  # generate starts with 0
            assert batch["decode"](starts) == batch["target"]
    batch = next(iter(data.train_dataloader()))
    assert not {"source", "target"} & batch.keys()
    labels = batch["labels"].masked_fill(batch["labels"] == -100, 0)  # minimum risk training reads them
    assert batch["decode"](labels) == [SUMMARIES[id] for id in batch["id"].tolist()]


def test_a_summary_is_truncated_for_the_loss_but_not_for_the_metrics(file: Path, tiny_t5: Path) -> None:
    data = opened(file, tiny_t5, max_summary_length=3)
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].shape[1] == 3
    assert batch["target"] == [SUMMARIES[id] for id in batch["id"].tolist()]
    longer = sum(len(ids) > 3 for ids in AutoTokenizer.from_pretrained(tiny_t5)(SUMMARIES)["input_ids"])
    assert f"{longer} truncated to 3" in data.description


def test_the_tokenizer_is_trained_on_the_training_split_only(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["a trainword here"] * 50, ["trainsummary"] * 50)
    write(tmp_path / "validation.jsonl", ["a validword here"] * 50, ["validsummary"] * 50)
    write(tmp_path / "test.jsonl", ["a testword here"] * 50, ["testsummary"] * 50)
    data = opened(tmp_path, tokenizer_size=500)
    tokenizer = trained_tokenizer(data)
    pieces = {word: len(tokenizer.tokenize(word)) for word in ("trainword", "trainsummary")}
    assert pieces == {"trainword": 1, "trainsummary": 1}
    for word in ("validword", "testword", "validsummary", "testsummary"):
        assert len(tokenizer.tokenize(word)) > 1, word
    assert data.vocab_size == len(tokenizer) < 500
    assert next(iter(data.test_dataloader()))["decode"](tokenizer(["testword"], return_tensors="pt").input_ids) == [
        "testword"
    ]


def test_the_tokenizer_is_not_trained_on_held_out_texts(tmp_path: Path) -> None:
    words = [
        f"w{number:03}".translate({48 + digit: "abcdefghij"[digit] for digit in range(10)}) for number in range(100)
    ]
    texts = [f"{word} again {word} again {word}" for word in words]
    data = opened(write(tmp_path / "a.jsonl", texts, ["short"] * 100), tokenizer_size=5000)
    tokenizer = trained_tokenizer(data)
    pieces = {
        split: {len(tokenizer.tokenize(words[id])) for id in ids_of(loaders(data)[split])} for split in loaders(data)
    }
    assert pieces["train"] == {1} and min(pieces["validation"] | pieces["test"]) > 1


def test_equal_texts_are_in_one_split_even_with_different_summaries(tmp_path: Path, tiny_t5: Path) -> None:
    texts = [TEXTS[number // 3].upper() if number % 3 else TEXTS[number // 3] for number in range(150)]
    data = opened(write(tmp_path / "a.jsonl", texts), tiny_t5)
    found = [{texts[id].casefold() for id in ids_of(loader)} for loader in loaders(data).values()]
    assert sum(map(len, found)) == len(set().union(*found)) == 50


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_cached_source_is_not_read_again(pretrained, file: Path, tiny_t5: Path, monkeypatch) -> None:
    tokenizer = tiny_t5 if pretrained else None
    first = opened(file, tokenizer)

    def never(*arguments):
        raise AssertionError("built again")

    monkeypatch.setattr(summarization, "read", never)
    monkeypatch.setattr(token_cache, "train_tokenizer", never)
    again = opened(file, tokenizer, seed=1)
    assert (again.fingerprint, again.description, again.vocab_size) == (
        first.fingerprint,
        first.description,
        first.vocab_size,
    )
    assert ids_of(first.train_dataloader()) != ids_of(again.train_dataloader())
    assert ids_of(first.test_dataloader()) == ids_of(again.test_dataloader())
    batches = next(iter(first.val_dataloader())), next(iter(again.val_dataloader()))
    assert batches[0]["decode"](batches[0]["input_ids"]) == batches[1]["decode"](batches[1]["input_ids"])
    changes = [{"prefix": "x"}, {"max_length": 9}, {"max_summary_length": 9}, {"validation": 0.2}]
    for change in changes if pretrained else [*changes, {"tokenizer_size": 300}]:
        with pytest.raises(AssertionError, match="built again"):
            opened(file, tokenizer, **change)


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"summary": ""}, {}, r"a\.jsonl, row 3: column 'summary' is empty; fill it in or delete the row\."),
        (
            {"summary": 7},
            {},
            r"a\.jsonl, row 3: column 'summary' contains 7, which is not a string; put it in quotes\.",
        ),
        (
            {},
            {"summary": "title"},
            r"has no column 'title': it has 'text', 'summary'; choose one with --data\.summary=",
        ),
        ({}, {"text": "body"}, r"has no column 'body': it has 'text', 'summary'; choose one with --data\.text="),
    ],
)
def test_rows_that_cannot_be_used_give_one_sentence(row, options, expected, tmp_path: Path) -> None:
    rows = [{"text": text, "summary": "s"} for text in TEXTS[:20]]
    rows[2] |= row
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput) as caught:
        opened(tmp_path / "a.jsonl", **options)
    assert re.search(expected, str(caught.value)), caught.value
    assert [file for file in (cache_folder() / "tokens").glob("*") if file.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["./nothing", "rotten tomatoes"])
def test_for_an_unknown_name_the_message_lists_the_known_names(name: str) -> None:
    with pytest.raises(BadInput, match=r"there is no such file; .* a Hub id, or a packaged data set \(docstrings\)\.$"):
        opened(name)
