import csv
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn.metrics import rouge_scorer
from project.data.summarization import Summarization
from project.models import t5_summarizer
from project.models.t5_minimum_risk import chances_of, draw
from project.models.t5_summarizer import T5Summarizer

WORDS = ("the", "plot", "of", "a", "good", "film", "was", "dull", "and", "its", "actor", "poor")
SIZE = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 30 words with summaries of 1 to 12, in a training, a validation and a test file."""
    folder, source = tmp_path_factory.mktemp("texts"), random.Random(0)
    for split, size in (("train", 12), ("validation", 9), ("test", 5)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = [[" ".join(source.choices(WORDS, k=source.randint(1, k))) for k in (30, 12)] for _ in range(size)]
            csv.writer(file).writerows([["text", "summary"], *rows])
    return folder


@pytest.fixture(scope="module")
def tiny_bart(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another encoder-decoder, with the tokenizer of the T5; its decoder begins with </s>, token 1."""
    folder = tmp_path_factory.mktemp("tiny_bart")
    for file in tiny_t5.glob("tokenizer*"):
        shutil.copy(file, folder)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=400, d_model=16, max_position_embeddings=64, **layers, **heads, **special)
    config.forced_eos_token_id = None
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["pretrained T5", "new T5", "pretrained BART"])
def made(
    request: pytest.FixtureRequest, folder: Path, tiny_t5: Path, tiny_bart: Path
) -> tuple[T5Summarizer, Summarization]:
    """A model and its data, with batches of 4 examples."""
    pretrained = {"pretrained T5": str(tiny_t5), "pretrained BART": str(tiny_bart), "new T5": None}[request.param]
    return build(folder, pretrained, max_new_tokens=6)


def build(folder: Path, pretrained: Path | str | None, **settings: Any) -> tuple[T5Summarizer, Summarization]:
    name = str(pretrained) if pretrained else None
    data = Summarization(
        str(folder), tokenizer=name, tokenizer_size=300, max_length=40, batch_size=12, evaluation_batch_size=4
    )
    torch.manual_seed(0)
    model = T5Summarizer(name, vocab_size=data.vocab_size, **({} if name else SIZE), **settings)
    model.configure_model()
    return model.eval(), data


def trainer(**settings: Any) -> Trainer:
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    return Trainer(accelerator="cpu", devices=1, **{**off, **settings})


def loader(data: Summarization, split: str = "validation") -> list[dict[str, Any]]:
    data.setup()
    return list({"validation": data.val_dataloader, "train": data.train_dataloader}[split]())


def log_likelihoods(model: T5Summarizer, batch: dict[str, Any]) -> list[float]:
    """Of each token of each summary, one example at a time and without padding."""
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


