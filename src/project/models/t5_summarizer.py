"""T5, or another encoder-decoder, fine-tuned to write summaries (Raffel et al., 2020)."""

import inspect
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn.fast_transformers import speed_up
from litlab.nn.metrics import SummarizationMetrics
from litlab.nn.optimizer import Fraction, Schedule, configure
from litlab.nn.sharding import is_sharded
from litlab.nn.t5 import check_heads, new_t5
from litlab.nn.t5_decoding import CACHE_ARGUMENT, BeamCache, end_tokens, greedy
from litlab.sources import pretrained

MAX_CAPPED_SHARE = 0.05  # a warning is printed if a larger fraction of summaries reaches max_new_tokens


class T5Summarizer(LightningModule):
    """An encoder-decoder trained by maximum likelihood, decoded greedily or by beam search.

    Args:
        pretrained: a local folder, such as src/project/pretrained/t5-documentation, or a Hub id, optionally with
            @revision; any model that AutoModelForSeq2SeqLM loads. null: a new T5 with random weights.
        d_model: width of a new T5.
        d_ff: width of a new T5's feed-forward layers.
        num_layers: number of encoder layers, and of decoder layers, of a new T5.
        num_heads: attention heads per layer of a new T5; d_model must be divisible by it.
        dropout: dropout probability; null: the pretrained model's own default, or 0 for a new T5.
        vocab_size: vocabulary size of a new T5; set from the data.
        max_new_tokens: maximum tokens of a summary; a warning is printed if many summaries reach it.
        num_beams: beams of beam search; 1: greedy decoding.
        length_penalty: length penalty of beam search; above 1 favours long summaries, below 1 short ones.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in a summary; 0: no limit.
        encoder_repetition_penalty: in beam search, the log-probabilities of tokens that occur in the text (with prefix
            and end token) are divided by this; above 1 favours them.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW, on weight matrices only.
        schedule: decay of the learning rate after the warm-up.
        warmup: fraction of all steps in which the learning rate rises linearly.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        d_model: PositiveInt = 256,
        d_ff: PositiveInt = 1024,
        num_layers: PositiveInt = 3,
        num_heads: PositiveInt = 4,
        dropout: Fraction | None = None,
        vocab_size: PositiveInt = 32128,
        max_new_tokens: PositiveInt = 64,
        num_beams: PositiveInt = 1,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: NonNegativeInt = 0,
        encoder_repetition_penalty: PositiveFloat = 1.0,
        learning_rate: PositiveFloat = 2e-4,
        weight_decay: NonNegativeFloat = 0.01,
        schedule: Schedule = "linear",
        warmup: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pretrained, self.dropout, self.vocab_size = pretrained, dropout, vocab_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup = schedule, warmup
        self.sizes = {"d_model": d_model, "d_ff": d_ff, "num_layers": num_layers, "num_heads": num_heads}
        self._check_sizes()
        # arguments of generate(), so that a pretrained model's own settings do not apply silently
        self.generation: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "no_repeat_ngram_size": no_repeat_ngram_size,
            # without beam search, it would scale logits instead of log-probabilities
            "encoder_repetition_penalty": float(encoder_repetition_penalty) if num_beams > 1 else 1.0,
            "do_sample": False,
            "min_length": 0,
            "early_stopping": False,
            "repetition_penalty": 1.0,
            "forced_eos_token_id": None,  # BART's setting would hide that a summary was truncated
        } | ({"length_penalty": length_penalty} if num_beams > 1 else {})
        self.network: Any = None  # a PreTrainedModel that can generate
        self.unsharded = True  # whether this process has all weights, which litlab's decoding needs
        self.loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.metrics = nn.ModuleDict({split: SummarizationMetrics(f"{split}/") for split in self.loss})

    def configure_model(self) -> None:
        """Build or load the network once; not in `__init__`, so that strategies can shard it."""
        self.unsharded = not is_sharded(self._trainer)
        if self.network is not None:
            return
        if not self.pretrained:
            self.network = new_t5(**self.sizes, dropout=self.dropout or 0.0, vocab_size=self.vocab_size)
            return
        # the option is dropout_rate in T5, dropout in BART
        changes = {} if self.dropout is None else {"dropout_rate": self.dropout, "dropout": self.dropout}
        self.network = pretrained.load_model(AutoModelForSeq2SeqLM, self.pretrained, **changes)
        speed_up(self.network)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean loss over the tokens of the summaries, a scalar."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return self.network(**inputs).loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a slice of the global batch, weighted so that the mean over slices is the token mean."""
        return self(batch) * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Summarize and evaluate a batch of the validation split."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Summarize and evaluate a batch of the test split."""
        return self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Summarize without evaluating."""
        return self._outputs(batch, self.generate(batch))

    def generate(self, batch: dict[str, Any]) -> Tensor:
        """Return summaries as tokens, (batch, at most max_new_tokens), padded after the end token."""
        if self.generation["num_beams"] == 1 and type(self.network) is T5ForConditionalGeneration and self.unsharded:
            limits = {name: self.generation[name] for name in ("max_new_tokens", "no_repeat_ngram_size")}
            return greedy(self.network, batch["input_ids"], batch["attention_mask"], **limits)
        return self.hypotheses(batch, count=1)

    def hypotheses(self, batch: dict[str, Any], count: int) -> Tensor:
        """Return the most probable summaries of beam search as tokens, (batch x count, at most max_new_tokens).

        Args:
            batch: `input_ids` and `attention_mask`, (batch, length).
            count: summaries per text, at most num_beams; those of a text are consecutive, the most probable first.
        """
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        settings = self.generation | {"num_return_sequences": count}
        if isinstance(self.network, T5ForConditionalGeneration):
            settings |= {CACHE_ARGUMENT: BeamCache(), "use_cache": True, "cache_implementation": None}
        # encoder_repetition_penalty would also favour the padding token; any token can replace it, because it is masked
        input_ids = input_ids.where(mask.bool(), input_ids[:, :1])
        tokens = self.network.generate(input_ids=input_ids, attention_mask=mask, **settings)
        return tokens[:, 1:]  # remove the decoder start token

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW and a learning rate that changes with every step: warm-up, then decay."""
        return configure(self)

    def _check_sizes(self) -> None:
        """Check the sizes of a new T5; a pretrained model must not have any.

        Raises:
            BadInput: if d_model is not divisible by num_heads, or if a size is set for a pretrained model.
        """
        if not self.pretrained:
            check_heads(self.sizes["d_model"], self.sizes["num_heads"])
            return
        defaults = inspect.signature(T5Summarizer).parameters
        for name, size in self.sizes.items():
            if size != defaults[name].default:
                raise BadInput(
                    f"model.{name}={size} describes a new T5, but model.pretrained is {self.pretrained}: set "
                    "model.pretrained=null to start from random weights."
                )

    def _in_training(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        loss: Any = self.loss[split]
        metrics: Any = self.metrics[split]
        loss.update(self(batch), weight=(batch["labels"] >= 0).sum())
        tokens = self.generate(batch)
        output = self._outputs(batch, tokens)
        # lengths, (batch,), without padding and without the extra end tokens that beam search appends
        ends = torch.isin(tokens, end_tokens(self.network))
        after_end = ends.cumsum(dim=1) > ends.long()
        lengths = (~after_end & (tokens != self.network.config.pad_token_id)).sum(dim=1)
        capped = ~ends.any(dim=1)
        # lead-1 does not depend on the model, so validations during training skip it
        texts = None if self._in_training() else batch["source"]
        metrics.update(output["text"], batch["target"], lengths, capped, texts)
        self.log(f"{split}/loss", loss)
        return output

    def _outputs(self, batch: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        return {
            **{name: batch[name] for name in ("id", "source", "target") if name in batch},
            "text": batch["decode"](tokens),
        }

    def _log_metrics(self, split: str) -> None:
        metrics: Any = self.metrics[split]
        values = metrics.compute()
        metrics.reset()
        self.log_dict(values, sync_dist=True)  # equal on all ranks, but without sync_dist Lightning warns
        capped = float(values[f"{split}/capped"])
        if capped > MAX_CAPPED_SHARE and not self._in_training():
            warn_of_cut_summaries(capped, self.generation["max_new_tokens"])


@rank_zero_only
def warn_of_cut_summaries(share: float, limit: int) -> None:
    """Warn that truncated summaries lower the metrics."""
    print(
        f"warning: {share:.0%} of the summaries were truncated at {limit} tokens; raise model.max_new_tokens",
        file=sys.stderr,
    )
