"""Two LightningModules that follow litlab's contracts: one returns classes and probabilities, the other texts."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanMetric

from litlab.nn.metrics import ClassificationMetrics
from litlab.nn.optimizer import Fraction, Schedule, configure
from small.data import FEATURES, read_array, read_names


class SmallModel(LightningModule):
    """A classifier with one hidden layer.

    Args:
        hidden: units of the hidden layer.
        num_classes: number of classes; set from the data.
        label_smoothing: share of the target that is spread over all classes.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW, on weight matrices only.
        schedule: decay of the learning rate after the warm-up.
        warmup: fraction of all steps in which the learning rate rises linearly.
    """

    def __init__(
        self,
        hidden: PositiveInt = 64,
        num_classes: PositiveInt = 2,
        label_smoothing: Fraction = 0.0,
        learning_rate: PositiveFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.01,
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
        """Build the network once."""
        if self.network is None:
            layers = nn.Linear(FEATURES, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.num_classes)
            self.network = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (batch, classes), of features, (batch, 64)."""
        assert self.network is not None  # Lightning calls configure_model first
        return self.network(features)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that the average over slices is the batch mean."""
        loss = F.cross_entropy(self(batch["features"]), batch["target"], label_smoothing=self.label_smoothing)
        return loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch of the validation split."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Evaluate a batch of the test split."""
        return self._evaluate(batch, "test")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay."""
        return configure(self)

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        loss: Any = self.loss[split]
        metrics: Any = self.metrics[split]
        logits = self(batch["features"])  # (batch, classes)
        loss.update(F.cross_entropy(logits, batch["target"], reduction="none"))
        metrics.update(logits, batch["target"])
        self.log(f"{split}/loss", loss)
        self.log_dict(metrics)
        return {
            "id": batch["id"],
            "target": batch["target"],
            "prediction": logits.argmax(dim=1),
            "probabilities": logits.float().softmax(dim=1),
        }


class SmallSpeller(LightningModule):
    """A pretrained linear layer that is fine-tuned; it predicts class names, texts like those of a summarizer.

    Args:
        pretrained: a folder that `write_language` wrote.
        learning_rate: learning rate of AdamW.
    """

    def __init__(self, pretrained: str = "english", learning_rate: PositiveFloat = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pretrained = pretrained
        self.network: nn.Linear | None = None
        self.loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})

    def configure_model(self) -> None:
        """Load names and weights once.

        Raises:
            BadInput: if a file is missing or damaged.
        """
        if self.network is None:
            self.names = read_names(self.pretrained)
            weights = torch.from_numpy(read_array(Path(self.pretrained) / "weights.npy"))  # (classes, features)
            self.network = nn.Linear(*reversed(weights.shape))
            self.network.weight.data.copy_(weights)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted loss of a slice of a global batch."""
        assert self.network is not None
        return F.cross_entropy(self.network(batch["features"]), batch["target"]) * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch of the validation split."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch of the test split."""
        return self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with a constant learning rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        assert self.network is not None
        loss: Any = self.loss[split]
        logits = self.network(batch["features"])  # (batch, classes)
        loss.update(F.cross_entropy(logits, batch["target"], reduction="none"))
        self.log(f"{split}/loss", loss)
        names = [[self.names[number] for number in numbers] for numbers in (batch["target"], logits.argmax(dim=1))]
        return {"id": batch["id"], "source": batch["source"], "target": names[0], "text": names[1]}
