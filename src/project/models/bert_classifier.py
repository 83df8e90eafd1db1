"""BERT, or a similar encoder, with a new classification head (Devlin et al., 2019, section 4.1)."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, PreTrainedModel

from litlab.errors import BadInput
from litlab.nn import padding_free as packed
from litlab.nn.fast_transformers import speed_up
from litlab.nn.metrics import ClassificationMetrics
from litlab.nn.optimizer import Fraction, Schedule, configure
from litlab.nn.sharding import is_sharded
from litlab.sources.pretrained import load_model


class BertClassifier(LightningModule):
    """A pretrained encoder and a linear layer on its first token, fine-tuned together.

    Args:
        pretrained: all-MiniLM-L6-v2 (from a Python package), a local folder, or a Hub id, optionally with @revision;
            any model that AutoModelForSequenceClassification loads.
        num_classes: number of classes; set from the data.
        label_smoothing: fraction of the target that is spread over all classes (Szegedy et al., 2016, section 7).
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW, on weight matrices only.
        schedule: decay of the learning rate after the warm-up.
        warmup: fraction of all steps in which the learning rate rises linearly.
        padding_free: remove the padding from batches, for a BERT; null: if torch has a kernel for it (NVIDIA GPUs since
            Ampere, bfloat16 or float16, unsharded weights); true: always, which is slow without the kernel. Without
            padding, attention weights have no dropout.
        compile: train with torch.compile, on at most 40 shapes: texts are padded to multiples of 32 tokens. Compiling
            takes minutes, which pays off if the training takes an hour or more.
    """

    def __init__(
        self,
        pretrained: str = "all-MiniLM-L6-v2",
        num_classes: PositiveInt = 2,
        label_smoothing: Fraction = 0.0,
        learning_rate: PositiveFloat = 2e-5,
        weight_decay: NonNegativeFloat = 0.01,
        schedule: Schedule = "linear",
        warmup: Fraction = 0.1,
        padding_free: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pretrained, self.num_classes, self.label_smoothing = pretrained, num_classes, label_smoothing
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.padding_free, self.compiled = padding_free, compile
        self.packs = bool(padding_free)  # whether to remove the padding of batches
        self.network: PreTrainedModel | None = None
        self.loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.metrics = nn.ModuleDict({split: ClassificationMetrics(num_classes, f"{split}/") for split in self.loss})

    def configure_model(self) -> None:
        """Load the network once; not in `__init__`, so that strategies can shard it.

        Raises:
            BadInput: if padding_free is true and the network is not a BERT.
        """
        if self.network is not None:
            return
        self.network = load_model(AutoModelForSequenceClassification, self.pretrained, num_labels=self.num_classes)
        if self.padding_free and type(self.network) is not BertForSequenceClassification:
            raise BadInput(
                f"model.padding_free is true, but {self.pretrained} is a {type(self.network).__name__}, not a BERT: "
                "use null."
            )
        if self.padding_free is None and self._trainer is not None and not is_sharded(self.trainer):
            device, precision = self.trainer.strategy.root_device, str(self.trainer.precision)
            self.packs = packed.has_kernel(self.network, device, precision)
        speed_up(self.network)
        if self.compiled:
            packed.compile_training(self.network)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Remove the padding, or round up lengths, before the batch is sent to the device."""
        return self._shaped(batch)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits, (batch, classes), of tokenized texts, (batch, length)."""
        assert self.network is not None  # Lightning calls configure_model first
        batch = self._shaped(batch)
        eager = self.compiled and not self.training
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            if "cu_seqlens" in batch:
                return packed.classify(self.network, batch)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
            return self.network(**inputs).logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a slice of the global batch, weighted so that the mean over slices is the batch mean."""
        loss = F.cross_entropy(self(batch), batch["target"], label_smoothing=self.label_smoothing)
        return loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch of the validation split."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch of the test split."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Predict without evaluating."""
        return self._outputs(batch, self(batch))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW and a learning rate that changes with every step: warm-up, then decay."""
        return configure(self)

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        logits = self(batch)  # (batch, classes)
        loss: Any = self.loss[split]
        metrics: Any = self.metrics[split]
        loss.update(F.cross_entropy(logits, batch["target"], reduction="none"))
        metrics.update(logits, batch["target"])
        self.log(f"{split}/loss", loss)
        self.log_dict(metrics)
        return self._outputs(batch, logits)

    def _shaped(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch as it is, without padding, or padded to one of a few shapes for torch.compile."""
        assert self.network is not None
        if "cu_seqlens" in batch:
            return batch
        few_shapes, config = self.compiled and self.training, self.network.config
        if self.packs:
            return packed.pack(batch, config.max_position_embeddings if few_shapes else None)
        return packed.widen(batch, config) if few_shapes else batch

    def _outputs(self, batch: dict[str, Any], logits: Tensor) -> dict[str, Any]:
        return {
            **{name: batch[name] for name in ("id", "source", "target") if name in batch},
            "prediction": logits.argmax(dim=1),
            "probabilities": logits.float().softmax(dim=1),
        }
