"""T5, or any encoder-decoder like it, that writes summaries (Raffel et al., 2020)."""

import inspect
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn import fast_transformers, optimizer
from litlab.nn.metrics import SummarizationScores
from litlab.nn.sharding import is_sharded
from litlab.nn.t5 import check_heads, grow, new_t5
from litlab.nn.t5_decoding import BeamCache, ends_of, greedy
from litlab.sources import pretrained
from project.models.t5_minimum_risk import chances_of, draw, expected_risk, least_risk

CAPPED_SHARE = 0.05  # of summaries that reach the limit: more are worth a warning


class T5Summarizer(LightningModule):
    """An encoder-decoder, pretrained or from random weights, and how it writes.

    Args:
        pretrained: t5-documentation, a local folder or a Hub id, with @revision or without, of any model that AutoModelForSeq2SeqLM loads; null: a
            new T5 with random weights.
        d_model: width of a new T5.
        d_ff: width of its feed-forward layers.
        num_layers: layers of its encoder, and of its decoder.
        num_heads: attention heads of a layer; they share the width.
        grow_encoder: layers that a pretrained T5's encoder gets in addition; at first it computes the same (models/t5.py).
        grow_decoder: layers that its decoder gets in addition.
        dropout: everywhere; null: as the pretrained model was made, 0 in a new T5.
        vocab_size: tokens that a new T5 knows; follows the data.
        max_new_tokens: most tokens of a summary; a warning says when many summaries reach it.
        num_beams: hypotheses of beam search; 1: greedy.
        length_penalty: of beam search; above 1 favours long summaries, below 1 short ones.
        no_repeat_ngram_size: no sequence of this many tokens comes twice in a summary; 0: no such rule.
        encoder_repetition_penalty: of beam search; above 1 favours the tokens of the text (its prefix and end among them), whose
            log-probabilities are divided by it.
        risk_samples: 0: learn to write the targets (maximum likelihood); from 2 on: draw as many summaries of each text and
            learn to write those that score better in ROUGE, which sees the letters a to z and digits only (minimum risk,
            models/minimum_risk.py); random weights score too little to learn so.
        risk_after: share of all steps that come first and learn the targets all the same, as texts of a new kind need.
        likelihood: share of maximum likelihood in the loss of minimum risk training.
        mbr_samples: draw as many summaries of each text and take, of the hypotheses of beam search, the one that has the highest
            ROUGE-1 if theirs are the targets (minimum Bayes risk decoding, models/minimum_risk.py); 0: the likeliest one, as
            always in the validations of a training, for their time, and of texts without letters a to z.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW, on the weight matrices.
        schedule: decay of the learning rate after the warm-up.
        warmup: linear rise of the learning rate, as a fraction of all steps.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        d_model: PositiveInt = 256,
        d_ff: PositiveInt = 1024,
        num_layers: PositiveInt = 3,
        num_heads: PositiveInt = 4,
        grow_encoder: NonNegativeInt = 0,
        grow_decoder: NonNegativeInt = 0,
        dropout: optimizer.Fraction | None = None,
        vocab_size: PositiveInt = 32128,
        max_new_tokens: PositiveInt = 64,
        num_beams: PositiveInt = 1,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: NonNegativeInt = 0,
        encoder_repetition_penalty: PositiveFloat = 1.0,
        risk_samples: NonNegativeInt = 0,
        risk_after: optimizer.Fraction = 0.0,
        likelihood: optimizer.Fraction = 0.1,
        mbr_samples: NonNegativeInt = 0,
        learning_rate: PositiveFloat = 2e-4,
        weight_decay: NonNegativeFloat = 0.01,
        schedule: optimizer.Schedule = "linear",
        warmup: optimizer.Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pretrained = pretrained
        self.dropout, self.vocab_size = dropout, vocab_size
        self.sizes = {"d_model": d_model, "d_ff": d_ff, "num_layers": num_layers, "num_heads": num_heads}
        self.growth = {"grow_encoder": grow_encoder, "grow_decoder": grow_decoder}
        if not pretrained:
            check_heads(d_model, num_heads)
            for name, layers in self.growth.items():
                if layers:
                    raise BadInput(
                        f"model.{name}={layers}: only a pretrained T5 can grow; model.num_layers is the layers of a new one."
                    )
        if risk_samples == 1:
            raise BadInput(
                "model.risk_samples=1: one summary has no other to be better than; draw at least 2, or 0 for maximum likelihood."
            )
        if mbr_samples and num_beams == 1:
            raise BadInput(
                f"model.mbr_samples={mbr_samples}: greedy decoding leaves nothing to choose from; set model.num_beams to 2 or more, or "
                "mbr_samples to 0."
            )
        for name, size in self.sizes.items() if pretrained else ():
            if size != inspect.signature(T5Summarizer).parameters[name].default:
                raise BadInput(
                    f"model.{name}={size} describes a new T5, and model.pretrained is {pretrained}: set model.pretrained=null to begin "
                    "with random weights."
                )
        self.generation: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "no_repeat_ngram_size": no_repeat_ngram_size,
            # without beams logits would be scaled, and one value would mean another thing
            "encoder_repetition_penalty": float(encoder_repetition_penalty) if num_beams > 1 else 1.0,
            "do_sample": False,
            # a pretrained model's own settings do not apply unseen
            "min_length": 0,
            "early_stopping": False,
            "repetition_penalty": 1.0,
            "forced_eos_token_id": None,  # BART's would hide that a summary was cut
        } | ({"length_penalty": length_penalty} if num_beams > 1 else {})
        self.risk_samples, self.risk_after, self.likelihood = risk_samples, risk_after, likelihood
        self.first_risk_step = 0.0
        self.mbr_samples = mbr_samples
        self.learning_rate, self.weight_decay, self.schedule, self.warmup = (
            learning_rate,
            weight_decay,
            schedule,
            warmup,
        )
        self.network: Any = None  # a PreTrainedModel that can generate
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_scores, self.test_scores = SummarizationScores("val/"), SummarizationScores("test/")

    def configure_model(self) -> None:
        """Make or load the network, once; here and not in `__init__` so that strategies can shard it."""
        if self.network is not None:
            return
        if self.pretrained:
            # what T5 and BART call it
            changes = {} if self.dropout is None else {"dropout_rate": self.dropout, "dropout": self.dropout}
            self.network = pretrained.load_model(AutoModelForSeq2SeqLM, self.pretrained, **changes)
            if self.risk_samples and not hasattr(self.network, "prepare_decoder_input_ids_from_labels"):
                raise BadInput(
                    f"model.risk_samples={self.risk_samples}: a {type(self.network).__name__} cannot be trained so; set it to 0."
                )
            if any(self.growth.values()):
                if type(self.network) is not T5ForConditionalGeneration:
                    raise BadInput(
                        f"model.grow_encoder, model.grow_decoder: a {type(self.network).__name__} cannot grow, only a T5; set both to 0."
                    )
                self.network = grow(self.network, *self.growth.values())
            fast_transformers.speed_up(self.network)
            return
        self.network = new_t5(**self.sizes, dropout=self.dropout or 0.0, vocab_size=self.vocab_size)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss over the tokens of the summaries, a number."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return self.network(**inputs).loss

    def on_train_start(self) -> None:
        """Divide the steps between the targets and the risk."""
        if self.risk_after:
            self.first_risk_step = self.risk_after * self.trainer.estimated_stepping_batches

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that slices average to the mean over the batch's tokens."""
        if not self.risk_samples or self.global_step < self.first_risk_step:
            return self(batch) * batch["weight"]
        limit = self.generation["max_new_tokens"]
        chances = chances_of(batch["id"], self.global_step, self.risk_samples, limit)
        loss = expected_risk(self.network, batch, chances, self.likelihood, not is_sharded(self._trainer))
        return loss * batch["weight"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score a batch of the validation split."""
        output = self._evaluate(batch, self.val_loss, self.val_scores)
        self.log("val/loss", self.val_loss)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation split."""
        self._log(self.val_scores)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Score a batch of the test split."""
        output = self._evaluate(batch, self.test_loss, self.test_scores)
        self.log("test/loss", self.test_loss)
        return output

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test split."""
        self._log(self.test_scores)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Summarize without scoring."""
        return self._outputs(batch, self.generate(batch))

    def generate(self, batch: dict[str, Any]) -> Tensor:
        """Summaries as tokens, (batch, at most max_new_tokens), padded behind their ends."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self._decodes_greedily():
            limits = {name: self.generation[name] for name in ("max_new_tokens", "no_repeat_ngram_size")}
            return greedy(self.network, **inputs, **limits)
        # padding is masked, but would be favoured as if it were text
        inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), inputs["input_ids"][:, :1])
        count = self.generation["num_beams"] if self.mbr_samples and not self._in_training() else 1
        settings = self.generation | {"num_return_sequences": count}
        if isinstance(self.network, T5ForConditionalGeneration):
            settings |= {"past_key_values": BeamCache(), "use_cache": True, "cache_implementation": None}
        found = self.network.generate(**inputs, **settings)[:, 1:]  # without the token that starts the decoder
        if count == 1:
            return found
        chances = chances_of(batch["id"], 0, self.mbr_samples, self.generation["max_new_tokens"])
        texts = (batch["input_ids"], batch["attention_mask"])
        devices = [texts[0].device] if texts[0].is_cuda else []  # not all GPUs: other processes have theirs
        with torch.random.fork_rng(devices):  # what is not a T5, or is sharded, draws torch's random numbers
            torch.manual_seed(int(batch["id"][0]))
            drawn = draw(self.network, *texts, chances, not is_sharded(self._trainer))
        return found[least_risk(batch["decode"](found), batch["decode"](drawn), len(batch["id"]))]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and decay, stepped with every batch."""
        return optimizer.configure(self, self.learning_rate, self.weight_decay, self.schedule, self.warmup)

    def _in_training(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _decodes_greedily(self) -> bool:
        """Whether litlab's own decoding can be used, which reads the weights of a T5 directly: not if they are sharded."""
        whole = not is_sharded(self._trainer)
        return self.generation["num_beams"] == 1 and type(self.network) is T5ForConditionalGeneration and whole

    def _evaluate(self, batch: dict[str, Any], mean_loss: MeanMetric, scores: SummarizationScores) -> dict[str, Any]:
        mean_loss.update(self(batch), weight=(batch["labels"] >= 0).sum())
        tokens = self.generate(batch)
        output = self._outputs(batch, tokens)
        ends = torch.isin(tokens, ends_of(self.network))
        over = ends.cumsum(dim=1) > ends.long()  # beam search fills up with ends
        lengths = (~over & (tokens != self.network.config.pad_token_id)).sum(dim=1)
        capped = ~ends.any(dim=1)
        texts = None if self._in_training() else batch["source"]  # lead-1 does not change: once, in the end, is enough
        scores.update(output["text"], batch["target"], lengths, capped, texts)
        return output

    def _outputs(self, batch: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        names = {"id", "source", "target"}
        return {name: batch[name] for name in batch if name in names} | {"text": batch["decode"](tokens)}

    def _log(self, scores: SummarizationScores) -> None:
        means = scores.compute()
        scores.reset()
        self.log_dict(means, sync_dist=True)  # equal everywhere already, but Lightning warns otherwise
        capped = next(float(mean) for name, mean in means.items() if name.endswith("/capped"))
        if capped > CAPPED_SHARE and not self._in_training():
            warn_of_cut_summaries(capped, self.generation["max_new_tokens"])


@rank_zero_only
def warn_of_cut_summaries(share: float, limit: int) -> None:
    """Say that scores suffer from the limit."""
    print(
        f"attention: {share:.0%} of the summaries reached {limit} tokens and were cut there; raise model.max_new_tokens",
        file=sys.stderr,
    )
