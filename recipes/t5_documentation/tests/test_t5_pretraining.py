"""T5Pretraining under Lightning's own Trainer, without and with the callback that exports the trained network."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from small_summarizers import SIZE, trainer

from litlab.errors import BadInput
from litlab.sources import pretrained
from project.models.mnist_mlp import MnistMLP
from project.models.t5_summarizer import T5Summarizer
from recipes.t5_documentation.pretrained_model import PretrainedModel
from recipes.t5_documentation.span_corruption import SpanCorruption
from recipes.t5_documentation.t5_pretraining import T5Pretraining


@pytest.fixture
def made(files_made: list[str]) -> tuple[T5Pretraining, SpanCorruption]:
    """A small model and its data; the last validation batch is smaller than the others."""
    data = SpanCorruption(validation=0.3, tokenizer_size=400, input_length=16, batch_size=8, evaluation_batch_size=5)
    torch.manual_seed(0)
    return T5Pretraining(**SIZE, vocab_size=data.vocab_size, learning_rate=0.1), data


def test_validation_is_the_mean_over_all_tokens(made: tuple[T5Pretraining, SpanCorruption]) -> None:
    model, data = made
    (found,) = trainer().validate(model, data, verbose=False)
    losses, right = [], []
    for batch in data.val_dataloader():
        with torch.no_grad():
            logits = model.network(input_ids=batch["input_ids"], labels=batch["labels"]).logits
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"))
        right.append((logits.argmax(dim=2) == batch["labels"]).float().flatten())
    assert len(losses) > 1 and len(losses[-1]) < len(losses[0])
    assert found["val/loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert found["val/accuracy"] == pytest.approx(torch.cat(right).mean().item(), rel=1e-5)


def fit(model: Any, data: Any, folder: Path, **settings: Any) -> Trainer:
    fit = trainer(callbacks=[PretrainedModel()], default_root_dir=folder, max_epochs=2, **settings)
    fit.fit(model, data)
    return fit


def test_the_trained_network_and_its_tokenizer_are_written_once_and_can_be_loaded(
    made: tuple[T5Pretraining, SpanCorruption], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / ".model.killed" / "model").mkdir(parents=True)  # left behind by a process that was killed during the export
    model, data = made
    fit(model, data, run)
    assert [file.name for file in run.iterdir()] == ["model"]
    weights = load_file(run / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weight, model.network.state_dict()[name].bfloat16()) for name, weight in weights.items())
    summarizer = T5Summarizer(str(run / "model"))
    summarizer.configure_model()
    assert summarizer.network.config.num_layers == SIZE["num_layers"]
    tokenizer = pretrained.load_tokenizer(str(run / "model"))
    assert tokenizer("the red cat").input_ids == data.tokenizer("the red cat").input_ids
    before = model.network.shared.weight.detach().clone()
    fit(model, data, run)  # training again replaces the folder
    after = load_file(run / "model" / "model.safetensors")["shared.weight"]
    assert not torch.equal(after, before.bfloat16()) and torch.equal(after, model.network.shared.weight.bfloat16())


def test_a_network_that_cannot_be_exported_is_refused_before_training(
    made: tuple[T5Pretraining, SpanCorruption], tmp_path: Path, idx_folder: Path
) -> None:
    from project.data.mnist import MNIST

    images = MNIST(source=str(idx_folder), validation_size=100)
    with pytest.raises(
        BadInput, match=r"^the callback PretrainedModel cannot export MnistMLP: it needs a transformers mod"
    ):
        fit(MnistMLP(), images, tmp_path)


def test_a_folder_with_other_contents_is_not_replaced(
    made: tuple[T5Pretraining, SpanCorruption], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"would replace .*/model, which does not contain a model: move it elsewhere\.$"):
        fit(*made, tmp_path)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
