"""The models and data modules with Lightning's own Trainer, as in a notebook."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything


def reviews(folder: Path) -> str:
    """Write forty short texts that end with their label, and return the path of the file."""
    random = np.random.default_rng(0)
    rows = (f"{' '.join(random.choice(WORDS.split(), 8))} {word},{word}" for word in ["good", "bad"] * 20)
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return str(folder / "reviews.csv")


def mnist(folder: Path, request: pytest.FixtureRequest) -> tuple[LightningModule, LightningDataModule]:
    from project.data.mnist import MNIST
    from project.models.mnist_mlp import MnistMLP

    data = MNIST(source=str(request.getfixturevalue("idx_folder")), batch_size=64, validation_size=100)
    return MnistMLP(hidden=16, learning_rate=1e-2), data


def bert(folder: Path, request: pytest.FixtureRequest) -> tuple[LightningModule, LightningDataModule]:
    from project.data.text_classification import TextClassification
    from project.models.bert_classifier import BertClassifier

    pretrained = str(request.getfixturevalue("tiny_bert"))
    data = TextClassification(source=reviews(folder), tokenizer=pretrained, max_length=32, batch_size=8)
    return BertClassifier(pretrained=pretrained, num_classes=2, learning_rate=3e-3), data


def t5(folder: Path, request: pytest.FixtureRequest) -> tuple[LightningModule, LightningDataModule]:
    from project.data.summarization import Summarization
    from project.models.t5_summarizer import T5Summarizer

    pretrained = str(request.getfixturevalue("tiny_t5"))
    data = Summarization(source=reviews(folder), summary="label", tokenizer=pretrained, max_length=32, batch_size=8)
    return T5Summarizer(pretrained=pretrained, max_new_tokens=4, learning_rate=1e-2), data


def t5_risk(folder: Path, request: pytest.FixtureRequest) -> tuple[LightningModule, LightningDataModule]:
    from project.models.t5_minimum_risk import T5MinimumRisk

    pretrained = str(request.getfixturevalue("tiny_t5"))
    _, data = t5(folder, request)
    options: dict[str, Any] = {"risk_samples": 2, "mbr_samples": 2, "num_beams": 2, "max_new_tokens": 4}
    return T5MinimumRisk(pretrained=pretrained, learning_rate=1e-2, **options), data


@pytest.mark.parametrize("build", [mnist, bert, t5, t5_risk], ids=lambda build: build.__name__)
def test_lightnings_own_trainer_fits_validates_tests_and_predicts(
    build: Any, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)

    def trainer_of(epochs: int) -> Trainer:
        return Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=tmp_path, **options)

    seed_everything(0)
    untrained, data = build(tmp_path, request)
    before = trainer_of(1).validate(untrained, datamodule=data, verbose=False)[0]["val/loss"]
    seed_everything(0)
    (module, data), trainer = build(tmp_path, request), trainer_of(8)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/loss"] < before
    assert {"test/loss"} <= trainer.test(module, datamodule=data, verbose=False)[0].keys()
    outputs: Any = trainer.predict(module, dataloaders=data.val_dataloader())
    assert outputs and all(torch.is_tensor(batch["id"]) and len(batch) > 1 for batch in outputs)