def test_greedy_summaries_are_the_most_likely_tokens_one_after_the_other(
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
        made_by_model = model.generate(batch)
        assert torch.equal(made_by_model, tokens[:, 1 : 1 + made_by_model.shape[1]])
        assert model.predict_step(batch, 0)["text"] == batch["decode"](tokens[:, 1:])


def test_beam_search_has_the_settings_of_the_model(folder: Path, tiny_t5: Path) -> None:
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
            # log-probabilities of the text's tokens are nearly 0, those of all others about -6; padding stands behind the end only
            written = found[index][: found[index].index(1)] if 1 in found[index] else found[index]
            assert set(written) <= text
            alone = {"input_ids": ids[mask.bool()][None], "attention_mask": mask[mask.bool()][None]}
            one = model.generate(alone)[0].tolist()
            assert one == found[index][: len(one)]
    assert padded and elsewhere


@pytest.mark.parametrize("kind", ["T5", "BART"])
def test_the_hypothesis_that_agrees_with_what_is_drawn_is_taken(
    folder: Path, tiny_t5: Path, tiny_bart: Path, kind: str
) -> None:
    pretrained, beams = {"T5": tiny_t5, "BART": tiny_bart}[kind], {"max_new_tokens": 8, "num_beams": 4}
    model, data = build(folder, pretrained, mbr_samples=6, **beams)
    likeliest, _ = build(folder, pretrained, **beams)
    if kind == "BART":  # some words rather than any bytes
        likely = 5 + 3 * torch.randn(140, generator=torch.Generator().manual_seed(0))
        for one in (model, likeliest):
            one.network.final_logits_bias[0, 260:] = likely
    scorer, others = rouge_scorer(["rouge1"]), 0
    for batch in loader(data):
        found = model.generate(batch)
        assert torch.equal(found, model.generate(batch))
        torch.manual_seed(int(batch["id"][0]))  # which only BART uses
        chances = chances_of(batch["id"], 0, 6, 8)
        drawn = batch["decode"](draw(model.network, batch["input_ids"], batch["attention_mask"], chances, whole=True))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hypotheses = model.network.generate(**inputs, num_return_sequences=4, do_sample=False, **beams)[:, 1:]
        for index, (row, first) in enumerate(zip(found, likeliest.generate(batch), strict=True)):
            mine, theirs = batch["decode"](hypotheses[4 * index : 4 * index + 4]), drawn[6 * index : 6 * index + 6]
            means = [round(sum(s["rouge1"].fmeasure for s in scorer(theirs, [one] * 6)), 9) for one in mine]
            assert torch.equal(row, hypotheses[4 * index + means.index(max(means))])
            others += row.tolist() != first.tolist()
        assert batch["decode"](found) == model.predict_step(batch, 0)["text"]
    assert others


def test_while_it_trains_nothing_is_drawn_for_its_validation(
    folder: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_new_tokens": 8, "num_beams": 4, "dropout": 0.0}
    model, data = build(folder, tiny_t5, mbr_samples=6, **settings)
    likeliest, _ = build(folder, tiny_t5, **settings)
    drawn: list[int] = []
    monkeypatch.setattr(t5_summarizer, "draw", lambda *given: drawn.append(len(given[1])) or draw(*given))
    fits = [trainer(max_steps=1) for _ in range(2)]
    for fit, one in zip(fits, (model, likeliest), strict=True):
        fit.fit(one.train(), data)
    losses = [float(fit.callback_metrics["val/loss"]) for fit in fits]
    assert not drawn and losses[0] == losses[1]
    trainer().validate(model, data, verbose=False)
    assert sum(drawn) == 9


def test_the_settings_of_a_saved_models_cache_do_not_apply_to_beam_search(folder: Path, tiny_t5: Path) -> None:
    model, data = build(folder, tiny_t5, max_new_tokens=8, num_beams=4)
    batch = loader(data)[0]
    expected = model.generate(batch)
    model.network.generation_config.cache_implementation = "static"
    model.network.generation_config.use_cache = model.network.config.use_cache = False
    assert torch.equal(model.generate(batch), expected)


def test_greedy_decoding_leaves_nothing_to_choose_from(tiny_t5: Path) -> None:
    with pytest.raises(
        BadInput, match=r"^model.mbr_samples=8: greedy decoding leaves nothing to choose from; set model.num"
    ):
        T5Summarizer(str(tiny_t5), mbr_samples=8)


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
    assert float(fit.callback_metrics["val/capped"]) == 1 and "attention" not in capsys.readouterr().err
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/capped"] == 1 and scores["val/generated_tokens"] == 2
    warning = "attention: 100% of the summaries reached 2 tokens and were cut there; raise model.max_new_tokens\n"
    assert capsys.readouterr().err.endswith(warning)
    (scores,) = trainer().test(model, data, verbose=False)
    assert scores["test/capped"] == 1 and capsys.readouterr().err.endswith(warning)


@pytest.mark.parametrize(("cut", "warned"), [(0, False), (1, True)])
def test_summaries_that_end_by_themselves_are_not_reported(
    folder: Path,
    tiny_t5: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cut: int,
    warned: bool,
) -> None:
    """Of 9 summaries, some end at once, some with the last token allowed, and `cut` not at all."""
    model, data = build(folder, tiny_t5, max_new_tokens=3)
    rows = [[1, 0, 0], [7, 8, 1]] * 4 + [[7, 8, 9] if cut else [7, 1, 0]]
    monkeypatch.setattr(model, "generate", lambda batch: torch.tensor([rows.pop(0) for _ in batch["id"]]))
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/capped"] == pytest.approx(cut / 9)
    assert scores["val/generated_tokens"] == pytest.approx((4 * 1 + 4 * 3 + (3 if cut else 2)) / 9)
    assert ("attention" in capsys.readouterr().err) == warned


def test_lead_1_comes_with_the_final_scores_only(folder: Path, tiny_t5: Path) -> None:
    model, data = build(folder, tiny_t5, max_new_tokens=2)
    fit = trainer(max_steps=1)
    fit.fit(model.train(), data)
    assert not [name for name in fit.callback_metrics if "lead1" in name] and "val/rougeLsum" in fit.callback_metrics
    (scores,) = trainer().validate(model, data, verbose=False)
    assert {f"val/lead1_rouge{kind}" for kind in ("1", "2", "L", "Lsum")} < set(scores)


@pytest.mark.parametrize("slices", [2, 5])
def test_uneven_micro_batches_add_up_to_the_whole_batch(made: tuple[T5Summarizer, Summarization], slices: int) -> None:
    """The mean over tokens, not over examples: 12 examples in 5 parts, of different numbers of tokens."""
    compare_slices(*made, slices)


@pytest.mark.parametrize("slices", [2, 5])
def test_uneven_micro_batches_draw_what_the_whole_batch_draws(folder: Path, tiny_t5: Path, slices: int) -> None:
    compare_slices(*build(folder, tiny_t5, max_new_tokens=6, risk_samples=2), slices)


def test_the_first_steps_learn_the_targets_and_the_others_the_risk(folder: Path, tiny_t5: Path) -> None:
    settings = {"max_new_tokens": 6, "learning_rate": 1e-9, "likelihood": 0.0}
    losses = {}
    for name, more in {
        "targets": {},
        "both": {"risk_samples": 2, "risk_after": 0.5},
        "risk": {"risk_samples": 2},
    }.items():
        model, data = build(folder, tiny_t5, **settings, **more)
        log: list[float] = []
        model.on_train_batch_end = lambda outputs, *unused, log=log: log.append(float(outputs["loss"]))
        trainer(max_steps=4, max_epochs=-1, limit_val_batches=0).fit(model.train(), data)
        losses[name] = log
    assert losses["both"] == pytest.approx(losses["targets"][:2] + losses["risk"][2:], abs=1e-4)
    assert min(abs(one - other) for one, other in zip(losses["targets"], losses["risk"], strict=True)) > 0.1


def compare_slices(model: T5Summarizer, data: Summarization, slices: int) -> None:
    def gradients(accumulate: int) -> tuple[float, list[torch.Tensor]]:
        data.trainer = trainer(accumulate_grad_batches=accumulate)
        batches = loader(data, "train")
        assert len(batches) == accumulate and (accumulate == 1 or len({batch["size"] for batch in batches}) > 1)
        model.zero_grad()
        losses = [model.training_step(batch, 0) / accumulate for batch in batches]
        sum(losses).backward()
        return float(sum(losses).detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    (whole, expected), (parts, found) = gradients(1), gradients(slices)
    assert parts == pytest.approx(whole, abs=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_a_new_t5_is_made_as_it_is_described() -> None:
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


@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_t5_grows_computes_the_same_and_all_of_it_learns(
    folder: Path, tiny_t5: Path, tmp_path: Path, tied: bool
) -> None:
    if not tied:  # as T5 1.1 is
        other = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float32)
        other.config.tie_word_embeddings = False
        other.lm_head.weight = torch.nn.Parameter(torch.randn_like(other.lm_head.weight))
        other.generation_config.eos_token_id = [1, 7]
        other.save_pretrained(tmp_path)
        for file in tiny_t5.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
        tiny_t5 = tmp_path
    data = Summarization(str(folder), tokenizer=str(tiny_t5), batch_size=4)
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    common = {"dropout": 0.0, "num_beams": 2, "max_new_tokens": 9}
    small, large = models = [
        T5Summarizer(str(tiny_t5), **common, **growth) for growth in ({}, {"grow_encoder": 3, "grow_decoder": 1})
    ]
    for model in models:
        model.configure_model()
    assert (small.network.lm_head.weight is small.network.shared.weight) == tied
    encoder, decoder = large.network.encoder, large.network.decoder
    assert (len(encoder.block), len(decoder.block)) == (5, 3) and len(small.network.encoder.block) == 2
    # 2 layers become 5: three of the first, two of the second
    first, second = (block.layer[0].SelfAttention.q.weight for block in small.network.encoder.block)
    for block, of in zip(encoder.block, (first, first, first, second, second), strict=True):
        torch.testing.assert_close(block.layer[0].SelfAttention.q.weight, of, rtol=0, atol=0)
    torch.testing.assert_close(large(batch), small(batch))
    torch.testing.assert_close(large.generate(batch), small.generate(batch), rtol=0, atol=0)
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2)
    for _ in range(2):  # the first moves only what was zero
        optimizer.zero_grad()
        large(batch).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in large.parameters())


def test_what_cannot_grow_is_one_sentence(tiny_t5: Path, tiny_bart: Path) -> None:
    with pytest.raises(
        BadInput, match=r"^model.grow_decoder=1: only a pretrained T5 can grow; model.num_layers is the layers"
    ):
        T5Summarizer(None, grow_decoder=1)
    with pytest.raises(
        BadInput, match=r"^model.grow_decoder=2: the decoder would have 4 layers, more than the encoder's 3: let "
    ):
        T5Summarizer(str(tiny_t5), grow_encoder=1, grow_decoder=2).configure_model()
    with pytest.raises(
        BadInput, match=r"^model.grow_encoder, model.grow_decoder: a BartForCond\w+ cannot grow, only a T5; set"
    ):
        T5Summarizer(str(tiny_bart), grow_encoder=3).configure_model()


def test_a_width_that_the_heads_cannot_share_is_one_sentence() -> None:
    with pytest.raises(BadInput, match=r"^model.d_model is 30, which 4 heads \(model.num_heads\) cannot share\.$"):
        T5Summarizer(None, d_model=30, num_heads=4)


def test_a_few_summaries_are_learnt_by_heart(tiny_t5: Path, tmp_path: Path) -> None:
    """From text to text: the tokens, the loss, the generation and the scores fit together."""
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
