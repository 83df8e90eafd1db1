import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_summarizers import SIZE, build, compare_slices, loader, trainer

from litlab.errors import BadInput
from project.data.summarization import Summarization
from project.models.t5_summarizer import T5Summarizer


@pytest.fixture(params=["pretrained T5", "new T5", "pretrained BART"])
def made(
    request: pytest.FixtureRequest, folder: Path, tiny_t5: Path, tiny_bart: Path
) -> tuple[T5Summarizer, Summarization]:
    """A model and its data with batches of 4 examples."""
    pretrained = {"pretrained T5": str(tiny_t5), "pretrained BART": str(tiny_bart), "new T5": None}[request.param]
    return build(folder, pretrained, max_new_tokens=6)


def log_likelihoods(model: T5Summarizer, batch: dict[str, Any]) -> list[float]:
    """The log-likelihood of each token of each summary, one example at a time and without padding."""
    start, found = model.network.config.decoder_start_token_id, []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        labels = labels[labels >= 0]
        inputs = torch.cat([torch.tensor([start]), labels[:-1]])
        with torch.no_grad():
            logits = model.network(input_ids=ids[mask.bool()][None], decoder_input_ids=inputs[None]).logits[0]
        found += F.log_softmax(logits, dim=-1)[torch.arange(len(labels)), labels].tolist()
    return found


def test_the_validation_loss_is_the_mean_over_all_tokens(made: tuple[T5Summarizer, Summarization]) -> None:
    model, data = made
    values = [value for batch in loader(data) for value in log_likelihoods(model, batch)]
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/loss"] == pytest.approx(-sum(values) / len(values), abs=1e-5)


def test_greedy_summaries_are_the_most_probable_tokens_one_after_the_other(
    made: tuple[T5Summarizer, Summarization],
) -> None:
    model, data = made
    config = model.network.config
    for batch in loader(data):
        tokens = torch.full((len(batch["id"]), 1), config.decoder_start_token_id)
        ended = torch.zeros(len(tokens), dtype=torch.bool)
        for _ in range(6):
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            with torch.no_grad():
                best = model.network(**inputs, decoder_input_ids=tokens).logits[:, -1].argmax(-1)
            tokens = torch.cat([tokens, torch.where(ended, config.pad_token_id, best)[:, None]], dim=1)
            ended |= best == config.eos_token_id
        generated = model.generate(batch)
        assert torch.equal(generated, tokens[:, 1 : 1 + generated.shape[1]])
        assert model.predict_step(batch, 0)["text"] == batch["decode"](tokens[:, 1:])


