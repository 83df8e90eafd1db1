import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from litlab.errors import BadInput
from litlab.training.throughput import sizes
from project.data.text_classification import TextClassification
from project.models.bert_classifier import BertClassifier

TEXTS = [
    "a good film",
    "the plot was dull, and the actor poor",
    "great",
    "the worst movie of two thousand",
    "fine story",
]


def built(folder: Path, **settings: Any) -> BertClassifier:
    torch.manual_seed(0)
    model = BertClassifier(str(folder), **settings)
    model.configure_model()
    return model.eval()


def sensitive(folder: Path) -> BertClassifier:
    """A model with large weights, so that every change of the input changes the logits visibly."""
    model = built(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 10
    return model


def batch(folder: Path, texts: list[str], *pairs: list[str], **more: Any) -> dict[str, Any]:
    tokens = AutoTokenizer.from_pretrained(folder)(texts, *pairs, padding=True, return_tensors="pt")
    return {"id": torch.arange(len(texts)), "target": torch.arange(len(texts)) % 2, "weight": 1.0, **tokens, **more}


def trainer(**settings: Any) -> Trainer:
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    return Trainer(accelerator="cpu", devices=1, **{**off, **settings})


def write(file: Path, texts: list[str], labels: list[str]) -> Path:
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([["text", "second", "label"], *zip(texts, reversed(texts), labels, strict=True)])
    return file


def test_the_loss_is_the_mean_cross_entropy_times_the_weight(tiny_bert: Path) -> None:
    model, data = built(tiny_bert), batch(tiny_bert, TEXTS)
    expected = F.cross_entropy(model(data), data["target"])
    assert torch.allclose(model.training_step(data, 0), expected)
    assert torch.allclose(model.training_step({**data, "weight": 0.25}, 0), expected / 4)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer here
def test_label_smoothing_is_used_in_the_training_loss_only(tiny_bert: Path) -> None:
    model, data = built(tiny_bert, label_smoothing=0.2), batch(tiny_bert, TEXTS)
    logits = model(data)
    smooth = 0.8 * F.cross_entropy(logits, data["target"]) - 0.2 * logits.log_softmax(1).mean()
    assert torch.allclose(model.training_step(data, 0), smooth, atol=1e-6)
    model._evaluate(data, "val")
    assert torch.allclose(model.loss["val"].compute(), F.cross_entropy(logits, data["target"]))


def test_padding_does_not_change_a_texts_logits(tiny_bert: Path) -> None:
    model, data = sensitive(tiny_bert), batch(tiny_bert, TEXTS)
    alone = torch.cat([model(batch(tiny_bert, [text])) for text in TEXTS])
    assert torch.allclose(model(data), alone, atol=1e-5)
    everywhere = {**data, "attention_mask": torch.ones_like(data["attention_mask"])}
    assert not torch.allclose(model(everywhere), alone, atol=0.1)


def test_the_model_gets_the_token_types_of_a_pair(tiny_bert: Path) -> None:
    model, data = sensitive(tiny_bert), batch(tiny_bert, TEXTS, TEXTS[::-1])
    assert data["token_type_ids"].any()
    as_one = {**data, "token_type_ids": torch.zeros_like(data["token_type_ids"])}
    assert not torch.allclose(model(data), model(as_one), atol=0.1)


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
def test_the_steps_return_the_step_contract(tiny_bert: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = built(tiny_bert), batch(tiny_bert, TEXTS, source=TEXTS)
    for method in ("log", "log_dict"):
        monkeypatch.setattr(model, method, lambda *arguments: None)
    output = getattr(model, step)(data, 0)
    assert set(output) == {"id", "source", "target", "prediction", "probabilities"}
    assert torch.equal(output["id"], data["id"]) and torch.equal(output["target"], data["target"])
    assert output["source"] == TEXTS
    assert torch.equal(output["prediction"], model(data).argmax(1))
    assert torch.allclose(output["probabilities"], model(data).softmax(1))


def test_a_pretrained_network_is_trained_with_its_dropout_and_evaluated_without(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    model, data = BertClassifier(str(tiny_bert)), batch(tiny_bert, TEXTS)
    model.configure_model()
    first, second = model(data), model(data)
    assert not torch.allclose(first, second)
    assert torch.equal(model.eval()(data), model(data))


def test_the_network_is_loaded_once(tiny_bert: Path) -> None:
    model = built(tiny_bert)
    network = model.network
    model.configure_model()
    assert model.network is network


def test_a_new_head_has_as_many_classes_as_the_data_and_the_encoder_stays(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "five")
    five = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=5)
    five.save_pretrained(tmp_path / "five")
    model = built(tmp_path / "five", num_classes=3)
    assert model(batch(tiny_bert, TEXTS)).shape == (5, 3)
    assert "new weights in BertForSequenceClassification: classifier.bias, classifier.weight" in capsys.readouterr().err
    state = model.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in five.state_dict().items() if "classifier" not in name)


def test_a_head_of_the_right_size_is_kept(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_bert, tmp_path / "three")
    three = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    model = built(tmp_path / "three", num_classes=3)
    assert torch.equal(model.network.classifier.weight, three.classifier.weight)
    assert "new weights" not in capsys.readouterr().err


def distilbert(tiny_bert: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    DistilBertModel(
        DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=2, n_heads=2)
    ).save_pretrained(folder)


def roberta(tiny_bert: Path, folder: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = RobertaTokenizer({t: n for n, t in enumerate([*special, "Ġ", *"abcdefghijklmnopqrstuvwxyz,"])}, [])
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), **size, max_position_embeddings=66, type_vocab_size=1)
    ).save_pretrained(folder)


