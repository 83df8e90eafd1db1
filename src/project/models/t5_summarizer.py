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

MAX_CAPPED_SHARE = 0.05  # above this share of summaries that reach max_new_tokens, a warning is printed


class T5Summarizer(LightningModule):
    """An encoder-decoder trained by maximum likelihood, decoded greedily or by beam search.

    Args:
        pretrained: a local folder or a Hub id, optionally with @revision; null: a new T5 with random weights. Any model that
            AutoModelForSeq2SeqLM loads; src/project/pretrained/t5-documentation is shipped.
        d_model: width of a new T5.
        d_ff: width of a new T5's feed-forward layers.
        num_layers: encoder layers, and decoder layers, of a new T5.
        num_heads: attention heads per layer of a new T5; their widths add up to d_model.
        dropout: dropout probability; null: the pretrained model's own default, 0 for a new T5.
        vocab_size: vocabulary size of a new T5; set from the data.
        max_new_tokens: most tokens of a summary; a warning is printed if many summaries reach it.
        num_beams: hypotheses of beam search; 1: greedy.
        length_penalty: length penalty of beam search; above 1 favours long summaries, below 1 short ones.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in a summary; 0: no limit.
        encoder_repetition_penalty: in beam search, log-probabilities of the text's tokens (prefix and end too) are divided by
            this; above 1 favours them.
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
        # arguments of generate(): a pretrained model's own settings must not apply silently
        self.generation: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "no_repeat_ngram_size": no_repeat_ngram_size,
            # without beams it would scale logits instead of log-probabilities
            "encoder_repetition_penalty": float(encoder_repetition_penalty) if num_beams > 1 else 1.0,
            "do_sample": False,
            "min_length": 0,
            "early_stopping": False,
            "repetition_penalty": 1.0,
            "forced_eos_token_id": None,  # BART's would hide that a summary was truncated
        } | ({"length_penalty": length_penalty} if num_beams > 1 else {})
        self.network: Any = None  # a PreTrainedModel that can generate
        self.unsharded = True  # litlab's own decoding needs all of a T5's weights
        self.loss = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.metrics = nn.ModuleDict({split: SummarizationMetrics(f"{split}/") for split in self.loss})

    def configure_model(self) -> None:
        """Build or load the network, once; not in `__init__`, so that strategies can shard it."""
        self.unsharded = not is_sharded(self._trainer)
        if self.network is not None:
            return
        if not self.pretrained:
            self.network = new_t5(**self.sizes, dropout=self.dropout or 0.0, vocab_size=self.vocab_size)
            return
        # T5 calls it dropout_rate, BART dropout
        changes = {} if self.dropout is None else {"dropout_rate": self.dropout, "dropout": self.dropout}
        self.network = pretrained.load_model(AutoModelForSeq2SeqLM, self.pretrained, **changes)
        speed_up(self.network)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss over the tokens of the summaries, a scalar."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return self.network(**inputs).loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that the average over slices is the mean over the batch's tokens."""
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
        """Summaries as tokens, (batch, at most max_new_tokens), padded after their ends."""
        if self.generation["num_beams"] == 1 and type(self.network) is T5ForConditionalGeneration and self.unsharded:
            limits = {name: self.generation[name] for name in ("max_new_tokens", "no_repeat_ngram_size")}
            return greedy(self.network, batch["input_ids"], batch["attention_mask"], **limits)
        return self.hypotheses(batch, count=1)

    def hypotheses(self, batch: dict[str, Any], count: int) -> Tensor:
        """The most probable summaries that `transformers` finds, as tokens, (batch x count, at most max_new_tokens).

        Args:
            batch: `input_ids` and `attention_mask`, (batch, length).
            count: summaries per text, at most num_beams; consecutive, the most probable first.
        """
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        settings = self.generation | {"num_return_sequences": count}
        if isinstance(self.network, T5ForConditionalGeneration):
            settings |= {CACHE_ARGUMENT: BeamCache(), "use_cache": True, "cache_implementation": None}
        # encoder_repetition_penalty would favour the padding token too; it is masked, so any other token can replace it
        input_ids = input_ids.where(mask.bool(), input_ids[:, :1])
        tokens = self.network.generate(input_ids=input_ids, attention_mask=mask, **settings)
        return tokens[:, 1:]  # without the decoder's start token

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay; the learning rate changes with every step."""
        return configure(self)

    def _check_sizes(self) -> None:
        """Check the sizes of a new T5, and refuse sizes for a pretrained one.

        Raises:
            BadInput: if the width is not divisible by the heads, or if sizes are given for a pretrained model.
        """
        if not self.pretrained:
            check_heads(self.sizes["d_model"], self.sizes["num_heads"])
            return
        defaults = inspect.signature(T5Summarizer).parameters
        for name, size in self.sizes.items():
            if size != defaults[name].default:
                raise BadInput(
                    f"model.{name}={size} describes a new T5, and model.pretrained is {self.pretrained}: set "
                    "model.pretrained=null to start with random weights."
                )

    def _in_training(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _evaluate(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        loss: Any = self.loss[split]
        metrics: Any = self.metrics[split]
        loss.update(self(batch), weight=(batch["labels"] >= 0).sum())
        tokens = self.generate(batch)
        output = self._outputs(batch, tokens)
        # lengths without padding and without the further end tokens that beam search appends, (batch,)
        ends = torch.isin(tokens, end_tokens(self.network))
        after_end = ends.cumsum(dim=1) > ends.long()
        lengths = (~after_end & (tokens != self.network.config.pad_token_id)).sum(dim=1)
        capped = ~ends.any(dim=1)
        texts = (
            None if self._in_training() else batch["source"]
        )  # for lead-1, which is the same after every epoch: computed once
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
        self.log_dict(values, sync_dist=True)  # already equal on all ranks, but Lightning warns otherwise
        capped = float(values[f"{split}/capped"])
        if capped > MAX_CAPPED_SHARE and not self._in_training():
            warn_of_cut_summaries(capped, self.generation["max_new_tokens"])


@rank_zero_only
def warn_of_cut_summaries(share: float, limit: int) -> None:
    """Warn that the limit lowers the metrics."""
    print(
        f"warning: {share:.0%} of the summaries were truncated at {limit} tokens; raise model.max_new_tokens",
        file=sys.stderr,
    )