def test_beam_search_uses_the_settings_of_the_model(folder: Path, tiny_t5: Path) -> None:
    settings = {"max_new_tokens": 12, "num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    model, data = build(folder, tiny_t5, **settings)
    greedy, _ = build(folder, tiny_t5, max_new_tokens=12)
    differs = False
    for batch in loader(data):
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        direct = model.network.generate(**inputs, do_sample=False, **settings)[:, 1:]
        found = model.generate(batch)
        assert torch.equal(found, direct)
        for row in found.tolist():
            bigrams = [pair for pair in pairwise(row) if 0 not in pair]
            assert len(set(bigrams)) == len(bigrams)
        differs |= greedy.generate(batch).tolist() != found.tolist()
    assert differs


@pytest.mark.parametrize("kind", ["T5", "BART"])
def test_beam_search_can_favour_the_tokens_of_the_text(folder: Path, tiny_t5: Path, tiny_bart: Path, kind: str) -> None:
    pretrained = {"T5": tiny_t5, "BART": tiny_bart}[kind]
    plain, _ = build(folder, pretrained, max_new_tokens=8, num_beams=3)
    model, data = build(folder, pretrained, max_new_tokens=8, num_beams=3, encoder_repetition_penalty=1000)
    padded = elsewhere = 0
    for batch in loader(data):
        found, without = model.generate(batch).tolist(), plain.generate(batch).tolist()
        for index, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
            text = set(ids[mask.bool()].tolist())
            padded += not mask.all()
            elsewhere += not set(without[index]) <= text
            # log-probabilities of the text's tokens are nearly 0, others about -6; padding follows only the end
            written = found[index][: found[index].index(1)] if 1 in found[index] else found[index]
            assert set(written) <= text
            alone = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
            one = model.generate(alone)[0].tolist()
            assert one == found[index][: len(one)]
    assert padded and elsewhere


def test_a_saved_models_cache_settings_do_not_affect_beam_search(folder: Path, tiny_t5: Path) -> None:
    model, data = build(folder, tiny_t5, max_new_tokens=8, num_beams=4)
    batch = loader(data)[0]
    expected = model.generate(batch)
    model.network.generation_config.cache_implementation = "static"
    model.network.generation_config.use_cache = model.network.config.use_cache = False
    assert torch.equal(model.generate(batch), expected)


def test_the_steps_return_the_step_contract(made: tuple[T5Summarizer, Summarization]) -> None:
    model, data = made
    for batch in loader(data):
        output = model.predict_step(batch, 0)
        assert set(output) == {"id", "source", "target", "text"}
        assert {len(value) for value in output.values()} == {len(batch["id"])}
        assert output["target"] == batch["target"] and torch.equal(output["id"], batch["id"])


def test_summaries_that_reach_the_limit_are_counted_and_reported_outside_training(
    folder: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = build(folder, tiny_t5, max_new_tokens=2)
    fit = trainer(max_steps=1)
    fit.fit(model.train(), data)
    assert float(fit.callback_metrics["val/capped"]) == 1 and "were truncated" not in capsys.readouterr().err
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/capped"] == 1 and scores["val/generated_tokens"] == 2
    warning = "warning: 100% of the summaries were truncated at 2 tokens; raise model.max_new_tokens\n"
    assert capsys.readouterr().err.endswith(warning)
    (scores,) = trainer().test(model, data, verbose=False)
    assert scores["test/capped"] == 1 and capsys.readouterr().err.endswith(warning)


@pytest.mark.parametrize(("cut", "warned"), [(0, False), (1, True)])
def test_summaries_with_an_end_token_are_not_reported_as_cut(
    folder: Path,
    tiny_t5: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cut: int,
    warned: bool,
) -> None:
    """Of 9 summaries, some end at the first token, some at the last allowed token, and `cut` have no end token."""
    model, data = build(folder, tiny_t5, max_new_tokens=3)
    rows = [[1, 0, 0], [7, 8, 1]] * 4 + [[7, 8, 9] if cut else [7, 1, 0]]
    monkeypatch.setattr(model, "generate", lambda batch: torch.tensor([rows.pop(0) for _ in batch["id"]]))
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/capped"] == pytest.approx(cut / 9)
    assert scores["val/generated_tokens"] == pytest.approx((4 * 1 + 4 * 3 + (3 if cut else 2)) / 9)
    assert ("were truncated" in capsys.readouterr().err) == warned


def test_lead_1_is_computed_outside_training_only(folder: Path, tiny_t5: Path) -> None:
    model, data = build(folder, tiny_t5, max_new_tokens=2)
    fit = trainer(max_steps=1)
    fit.fit(model.train(), data)
    assert not [name for name in fit.callback_metrics if "lead1" in name] and "val/rougeLsum" in fit.callback_metrics
    (scores,) = trainer().validate(model, data, verbose=False)
    assert {f"val/lead1_rouge{kind}" for kind in ("1", "2", "L", "Lsum")} < set(scores)


@pytest.mark.parametrize("slices", [2, 5])
def test_uneven_micro_batches_give_the_gradient_of_the_whole_batch(
    made: tuple[T5Summarizer, Summarization], slices: int
) -> None:
    """The loss is a mean over tokens, not over examples: the parts of 12 examples have different numbers of tokens."""
    compare_slices(*made, slices)


def test_a_new_t5_has_the_given_sizes() -> None:
    model = T5Summarizer(None, d_model=24, d_ff=40, num_layers=2, num_heads=3, dropout=0.2, vocab_size=50)
    model.configure_model()
    network = model.network
    assert network.shared.weight.shape == (50, 24)
    assert len(network.encoder.block) == len(network.decoder.block) == 2
    attention = network.decoder.block[0].layer[0].SelfAttention
    assert attention.n_heads == 3 and attention.q.weight.shape == (24, 24)
    assert network.encoder.block[0].layer[1].DenseReluDense.wo.weight.shape == (24, 40)
    assert network.training and {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    model.configure_model()
    assert model.network is network


def test_a_width_that_is_not_divisible_by_the_heads_gives_one_sentence() -> None:
    with pytest.raises(BadInput, match=r"^model.d_model is 30: it must be divisible by model.num_heads, which is 4\.$"):
        T5Summarizer(None, d_model=30, num_heads=4)


def test_a_few_summaries_can_be_overfitted(tiny_t5: Path, tmp_path: Path) -> None:
    """An end-to-end check that tokens, loss, generation and metrics are consistent."""
    rows = [["red tree", "a river and a cat"], ["green house", "the dog"], ["one cat", "two"], ["blue", "nine or ten"]]
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "summary"], *rows])
    data = Summarization(str(tmp_path), tokenizer=str(tiny_t5), batch_size=4)
    torch.manual_seed(0)
    size = {**SIZE, "d_model": 32, "d_ff": 64, "dropout": 0.0, "vocab_size": data.vocab_size}
    model = T5Summarizer(None, **size, learning_rate=1e-2, max_new_tokens=20)
    trainer(max_steps=150, max_epochs=-1, limit_val_batches=0).fit(model, data)
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/rougeLsum"] == scores["val/rouge1"] == 1 and scores["val/capped"] == 0
    outputs = [model.predict_step(batch, 0) for batch in data.val_dataloader()]
    assert [output["text"] for output in outputs] == [output["target"] for output in outputs]
