"""Span corruption: a T5 with random weights learns to fill in hidden spans (Raffel et al., 2020)."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torchmetrics import MeanMetric

from litlab.nn.optimizer import Fraction, Schedule, configure
from litlab.nn.t5 import check_heads, new_t5


class T5Pretraining(LightningModule):
    """A T5 with random weights that is trained on windows of tokens with hidden spans.

    Args:
        d_model: width of the model.
        d_ff: width of the feed-forward layers.
        num_layers: number of encoder layers, and of decoder layers.
        num_heads: attention heads per layer; d_model is divided among them.
        dropout: dropout rate of all layers.
        vocab_size: size of the vocabulary in tokens; set from the data.
        learning_rate: peak learning rate of AdamW; with relative_steps, a fraction of each matrix's root mean square.
        relative_steps: multiply the learning rate of each weight matrix by its root mean square.
        weight_decay: weight decay of AdamW, on weight matrices only.
        schedule: decay of the learning rate after the warm-up.
        warmup: fraction of all steps in which the learning rate rises linearly.
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
        """Build the network once; here and not in `__init__`, so that strategies can shard it."""
        if self.network is None:
            self.network = new_t5(**self.sizes)

    def forward(self, batch: dict[str, Any]) -> Any:
        """The mean loss over all target tokens, and the logits (batch, target length, vocabulary)."""
        return self.network(input_ids=batch["input_ids"], labels=batch["labels"])  # no mask, because nothing is padded

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that the average over slices is the mean of the batch."""
        return self(batch).loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a validation batch: the loss, and the accuracy of each target token given the tokens before it."""
        output = self(batch)
        predictions = output.logits.argmax(dim=2)  # (batch, target length)
        self.val_loss.update(output.loss, weight=len(predictions))
        self.val_accuracy.update((predictions == batch["labels"]).float())
        self.log_dict({"val/loss": self.val_loss, "val/accuracy": self.val_accuracy})
        return {"id": batch["id"], "target": batch["labels"], "prediction": predictions}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a schedule that changes the learning rate at every step."""
        return configure(self)
