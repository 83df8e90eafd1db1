"""A multilayer perceptron for MNIST."""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanMetric

from litlab.nn import optimizer
from litlab.nn.metrics import ClassificationScores


class MnistMLP(LightningModule):
    """Pixels to hidden units to digits, with one ReLU between.

    Args:
        hidden: units of the hidden layer.
        num_classes: classes to tell apart; follows the data.
        label_smoothing: share of the target spread over all classes (Szegedy et al., 2016, section 7).
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on the weight matrices.
        schedule: decay of the learning rate after the warm-up.
        warmup: linear rise of the learning rate, as a fraction of all steps.
    """

    def __init__(
        self,
        hidden: PositiveInt = 128,
        num_classes: PositiveInt = 10,
        label_smoothing: optimizer.Fraction = 0.05,
        learning_rate: PositiveFloat = 4e-3,
        weight_decay: NonNegativeFloat = 0.3,
        schedule: optimizer.Schedule = "linear",
        warmup: optimizer.Fraction = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hidden, self.num_classes, self.label_smoothing = hidden, num_classes, label_smoothing
        self.learning_rate, self.weight_decay, self.schedule, self.warmup = (
            learning_rate,
            weight_decay,
            schedule,
            warmup,
        )
        self.network: nn.Sequential | None = None
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_scores = ClassificationScores(num_classes, "val/")
        self.test_scores = ClassificationScores(num_classes, "test/")

    def configure_model(self) -> None:
        """Build the network, once; here and not in `__init__` so that strategies can shard it."""
        if self.network is None:
            self.network = nn.Sequential(
                nn.Linear(28 * 28, self.hidden),  # (batch, hidden)
                nn.ReLU(),
                nn.Linear(self.hidden, self.num_classes),  # (batch, classes)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Logits, (batch, classes), of images, (batch, 784)."""
        assert self.network is not None  # Lightning calls configure_model first
        return self.network(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that slices average to the global batch's mean."""
        loss = F.cross_entropy(self(batch["image"]), batch["target"], label_smoothing=self.label_smoothing)
        return loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Score a batch of the validation split."""
        output = self._evaluate(batch, self.val_loss, self.val_scores)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_scores)
        return output

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Score a batch of the test split."""
        output = self._evaluate(batch, self.test_loss, self.test_scores)
        self.log("test/loss", self.test_loss)
        self.log_dict(self.test_scores)
        return output

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Predict without scoring."""
        return self._outputs(batch, self(batch["image"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay, stepped with every batch."""
        return optimizer.configure(self, self.learning_rate, self.weight_decay, self.schedule, self.warmup)

    def _evaluate(
        self, batch: dict[str, Any], mean_loss: MeanMetric, scores: ClassificationScores
    ) -> dict[str, Tensor]:
        logits = self(batch["image"])  # (batch, classes)
        mean_loss.update(F.cross_entropy(logits, batch["target"], reduction="none"))
        scores.update(logits, batch["target"])
        return self._outputs(batch, logits)

    def _outputs(self, batch: dict[str, Any], logits: Tensor) -> dict[str, Tensor]:
        return {
            "id": batch["id"],
            "target": batch["target"],
            "prediction": logits.argmax(dim=1),
            "probabilities": logits.float().softmax(dim=1),
        }
