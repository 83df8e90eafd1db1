import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn import fast_transformers
from litlab.nn.metrics import rouge_scorer
from project.models import t5_minimum_risk
from project.models.t5_minimum_risk import chances_of, draw, expected_risk, least_risk, score
from project.models.t5_summarizer import T5Summarizer

WORDS = ("", "", "red", "blue", "old", "new")  # of the tokens; 0 is padding, 1 ends a summary
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
    made.final_logits_bias[0, 0] = 1.5  # padding is drawn before the end too, as any other token
    return made


NETWORKS = pytest.mark.parametrize("network", [t5, bart])


def decode(rows: Tensor) -> list[str]:
    return [" ".join(WORDS[token] for token in row if token > 1) for row in rows.tolist()]


def batch() -> dict[str, Any]:
    """Two texts, of which one is padded."""
    return {
        "input_ids": torch.tensor([[2, 3, 4, 1], [5, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[2, 3, 1], [4, 1, -100]]),
        "decode": decode,
    }


def log_likelihoods(network: Any, some: dict[str, Any], summaries: Tensor) -> Tensor:
    """Of the tokens up to the end of each of the summaries, (texts, summaries)."""
    found = []
    for row in range(len(some["input_ids"])):
        real = some["attention_mask"][row].bool()
        text = some["input_ids"][row][real].expand(len(summaries), -1)
        logits = network(input_ids=text, labels=summaries.clamp(min=0)).logits.log_softmax(dim=2)
        chosen = logits.gather(2, summaries.clamp(min=0)[..., None])[..., 0]
        found.append((chosen * (summaries >= 0)).sum(dim=1))
    return torch.stack(found)


def all_summaries() -> Tensor:
    """Every summary of at most two tokens, -100 behind its end."""
    ended = [[1, -100]]
    return torch.tensor(ended + [[first, second] for first in (0, 2, 3, 4, 5) for second in range(len(WORDS))])


@NETWORKS
def test_summaries_are_drawn_with_the_networks_own_probabilities(network: Callable[[], Any]) -> None:
    made, some, count = network(), batch(), 20_000
    summaries = all_summaries()
    with torch.no_grad():
        expected = log_likelihoods(made, some, summaries).exp()
    assert expected.sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-4), "nothing else can be drawn"
    torch.manual_seed(1)
    drawn = draw(made, some["input_ids"], some["attention_mask"], torch.rand(2 * count, 2), whole=True)
    assert drawn.shape == (2 * count, 2)
    for text, rows in enumerate(drawn.split(count)):
        shares = torch.stack([(rows == summary.clamp(min=0)).all(dim=1).float().mean() for summary in summaries])
        deviation = (expected[text] * (1 - expected[text]) / count).sqrt()
        assert ((shares - expected[text]).abs() < 5 * deviation + 1e-5).all()


@NETWORKS
@pytest.mark.parametrize("count", [2, 5000])
def test_the_loss_is_the_expected_risk_and_so_is_its_gradient(network: Callable[[], Any], count: int) -> None:
    """Both exactly known, over all summaries, and as the mean of 20,000 draws, many of one batch or few of each."""
    made, some = network(), batch()
    summaries = all_summaries()
    texts = decode(summaries)
    scores = torch.cat([score(texts, [target]) for target in decode(some["labels"].clamp(min=0))])  # (texts, summaries)
    probabilities = log_likelihoods(made, some, summaries).exp()
    exact = (probabilities * (1 - scores)).sum() / 5  # tokens of the two targets
    exact.backward()
    expected = {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}
    made.zero_grad()
    torch.manual_seed(2)
    times = 20_000 // count
    many = {name: value.repeat(times, 1) for name, value in some.items() if name != "decode"} | {"decode": decode}
    found = expected_risk(made, many, torch.rand(40_000, 2), likelihood=0.0, whole=True) / t5_minimum_risk.SCALE
    found.backward()
    assert found.item() == pytest.approx(exact.item(), abs=0.005)
    exact_gradient = torch.cat([value.flatten() for value in expected.values()])
    gradient = torch.cat([dict(made.named_parameters())[name].grad.flatten() for name in expected])
    assert exact_gradient.norm() > 1e-3
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.99
    assert float(gradient @ exact_gradient / exact_gradient.square().sum()) == pytest.approx(1, abs=0.05)


