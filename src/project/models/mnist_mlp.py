"""A multilayer perceptron for MNIST."""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanMetric

from litlab.nn.metrics import ClassificationMetrics
from litlab.nn.optimizer import Fraction, Schedule, configure


class MnistMLP(LightningModule):
    """A classifier with one hidden layer and ReLU.

    Args:
        hidden: units of the hidden layer.
        num_classes: number of classes; set from the data.
        label_smoothing: fraction of the target that is spread over all classes (Szegedy et al., 2016, section 7).
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW, on weight matrices only.
        schedule: decay of the learning rate after the warm-up.
        warmup: fraction of all steps in which the learning rate rises linearly.
    """

    def __init__(
        self,
        hidden: PositiveInt = 128,
        num_classes: PositiveInt = 10,
        label_smoothing: Fraction = 0.05,
        learning_rate: PositiveFloat = 4e-3,
        weight_decay: NonNegativeFloat = 0.3,
        schedule: Schedule = "linear",
        warmup: Fraction = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hidden, self.num_classes, self.label_smoothing = hidden, num_classes, label_smoothing
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.network: nn.Sequential | None = None
        self.loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.metrics = nn.ModuleDict({split: ClassificationMetrics(num_classes, f"{split}/") for split in self.loss})

    def configure_model(self) -> None:
        """Build the network once; not in `__init__`, so that strategies can shard it."""
        if self.network is None:
            self.network = nn.Sequential(
                nn.Linear(28 * 28, self.hidden),  # (batch, hidden)
                nn.ReLU(),
                nn.Linear(self.hidden, self.num_classes),  # (batch, classes)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (batch, classes), of images, (batch, 784)."""
        assert self.network is not None  # Lightning calls configure_model first
        return self.network(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a slice of the global batch, weighted so that the mean over slices is the batch mean."""
        loss = F.cross_entropy(self(batch["image"]), batch["target"], label_smoothing=self.label_smoothing)
        return loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch of the validation split."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch of the test split."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Predict without evaluating."""
        return self._outputs(batch, self(batch["image"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW and a learning rate that changes with every step: warm-up, then decay."""
        return configure(self)

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        logits = self(batch["image"])  # (batch, classes)
        loss: Any = self.loss[split]
        metrics: Any = self.metrics[split]
        loss.update(F.cross_entropy(logits, batch["target"], reduction="none"))
        metrics.update(logits, batch["target"])
        self.log(f"{split}/loss", loss)
        self.log_dict(metrics)
        return self._outputs(batch, logits)

    def _outputs(self, batch: dict[str, Any], logits: Tensor) -> dict[str, Tensor]:
        return {
            **{name: batch[name] for name in ("id", "target") if name in batch},
            "prediction": logits.argmax(dim=1),
            "probabilities": logits.float().softmax(dim=1),
        }