def bert_with_head(tiny_bert: Path, folder: Path) -> None:
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)


@pytest.mark.parametrize("pairs", [None, "second"], ids=["texts", "pairs"])
@pytest.mark.parametrize("make", [bert_with_head, distilbert, roberta])
def test_any_encoder_trains_and_its_validation_loss_equals_a_direct_call(
    tiny_bert: Path, tmp_path: Path, make: Any, pairs: str | None
) -> None:
    torch.manual_seed(0)
    make(tiny_bert, tmp_path / "model")
    texts = [f"{text} {number}" for text in TEXTS for number in ("one", "two", "three", "four", "five", "six")]
    source = write(
        tmp_path / "reviews.csv", texts, [("bad", "good", "mixed")[number % 3] for number in range(len(texts))]
    )
    data = TextClassification(
        str(source), text_pair=pairs, tokenizer=str(tmp_path / "model"), batch_size=8, evaluation_batch_size=2
    )
    model = BertClassifier(str(tmp_path / "model"), num_classes=data.num_classes)
    fit = trainer(max_steps=2, limit_val_batches=0)
    fit.fit(model, data)
    assert fit.global_step == 2
    fresh = built(tmp_path / "model", num_classes=3).state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}
    assert any("layer.1." in name for name in changed) and any("classifier" in name for name in changed)
    model.eval()
    batches = list(data.val_dataloader())
    assert len(batches) == 2
    with torch.no_grad():
        losses = torch.cat([F.cross_entropy(model(part), part["target"], reduction="none") for part in batches])
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/loss"] == pytest.approx(float(losses.mean()), abs=1e-6)


def test_a_few_texts_can_be_overfitted(tiny_bert: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", TEXTS, ["good", "bad", "good", "bad", "good"])
    for split in ("validation", "test"):
        shutil.copy(tmp_path / "train.csv", tmp_path / f"{split}.csv")
    data = TextClassification(str(tmp_path), tokenizer=str(tiny_bert), batch_size=5)
    torch.manual_seed(0)
    model = BertClassifier(str(tiny_bert), learning_rate=3e-3, schedule="constant", warmup=0.0)
    fit = trainer(max_steps=40, max_epochs=-1, limit_val_batches=0)
    fit.fit(model, data)
    (scores,) = trainer().validate(model, data, verbose=False)
    assert scores["val/loss"] < 0.01
    assert {scores[f"val/{name}"] for name in ("accuracy", "precision", "recall", "f1", "roc_auc")} == {1.0}


def train(folder: Path, tmp_path: Path, **settings: Any) -> tuple[BertClassifier, dict[str, float]]:
    """Train on texts of 3 to 40 words for two epochs without dropout, and evaluate."""
    texts = [" ".join([TEXTS[number % 5]] * (1 + number % 9)) for number in range(50)]
    source = write(tmp_path / "reviews.csv", texts, ["good", "bad"] * 25)
    data = TextClassification(str(source), tokenizer=str(folder), batch_size=8, evaluation_batch_size=3)
    model = built(folder, learning_rate=1e-3, **settings).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer(max_epochs=2, limit_val_batches=2, enable_checkpointing=False).fit(model, data)
    (scores,) = trainer().validate(model, data, verbose=False)
    return model, scores


def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes, with a backend that does not change them."""
    made: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile(call, backend=count, **options))
    return made


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("compile", [pytest.param(True, marks=pytest.mark.slow), False])
def test_padding_free_and_compiled_trainings_give_the_same_weights_as_a_plain_one(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padding_free: bool, compile: bool
) -> None:
    plain, expected = train(tiny_bert, tmp_path)
    made = counted(monkeypatch)
    model, scores = train(tiny_bert, tmp_path, padding_free=padding_free, compile=compile)
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.allclose(value, state[name], rtol=0, atol=1e-4) for name, value in plain.state_dict().items())
    assert scores == pytest.approx(expected, abs=1e-4)
    assert 0 < len(made) <= 6 if compile else not made, "validation is not compiled"


def test_throughput_counts_the_tokens_that_are_computed(tiny_bert: Path) -> None:
    data = batch(tiny_bert, TEXTS)
    real = int(data["attention_mask"].sum())
    packed = built(tiny_bert, padding_free=True).on_before_batch_transfer(data, 0)
    rounded = built(tiny_bert, padding_free=True, compile=True).train().on_before_batch_transfer(data, 0)
    assert sizes(packed, False) == (5, real, real)
    assert sizes(rounded, False) == (5, real, 160)


def test_padding_free_needs_a_bert(tiny_bert: Path, tmp_path: Path) -> None:
    distilbert(tiny_bert, tmp_path)
    with pytest.raises(BadInput, match="a DistilBertForSequenceClassification, not a BERT"):
        built(tmp_path, padding_free=True)