@NETWORKS
def test_with_a_share_of_one_the_loss_is_that_of_the_targets(network: Callable[[], Any]) -> None:
    made, some = network(), batch()
    usual = made(**{name: some[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    found = expected_risk(made, some, torch.rand(4, 4), likelihood=1.0, whole=True)
    assert found.item() == pytest.approx(usual.item(), abs=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_training_on_the_risk_alone_finds_the_targets(whole: bool) -> None:
    made, some = t5(), batch()
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(300):
        loss = expected_risk(made, some, torch.rand(32, 4), likelihood=0.0, whole=whole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2 and max(losses[-10:]) < 0.8
    texts = decode(draw(made, some["input_ids"], some["attention_mask"], torch.rand(200, 4), whole=whole))
    assert texts[:100].count("red blue") > 90 and texts[100:].count("old") > 90


def test_what_is_drawn_of_a_text_depends_on_the_step_and_not_on_its_neighbours() -> None:
    made, some = t5(), batch()
    chances = [chances_of(torch.tensor(ids), step, 50, 4) for ids, step in (([7, 9], 3), ([9], 3), ([9], 4))]
    assert chances[0].min() >= 0 and chances[0].max() < 1 and abs(chances[0].mean() - 0.5) < 0.1
    assert torch.equal(chances[0][50:], chances[1]) and not torch.equal(chances[1], chances[2])
    both = draw(made, some["input_ids"], some["attention_mask"], chances[0], whole=True)
    alone = {name: some[name][1:, :2] for name in ("input_ids", "attention_mask")}
    one = draw(made, alone["input_ids"], alone["attention_mask"], chances[1], whole=True)
    assert torch.equal(both[50:], one) and len(one.unique(dim=0)) > 10


def test_what_is_drawn_knows_no_dropout_and_training_goes_on_with_it() -> None:
    made, some, chances = t5(dropout_rate=0.5), batch(), torch.rand(200, 4)
    made.encoder.eval()  # as one that is frozen
    drawn = [draw(made, some["input_ids"], some["attention_mask"], chances, whole=True) for _ in range(2)]
    assert torch.equal(*drawn) and made.decoder.block[0].training and not made.encoder.block[0].training


@NETWORKS
def test_in_bfloat16_every_weight_has_its_gradient(network: Callable[[], Any]) -> None:
    gradients = []
    for mixed in (False, True):
        made, some = network(), batch()
        rows = torch.tensor([[2, 1], [3, 4], [4, 1], [5, 5]])
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            torch.manual_seed(4)
            draw(
                made, some["input_ids"], some["attention_mask"], torch.rand(4, 2), whole=True
            )  # casts weights without gradients
            patch.setattr(minimum_risk, "draw", lambda *arguments, rows=rows: rows)
            loss = expected_risk(made, some, torch.rand(4, 2), likelihood=0.5, whole=True)
        loss.backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    assert all(value is not None for value in gradients[1].values())
    one, other = (torch.cat([value.flatten() for value in some.values()]) for some in gradients)
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


def test_a_models_own_settings_of_generation_do_not_apply() -> None:
    made, some = bart(), batch()
    made.generation_config.suppress_tokens = [2, 3]
    made.generation_config.min_new_tokens = 3
    drawn = draw(made, some["input_ids"], some["attention_mask"], torch.rand(400, 4), whole=True)
    assert {2, 3} < set(drawn.flatten().tolist()) and (drawn[:, 0] == 1).any()
    assert made.generation_config.suppress_tokens == [2, 3]


def test_scores_are_three_quarters_rouge_1_and_one_quarter_l() -> None:
    found = score(["red old", "blue red", "new", "old new"], ["red blue", "new old"])
    # red of "red blue" is one of two words both ways; of "blue red" both words, but one in order; F 2/3; both words, one in order
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


def test_of_hypotheses_with_the_same_risk_the_likeliest_is_taken() -> None:
    assert least_risk(["红", "蓝", "blue red", "red blue"], ["红", "蓝", "red", "blue"], 2).tolist() == [0, 2]


def test_the_network_sees_few_widths() -> None:
    made, some = t5(), batch()
    widths = set()
    made.decoder.register_forward_hook(
        lambda module, inputs, named, output: widths.add(named["input_ids"].shape[1]), with_kwargs=True
    )
    for _ in range(10):
        expected_risk(made, some, torch.rand(20, 10), likelihood=0.5, whole=True)
    assert widths == {4, 8, 10}


def test_summaries_may_be_as_long_as_there_are_positions() -> None:
    made, some = bart(max_position_embeddings=6), batch()
    some["labels"] = torch.tensor([[2, 3, 2, 3, 2, 1], [4, 1, -100, -100, -100, -100]])
    assert expected_risk(made, some, torch.rand(4, 6), likelihood=0.5, whole=True).isfinite()


def test_equal_summaries_have_nothing_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    made, some = t5(), batch()
    rows = some["labels"].clamp(min=0).repeat_interleave(3, dim=0)
    monkeypatch.setattr(minimum_risk, "draw", lambda *arguments: rows)
    loss = expected_risk(made, some, torch.rand(6, 4), likelihood=0.0, whole=True)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(float(p.grad.abs().max()) < 1e-7 for p in made.parameters() if p.grad is not None)


def test_one_summary_has_nothing_to_compare_with(tiny_t5: Path) -> None:
    with pytest.raises(BadInput, match=r"^model.risk_samples=1: one summary has no other to be better than; draw at"):
        T5Summarizer(str(tiny_t5), risk_samples=1)
