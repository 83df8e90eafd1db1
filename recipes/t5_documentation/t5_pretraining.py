"""A T5 from random weights that learns to fill in what is missing (Raffel et al., 2020)."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torchmetrics import MeanMetric

from litlab.nn import optimizer
from litlab.nn.t5 import check_heads, new_t5


class T5Pretraining(LightningModule):
    """A new T5, trained on windows of tokens in which spans are hidden.

    Args:
        d_model: width.
        d_ff: width of the feed-forward layers.
        num_layers: layers of the encoder, and of the decoder.
        num_heads: attention heads of a layer; they share the width.
        dropout: everywhere.
        vocab_size: tokens that it knows; follows the data.
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
        dropout: optimizer.Fraction = 0.0,
        vocab_size: PositiveInt = 32128,
        learning_rate: PositiveFloat = 2e-2,
        relative_steps: bool = True,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: optimizer.Schedule = "cosine",
        warmup: optimizer.Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_heads(d_model, num_heads)
        self.sizes: dict[str, Any] = {
            "d_model": d_model,
            "d_ff": d_ff,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "dropout": dropout,
            "vocab_size": vocab_size,
        }
        self.learning_rate, self.relative_steps, self.weight_decay = learning_rate, relative_steps, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.network: Any = None
        self.val_loss, self.val_accuracy = MeanMetric(), MeanMetric()

    def configure_model(self) -> None:
        """Make the network, once; here and not in `__init__` so that strategies can shard it."""
        if self.network is None:
            self.network = new_t5(**self.sizes)

    def forward(self, batch: dict[str, Any]) -> Any:
        """The loss, a mean over all tokens of the targets, and the logits (batch, target length, vocabulary)."""
        return self.network(input_ids=batch["input_ids"], labels=batch["labels"])  # no mask: nothing is padded

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that slices average to the mean over the batch."""
        return self(batch).loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score a batch of the validation split: the loss, and the share of tokens that are guessed right given those before."""
        output = self(batch)
        guesses = output.logits.argmax(dim=2)
        self.val_loss.update(output.loss, weight=len(guesses))
        self.val_accuracy.update((guesses == batch["labels"]).float())
        self.log_dict({"val/loss": self.val_loss, "val/accuracy": self.val_accuracy})
        return {"id": batch["id"], "target": batch["labels"], "prediction": guesses}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay, stepped with every batch."""
        return optimizer.configure(
            self, self.learning_rate, self.weight_decay, self.schedule, self.warmup, self.relative_steps
        )
