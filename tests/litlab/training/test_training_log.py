from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from litlab.data.batches import TrainingBatches, shuffled
from litlab.runs.directory import rows
from litlab.training.loggers import MetricsCsv
from litlab.training.training_log import TrainingLog

VALUES = np.random.default_rng(0).normal(size=50)


class Regression(LightningModule):
    """A model whose loss on an example is the example's value, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (torch.tensor(VALUES[batch["id"]]).mean() + 0 * self.weight) * batch["weight"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_logged_loss_is_the_mean_over_examples_even_with_uneven_batches(accumulation: int, tmp_path: Path) -> None:
    plan = shuffled(50, 8, seed=0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulation,
        log_every_n_steps=2,
        logger=MetricsCsv(tmp_path),
        callbacks=[TrainingLog()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = TrainingBatches(lambda ids: {"id": ids}, plan, accumulation=accumulation)
    trainer.fit(Regression(), train_dataloaders=loader)
    logged = list(rows(tmp_path))
    batches = plan(0)
    expected = [VALUES[np.concatenate(batches[start : start + 2])].mean() for start in (0, 2, 4)]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == pytest.approx(expected, rel=1e-5)
    assert [row["step"] for row in logged if "train/loss" in row] == [1, 3, 5]
    assert [row["train/loss_epoch"] for row in logged if "train/loss_epoch" in row] == [
        pytest.approx(VALUES.mean(), rel=1e-5)
    ]
