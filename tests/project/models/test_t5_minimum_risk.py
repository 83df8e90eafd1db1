import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_summarizers import build, compare_slices, loader, trainer
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn import fast_transformers
from litlab.nn.metrics import rouge_scorer
from project.models import t5_minimum_risk
from project.models.t5_minimum_risk import (
    T5MinimumRisk,
    draw,
    expected_risk,
    least_risk,
    reward,
    uniform_numbers,
)
from project.models.t5_summarizer import T5Summarizer

WORDS = ("", "", "red", "blue", "old", "new")  # word of each token; 0 is padding, 1 ends a summary
SIZES = {"vocab_size": len(WORDS), "d_model": 16}


def t5(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**SIZES, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(**{**sizes, "decoder_start_token_id": 0, "dropout_rate": 0.0, **settings})
    made = T5ForConditionalGeneration(config)
    fast_transformers.speed_up(made)
    return made


def bart(**settings: Any) -> Any:
    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
    made = BartForConditionalGeneration(BartConfig(**SIZES, **layers, **heads, **tokens, init_std=0.5, **settings))
    made.final_logits_bias[0, 0] = 1.5  # padding is sampled before the end too, like any other token
    return made


NETWORKS = pytest.mark.parametrize("network", [t5, bart])


def decode(rows: Tensor) -> list[str]:
    return [" ".join(WORDS[token] for token in row if token > 1) for row in rows.tolist()]


def batch() -> dict[str, Any]:
    """A batch of two texts, one of them padded."""
    return {
        "input_ids": torch.tensor([[2, 3, 4, 1], [5, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[2, 3, 1], [4, 1, -100]]),
        "decode": decode,
    }


def log_likelihoods(network: Any, some: dict[str, Any], summaries: Tensor) -> Tensor:
    """The log-likelihood of each summary, up to its end token, (texts, summaries)."""
    found = []
    for row in range(len(some["input_ids"])):
        real = some["attention_mask"][row].bool()
        text = some["input_ids"][row][real].expand(len(summaries), -1)
        logits = network(input_ids=text, labels=summaries.clamp(min=0)).logits.log_softmax(dim=2)
        chosen = logits.gather(2, summaries.clamp(min=0)[..., None])[..., 0]
        found.append((chosen * (summaries >= 0)).sum(dim=1))
    return torch.stack(found)


def all_summaries() -> Tensor:
    """All summaries of at most two tokens, with -100 after the end token."""
    ended = [[1, -100]]
    return torch.tensor(ended + [[first, second] for first in (0, 2, 3, 4, 5) for second in range(len(WORDS))])


@NETWORKS
def test_summaries_are_sampled_with_the_probabilities_of_the_network(network: Callable[[], Any]) -> None:
    made, some, count = network(), batch(), 20_000
    summaries = all_summaries()
    with torch.no_grad():
        expected = log_likelihoods(made, some, summaries).exp()
    assert expected.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-4), "these are all possible summaries"
    torch.manual_seed(1)
    drawn = draw(made, some["input_ids"], some["attention_mask"], torch.rand(2 * count, 2), unsharded=True)
    assert drawn.shape == (2 * count, 2)
    for text, rows in enumerate(drawn.split(count)):
        shares = torch.stack([(rows == summary.clamp(min=0)).all(dim=1).float().mean() for summary in summaries])
        deviation = (expected[text] * (1 - expected[text]) / count).sqrt()
        assert ((shares - expected[text]).abs() < 5 * deviation + 1e-5).all()


@NETWORKS
@pytest.mark.parametrize("count", [2, 5000])
def test_the_loss_and_its_gradient_are_those_of_the_expected_risk(network: Callable[[], Any], count: int) -> None:
    """Exact values over all summaries against the mean of 20,000 samples, many per text or few per text."""
    made, some = network(), batch()
    summaries = all_summaries()
    texts = decode(summaries)
    scores = torch.cat(
        [reward(texts, [target]) for target in decode(some["labels"].clamp(min=0))]
    )  # (texts, summaries)
    probabilities = log_likelihoods(made, some, summaries).exp()
    exact = (probabilities * (1 - scores)).sum() / 5  # tokens of the two targets
    exact.backward()
    expected = {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}
    made.zero_grad()
    torch.manual_seed(2)
    times = 20_000 // count
    many = {name: value.repeat(times, 1) for name, value in some.items() if name != "decode"} | {"decode": decode}
    found = (
        expected_risk(made, many, torch.rand(40_000, 2), likelihood=0.0, unsharded=True) / t5_minimum_risk.RISK_SCALE
    )
    found.backward()
    assert found.item() == pytest.approx(exact.item(), abs=0.005)
    exact_gradient = torch.cat([value.flatten() for value in expected.values()])
    gradient = torch.cat([dict(made.named_parameters())[name].grad.flatten() for name in expected])
    assert exact_gradient.norm() > 1e-3
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.99
    assert float(gradient @ exact_gradient / exact_gradient.square().sum()) == pytest.approx(1, abs=0.05)


@NETWORKS
def test_with_likelihood_one_the_loss_is_that_of_the_targets(network: Callable[[], Any]) -> None:
    made, some = network(), batch()
    usual = made(**{name: some[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    found = expected_risk(made, some, torch.rand(4, 4), likelihood=1.0, unsharded=True)
    assert found.item() == pytest.approx(usual.item(), abs=1e-5)


@pytest.mark.parametrize("unsharded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_on_the_risk_alone_finds_the_targets(unsharded: bool) -> None:
    made, some = t5(), batch()
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    losses = []
    for _ in range(120):
        loss = expected_risk(made, some, torch.rand(64, 4), likelihood=0.0, unsharded=unsharded)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2 and max(losses[-10:]) < 0.8
    texts = decode(draw(made, some["input_ids"], some["attention_mask"], torch.rand(200, 4), unsharded=unsharded))
    assert texts[:100].count("red blue") > 90 and texts[100:].count("old") > 90


def test_the_samples_of_a_text_depend_on_the_step_and_not_on_its_neighbours() -> None:
    made, some = t5(), batch()
    uniforms = [uniform_numbers(torch.tensor(ids), step, 50, 4) for ids, step in (([7, 9], 3), ([9], 3), ([9], 4))]
    assert uniforms[0].min() >= 0 and uniforms[0].max() < 1 and abs(uniforms[0].mean() - 0.5) < 0.1
    assert torch.equal(uniforms[0][50:], uniforms[1]) and not torch.equal(uniforms[1], uniforms[2])
    both = draw(made, some["input_ids"], some["attention_mask"], uniforms[0], unsharded=True)
    alone = {name: some[name][1:, :2] for name in ("input_ids", "attention_mask")}
    one = draw(made, alone["input_ids"], alone["attention_mask"], uniforms[1], unsharded=True)
    assert torch.equal(both[50:], one) and len(one.unique(dim=0)) > 10


def test_sampling_uses_no_dropout_and_training_continues_with_it() -> None:
    made, some, uniforms = t5(dropout_rate=0.5), batch(), torch.rand(200, 4)
    made.encoder.eval()  # like a frozen encoder
    drawn = [draw(made, some["input_ids"], some["attention_mask"], uniforms, unsharded=True) for _ in range(2)]
    assert torch.equal(*drawn) and made.decoder.block[0].training and not made.encoder.block[0].training


@NETWORKS
def test_in_bfloat16_every_weight_has_its_gradient(network: Callable[[], Any]) -> None:
    gradients = []
    for mixed in (False, True):
        made, some = network(), batch()
        rows = torch.tensor([[2, 1], [3, 4], [4, 1], [5, 5]])
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            torch.manual_seed(4)
            # in autocast, sampling casts weights without gradients
            draw(made, some["input_ids"], some["attention_mask"], torch.rand(4, 2), unsharded=True)
            patch.setattr(t5_minimum_risk, "draw", lambda *arguments, rows=rows: rows)
            loss = expected_risk(made, some, torch.rand(4, 2), likelihood=0.5, unsharded=True)
        loss.backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    assert all(value is not None for value in gradients[1].values())
    one, other = (torch.cat([value.flatten() for value in some.values()]) for some in gradients)
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


def test_the_models_own_generation_settings_are_not_used() -> None:
    made, some = bart(), batch()
    made.generation_config.suppress_tokens = [2, 3]
    made.generation_config.min_new_tokens = 3
    drawn = draw(made, some["input_ids"], some["attention_mask"], torch.rand(400, 4), unsharded=True)
    assert {2, 3} < set(drawn.flatten().tolist()) and (drawn[:, 0] == 1).any()
    assert made.generation_config.suppress_tokens == [2, 3]


def test_rewards_are_three_quarters_rouge_1_and_one_quarter_l() -> None:
    found = reward(["red old", "blue red", "new", "old new"], ["red blue", "new old"])
    # "red old": one of two words; "blue red" and "old new": both words, one in order; "new": F1 is 2/3
    assert found.tolist() == [pytest.approx([0.5, 0.875]), pytest.approx([2 / 3, 0.875])]


def test_the_least_risk_is_the_highest_mean_rouge_1() -> None:
    source, words = random.Random(0), ("reads", "reading", "a", "the", "File", "files", "lists", "of")
    hypotheses, drawn = (
        [" ".join(source.choices(words, k=source.randint(0, 6))) for _ in range(20 * count)] for count in (4, 7)
    )
    scorer, expected = rouge_scorer(["rouge1"]), []
    for text in range(20):
        of_text = drawn[7 * text : 7 * text + 7]
        means = [
            sum(found["rouge1"].fmeasure for found in scorer(of_text, [hypothesis] * 7))
            for hypothesis in hypotheses[4 * text : 4 * text + 4]
        ]
        expected.append(4 * text + max(range(4), key=lambda which, means=means: round(means[which], 9)))
    assert least_risk(hypotheses, drawn, 20).tolist() == expected
    assert len({which % 4 for which in expected}) == 4


def test_the_most_probable_of_several_hypotheses_with_equal_risk_is_chosen() -> None:
    assert least_risk(["红", "蓝", "blue red", "red blue"], ["红", "蓝", "red", "blue"], 2).tolist() == [0, 2]


def test_the_decoder_is_called_with_few_widths() -> None:
    made, some = t5(), batch()
    widths = set()
    made.decoder.register_forward_hook(
        lambda module, inputs, named, output: widths.add(named["input_ids"].shape[1]), with_kwargs=True
    )
    for _ in range(10):
        expected_risk(made, some, torch.rand(20, 10), likelihood=0.5, unsharded=True)
    assert widths == {4, 8, 10}


def test_summaries_may_use_all_positions_of_the_model() -> None:
    made, some = bart(max_position_embeddings=6), batch()
    some["labels"] = torch.tensor([[2, 3, 2, 3, 2, 1], [4, 1, -100, -100, -100, -100]])
    assert expected_risk(made, some, torch.rand(4, 6), likelihood=0.5, unsharded=True).isfinite()


def test_equal_summaries_give_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made, some = t5(), batch()
    rows = some["labels"].clamp(min=0).repeat_interleave(3, dim=0)
    monkeypatch.setattr(t5_minimum_risk, "draw", lambda *arguments: rows)
    loss = expected_risk(made, some, torch.rand(6, 4), likelihood=0.0, unsharded=True)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(float(p.grad.abs().max()) < 1e-7 for p in made.parameters() if p.grad is not None)


def test_a_single_sample_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(BadInput, match=r"^model.risk_samples=1: minimum risk training compares summaries"):
        T5MinimumRisk(pretrained=str(tiny_t5), risk_samples=1)


@pytest.mark.parametrize("kind", ["T5", "BART"])
def test_the_hypothesis_that_agrees_most_with_the_samples_is_chosen(
    folder: Path, tiny_t5: Path, tiny_bart: Path, kind: str
) -> None:
    pretrained, beams = {"T5": tiny_t5, "BART": tiny_bart}[kind], {"max_new_tokens": 8, "num_beams": 4}
    model, data = build(folder, pretrained, T5MinimumRisk, mbr_samples=6, **beams)
    plain, _ = build(folder, pretrained, **beams)
    if kind == "BART":  # raise the probability of words over bytes
        likely = 5 + 3 * torch.randn(140, generator=torch.Generator().manual_seed(0))
        for one in (model, plain):
            one.network.final_logits_bias[0, 260:] = likely
    scorer, others = rouge_scorer(["rouge1"]), 0
    for batch in loader(data):
        found = model.generate(batch)
        assert torch.equal(found, model.generate(batch))
        torch.manual_seed(int(batch["id"][0]))  # only BART uses the global generator
        uniforms = uniform_numbers(batch["id"], 0, 6, 8)
        drawn = batch["decode"](
            draw(model.network, batch["input_ids"], batch["attention_mask"], uniforms, unsharded=True)
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hypotheses = model.network.generate(**inputs, num_return_sequences=4, do_sample=False, **beams)[:, 1:]
        for index, (row, first) in enumerate(zip(found, plain.generate(batch), strict=True)):
            mine, theirs = batch["decode"](hypotheses[4 * index : 4 * index + 4]), drawn[6 * index : 6 * index + 6]
            means = [round(sum(s["rouge1"].fmeasure for s in scorer(theirs, [one] * 6)), 9) for one in mine]
            assert torch.equal(row, hypotheses[4 * index + means.index(max(means))])
            others += row.tolist() != first.tolist()
        assert batch["decode"](found) == model.predict_step(batch, 0)["text"]
    assert others


def test_no_samples_are_drawn_for_validation_during_training(
    folder: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_new_tokens": 8, "num_beams": 4, "dropout": 0.0}
    model, data = build(folder, tiny_t5, T5MinimumRisk, risk_samples=0, mbr_samples=6, **settings)
    plain, _ = build(folder, tiny_t5, **settings)
    drawn: list[int] = []
    monkeypatch.setattr(t5_minimum_risk, "draw", lambda *given: drawn.append(len(given[1])) or draw(*given))
    fits = [trainer(max_steps=1) for _ in range(2)]
    for fit, one in zip(fits, (model, plain), strict=True):
        fit.fit(one.train(), data)
    losses = [float(fit.callback_metrics["val/loss"]) for fit in fits]
    assert not drawn and losses[0] == losses[1]
    trainer().validate(model, data, verbose=False)
    assert sum(drawn) == 9


def test_minimum_bayes_risk_with_greedy_decoding_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(BadInput, match=r"^model.mbr_samples=8: greedy decoding has one hypothesis only; set model.num"):
        T5MinimumRisk(pretrained=str(tiny_t5), mbr_samples=8)


@pytest.mark.parametrize("slices", [2, 5])
def test_uneven_micro_batches_draw_the_same_samples_as_the_whole_batch(
    folder: Path, tiny_t5: Path, slices: int
) -> None:
    compare_slices(*build(folder, tiny_t5, T5MinimumRisk, max_new_tokens=6, risk_samples=2), slices)


def test_the_first_steps_train_on_the_targets_and_the_others_on_the_risk(folder: Path, tiny_t5: Path) -> None:
    settings = {"max_new_tokens": 6, "learning_rate": 1e-9, "likelihood": 0.0}
    losses = {}
    for name, more in {
        "targets": {"risk_samples": 0},
        "both": {"risk_samples": 2, "risk_after": 0.5},
        "risk": {"risk_samples": 2},
    }.items():
        model, data = build(folder, tiny_t5, T5MinimumRisk, **settings, **more)
        log: list[float] = []
        model.on_train_batch_end = lambda outputs, *unused, log=log: log.append(float(outputs["loss"]))
        trainer(max_steps=4, max_epochs=-1, limit_val_batches=0).fit(model.train(), data)
        losses[name] = log
    assert losses["both"] == pytest.approx(losses["targets"][:2] + losses["risk"][2:], abs=1e-4)
    assert min(abs(one - other) for one, other in zip(losses["targets"], losses["risk"], strict=True)) > 0.1


def test_without_its_own_options_it_equals_its_parent_class(folder: Path, tiny_t5: Path) -> None:
    settings = {"max_new_tokens": 8, "num_beams": 4}
    model, data = build(folder, tiny_t5, T5MinimumRisk, risk_samples=0, **settings)
    plain, _ = build(folder, tiny_t5, **settings)
    for batch in loader(data, "train"):
        assert torch.equal(model.training_step(batch, 0), plain.training_step(batch, 0))
        assert torch.equal(model.generate(batch), plain.generate(batch))


def test_its_hyperparameters_include_those_of_its_parent(tiny_t5: Path) -> None:
    model = T5MinimumRisk(pretrained=str(tiny_t5), num_beams=4, mbr_samples=3)
    own = {"risk_samples": 4, "risk_after": 0.0, "likelihood": 0.1, "mbr_samples": 3}
    inherited = T5Summarizer(pretrained=str(tiny_t5), num_beams=4).hparams
    assert dict(model.hparams) == {**inherited, **own}
