"""Small summarizers and their data, for tests of T5Summarizer and its subclasses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from project.data.summarization import Summarization
from project.models.t5_summarizer import T5Summarizer

SIZE = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def build(
    folder: Path, pretrained: Path | str | None, kind: type[T5Summarizer] = T5Summarizer, **settings: Any
) -> tuple[Any, Summarization]:
    """A model of class `kind` in evaluation mode, and the data in a folder, with evaluation batches of 4 examples."""
    name = str(pretrained) if pretrained else None
    data = Summarization(
        str(folder), tokenizer=name, tokenizer_size=300, max_length=40, batch_size=12, evaluation_batch_size=4
    )
    torch.manual_seed(0)
    model = kind(pretrained=name, vocab_size=data.vocab_size, **({} if name else SIZE), **settings)
    model.configure_model()
    return model.eval(), data


def trainer(**settings: Any) -> Trainer:
    """Lightning's own Trainer, on the CPU, without any output."""
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    return Trainer(accelerator="cpu", devices=1, **{**off, **settings})


def loader(data: Summarization, split: str = "validation") -> list[dict[str, Any]]:
    """The batches of a split."""
    data.setup()
    return list({"validation": data.val_dataloader, "train": data.train_dataloader}[split]())


def compare_slices(model: T5Summarizer, data: Summarization, slices: int) -> None:
    """Assert that a batch split into slices gives the same loss and gradients as the whole batch."""

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
