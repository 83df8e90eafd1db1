"""Span corruption: a T5 from random weights learns to fill in hidden spans (Raffel et al., 2020)."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torchmetrics import MeanMetric

from litlab.nn.optimizer import Fraction, Schedule, configure
from litlab.nn.t5 import check_heads, new_t5


class T5Pretraining(LightningModule):
    """A new T5, trained on windows of tokens in which spans are hidden.

    Args:
        d_model: width.
        d_ff: width of the feed-forward layers.
        num_layers: layers of the encoder, and of the decoder.
        num_heads: attention heads of a layer; they share the width.
        dropout: everywhere.
        vocab_size: tokens of its vocabulary; follows the data.
        learning_rate: of AdamW, at its peak; with relative_steps, as a fraction of the size of a matrix.
        relative_steps: multiply the learning rate of each weight matrix by its root mean square.
        weight_decay: of AdamW, on the weight matrices.
        schedule: decay of the learning rate after the warm-up.
        warmup: linear rise of the learning rate, as a fraction of all steps.
    """

    def __init__(
        self,
        d_model: PositiveInt = 256,
        d_ff: PositiveInt = 1024,
        num_layers: PositiveInt = 3,
        num_heads: PositiveInt = 4,
        dropout: Fraction = 0.0,
        vocab_size: PositiveInt = 32128,
        learning_rate: PositiveFloat = 2e-2,
        relative_steps: bool = True,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: Schedule = "cosine",
        warmup: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.relative_steps = relative_steps
        check_heads(d_model, num_heads)
        self.sizes: dict[str, Any] = {
            "d_model": d_model,
            "d_ff": d_ff,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "dropout": dropout,
            "vocab_size": vocab_size,
        }
        self.network: Any = None
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()

    def configure_model(self) -> None:
        """Build the network, once; here and not in `__init__` so that strategies can shard it."""
        if self.network is None:
            self.network = new_t5(**self.sizes)

    def forward(self, batch: dict[str, Any]) -> Any:
        """The loss, a mean over all tokens of the targets, and the logits, (batch, target length, vocabulary)."""
        return self.network(input_ids=batch["input_ids"], labels=batch["labels"])  # no mask: there is no padding

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that slices average to the mean over the batch."""
        return self(batch).loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch of the validation split: the loss, and the accuracy of each token given those before it."""
        output = self(batch)
        predictions = output.logits.argmax(dim=2)  # (batch, target length)
        self.val_loss.update(output.loss, weight=len(predictions))
        self.val_accuracy.update((predictions == batch["labels"]).float())
        self.log_dict({"val/loss": self.val_loss, "val/accuracy": self.val_accuracy})
        return {"id": batch["id"], "target": batch["labels"], "prediction": predictions}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay, stepped with every batch."""
        return configure(self)
