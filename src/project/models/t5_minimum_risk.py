"""A T5 summarizer that is trained and decoded to maximize ROUGE.

Minimum risk training samples summaries from the model and minimizes their expected risk, 1 - ROUGE (Shen et al., 2016;
for headlines, Ayana et al., 2016). It uses a policy gradient; the baseline of a sample is the mean reward of the other
samples of the same text (Kool et al., 2019).

Minimum Bayes risk decoding chooses the beam-search hypothesis with the lowest expected risk, estimated with sampled
summaries as references (Kumar and Byrne, 2004; Eikema and Aziz, 2022).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import fsum
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor
from transformers import GenerationConfig, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn.metrics import rouge_scorer
from litlab.nn.optimizer import Fraction
from litlab.nn.t5_decoding import end_tokens, sample
from project.models.t5_summarizer import T5Summarizer

REWARD_WEIGHTS = {"rouge1": 0.75, "rougeL": 0.25}
LENGTH_GROUPS = 4  # number of groups of similar length into which the summaries of a batch are divided
# groups are padded to multiples of this many tokens, to get few shapes, as in project/data/summarization.py
LENGTH_MULTIPLE = 4
# factor of a text's risk (from 0 to 1) relative to its target's negative log-likelihood (a sum over tokens); both are
# divided by the number of target tokens in the batch, so the risk counts more for short targets
RISK_SCALE = 10.0


class T5MinimumRisk(T5Summarizer):
    """A T5Summarizer with minimum risk training and minimum Bayes risk decoding.

    All other options are those of T5Summarizer.

    Args:
        risk_samples: summaries sampled per text for minimum risk training, at least 2; 0: maximum likelihood only, for
            random weights. ROUGE ignores all characters except the letters a to z and digits.
        risk_after: fraction of all steps, at the start, that use maximum likelihood only, which texts of a new kind
            need.
        likelihood: weight of the targets' negative log-likelihood in the loss of minimum risk training.
        mbr_samples: summaries sampled per text for minimum Bayes risk decoding, which chooses the beam-search
            hypothesis with the highest mean ROUGE-1 against them. 0: choose the most probable hypothesis, as for
            summaries without letters a to z and, for speed, in validations during training.
    """

    def __init__(
        self,
        *,
        risk_samples: NonNegativeInt = 4,
        risk_after: Fraction = 0.0,
        likelihood: Fraction = 0.1,
        mbr_samples: NonNegativeInt = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.risk_samples, self.risk_after, self.likelihood = risk_samples, risk_after, likelihood
        self.mbr_samples = mbr_samples
        self.first_risk_step = 0.0
        if risk_samples == 1:
            raise BadInput(
                "model.risk_samples=1: minimum risk training compares summaries of one text; use at least 2, or 0 for "
                "maximum likelihood."
            )
        if mbr_samples and self.generation["num_beams"] == 1:
            raise BadInput(
                f"model.mbr_samples={mbr_samples}: greedy decoding has one hypothesis only; set model.num_beams to 2 "
                "or more, or model.mbr_samples to 0."
            )

    def configure_model(self) -> None:
        """Build or load the network once.

        Raises:
            BadInput: if minimum risk training does not support the network's class.
        """
        super().configure_model()
        if self.risk_samples and not hasattr(self.network, "prepare_decoder_input_ids_from_labels"):
            raise BadInput(
                f"model.risk_samples={self.risk_samples}: minimum risk training does not support "
                f"{type(self.network).__name__}; set it to 0."
            )

    def on_train_start(self) -> None:
        """Compute the first step of minimum risk training."""
        if self.risk_after:
            self.first_risk_step = self.risk_after * self.trainer.estimated_stepping_batches

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a slice of the global batch, weighted so that the mean over slices is the token mean."""
        if not self.risk_samples or self.global_step < self.first_risk_step:
            return super().training_step(batch, batch_idx)
        longest = self.generation["max_new_tokens"]
        uniforms = uniform_numbers(batch["id"], self.global_step, self.risk_samples, longest)
        loss = expected_risk(self.network, batch, uniforms, self.likelihood, self.unsharded)
        return loss * batch["weight"]

    def generate(self, batch: dict[str, Any]) -> Tensor:
        """Return the summaries with the lowest risk, in training the most probable, (batch, at most max_new_tokens)."""
        if not self.mbr_samples or self._in_training():
            return super().generate(batch)
        hypotheses = self.hypotheses(batch, self.generation["num_beams"])  # (batch x num_beams, length)
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        uniforms = uniform_numbers(batch["id"], 0, self.mbr_samples, self.generation["max_new_tokens"])
        # a network that is not a T5, or is sharded, samples with torch's generator
        devices = [input_ids.device] if input_ids.is_cuda else []  # other GPUs belong to other processes
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(batch["id"][0]))
            samples = draw(self.network, input_ids, mask, uniforms, self.unsharded)
        return hypotheses[least_risk(batch["decode"](hypotheses), batch["decode"](samples), len(batch["id"]))]


def expected_risk(network: Any, batch: dict[str, Any], uniforms: Tensor, likelihood: float, unsharded: bool) -> Tensor:
    """Return the loss: a weighted mean of the expected risk, times 10, and the negative log-likelihood of the targets.

    The likelihood keeps the summaries fluent. Both terms are sums over the texts, divided by the number of target
    tokens. Summaries sampled in evaluation mode estimate the risk. Sampling has no gradient, so the gradient is
    estimated from the advantage of each summary over the others of its text. The estimate is unbiased if there is no
    dropout.

    Args:
        network: an encoder-decoder.
        batch: `input_ids` and `attention_mask` (batch, length), `labels` (batch, target length), negative after the end
            of a target, and `decode`, which maps tokens to strings.
        uniforms: uniform random numbers, (batch x at least 2 summaries per text, maximum tokens); see `draw`.
        likelihood: weight of the likelihood, from 0 to 1.
        unsharded: whether this process has all weights, which litlab's decoding needs.
    """
    labels, mask, pad = batch["labels"], batch["attention_mask"], network.config.pad_token_id
    count = len(uniforms) // len(labels)

    # sample summaries; without dropout, sampling and training share one pass of the encoder
    encode = partial(network.get_encoder(), input_ids=batch["input_ids"], attention_mask=mask)
    encode_once = unsharded and getattr(network.config, "dropout_rate", 1) == 0
    encoded = encode()[0] if encode_once else None
    samples = draw(network, batch["input_ids"], mask, uniforms, unsharded, encoded)
    encoded = encode()[0] if encoded is None else encoded

    # rewards against the targets, (batch, summaries per text); advantage: reward minus the mean reward of the others
    rewards = reward(batch["decode"](samples), batch["decode"](labels.where(labels >= 0, pad))).to(labels.device)
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) * count / (count - 1)

    # log-likelihoods of samples, masked after their end tokens, and of targets, in one batch
    ends = torch.isin(samples, end_tokens(network))
    samples = samples.masked_fill(ends.cumsum(dim=1) > ends.long(), -100)
    length = max(uniforms.shape[1], labels.shape[1])
    summaries = torch.cat([F.pad(tokens, (0, length - tokens.shape[1]), value=-100) for tokens in (samples, labels)])
    texts = torch.arange(len(labels), device=labels.device)
    texts = torch.cat([texts.repeat_interleave(count), texts])
    losses = _negative_log_likelihoods(network, encoded, mask, texts, summaries)
    sample_losses, target_losses = losses.split([len(samples), len(labels)])

    # the surrogate has the gradient of the risk; its value is subtracted, so that the result has the value of the risk
    surrogate = (advantages.flatten() * sample_losses).sum() / count
    risk = (1 - rewards.mean(dim=1)).sum() + surrogate - surrogate.detach()
    return ((1 - likelihood) * RISK_SCALE * risk + likelihood * target_losses.sum()) / (labels >= 0).sum()


def _negative_log_likelihoods(network: Any, encoded: Tensor, mask: Tensor, texts: Tensor, summaries: Tensor) -> Tensor:
    """Return the negative log-likelihood of each summary, (summaries,), computed in groups of similar length.

    Args:
        network: an encoder-decoder.
        encoded: the encoder's output, (batch, length, width).
        mask: attention mask of the texts, (batch, length).
        texts: index of each summary's text in the batch, (summaries,).
        summaries: tokens, (summaries, longest), negative after the end of a summary.
    """
    lengths = (summaries >= 0).sum(dim=1)
    order = lengths.argsort()
    losses = []
    groups = min(LENGTH_GROUPS, len(summaries) // mask.shape[0])  # the same on all ranks, which sharded networks need
    for rows in order.tensor_split(groups):
        width = -(-int(lengths[rows[-1]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE  # at most `longest`
        labels, sources = summaries[rows, :width], texts[rows]
        logits = network(
            encoder_outputs=(encoded[sources],),
            attention_mask=mask[sources],
            decoder_input_ids=network.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits  # (rows, width, vocabulary)
        each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
        losses.append(each.view(labels.shape).sum(dim=1))
    return torch.cat(losses)[order.argsort()]


def uniform_numbers(ids: Tensor, step: int, count: int, length: int) -> Tensor:
    """Return uniform random numbers from 0 to 1 for sampling summaries, (texts x count, length).

    Those of a text depend only on the step and its id, not on the rank or the other texts of the batch.

    Args:
        ids: ids of the texts, (texts,).
        step: optimizer step.
        count: summaries per text.
        length: maximum tokens of a summary.
    """
    generators = (np.random.Generator(np.random.SFC64([step, number])) for number in ids.tolist())
    rows = [generator.random((count, length), dtype=np.float32) for generator in generators]
    return torch.from_numpy(np.concatenate(rows)).to(ids.device)


@torch.no_grad()
def draw(
    network: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    uniforms: Tensor,
    unsharded: bool,
    encoded: Tensor | None = None,
) -> Tensor:
    """Sample summaries as tokens, (batch x summaries per text, at most the maximum); those of a text are consecutive.

    A network that is not a T5, or is sharded, samples with `generate` and torch's generator instead of `uniforms`.

    Args:
        network: an encoder-decoder.
        input_ids: texts as tokens, (batch, length).
        attention_mask: 1 for tokens, 0 for padding, (batch, length).
        uniforms: uniform random numbers, (batch x summaries per text, maximum tokens).
        unsharded: whether this process has all weights.
        encoded: the encoder's output in evaluation mode, (batch, length, width); None: compute it.
    """
    with _evaluation_mode(network):
        # litlab's sampling
        if unsharded and type(network) is T5ForConditionalGeneration:
            if encoded is None:
                encoded = network.encoder(input_ids, attention_mask).last_hidden_state
            return sample(network, encoded, attention_mask, uniforms)
        # sampling by `generate`, from the unchanged distribution: other settings of a pretrained model would change it
        own = network.generation_config
        names = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
        network.generation_config = GenerationConfig(
            **{name: getattr(own, name) for name in names},
            max_new_tokens=uniforms.shape[1],
            num_return_sequences=len(uniforms) // len(input_ids),
            do_sample=True,
            top_k=0,
        )
        try:
            return network.generate(input_ids=input_ids, attention_mask=attention_mask)[:, 1:]
        finally:
            network.generation_config = own


@contextmanager
def _evaluation_mode(network: Any) -> Iterator[None]:
    """Set evaluation mode inside the block, and restore the mode of each module afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reward(summaries: list[str], targets: list[str]) -> Tensor:
    """Return the reward of each summary, a weighted mean of ROUGE-1 and ROUGE-L, (targets, summaries per target).

    Args:
        summaries: the same number per target; those of a target are consecutive.
        targets: the reference summaries.
    """
    count = len(summaries) // len(targets)
    pairs = _scorer()([target for target in targets for _ in range(count)], summaries)
    return torch.tensor(
        [sum(weight * scores[name].fmeasure for name, weight in REWARD_WEIGHTS.items()) for scores in pairs]
    ).view(-1, count)


def least_risk(hypotheses: list[str], samples: list[str], texts: int) -> Tensor:
    """Return for each text the index of the hypothesis with the highest mean ROUGE-1 against its samples, (texts,).

    Each string is split into words only once, which is ten times faster than rouge-score in Python. ROUGE ignores all
    characters except the letters a to z and digits.

    Args:
        hypotheses: the same number per text, consecutive, the most probable first; of equally good ones, the first is
            chosen.
        samples: sampled summaries, the same number per text, consecutive.
        texts: number of texts.
    """
    tokenize, best = _tokenizer().tokenize, []
    per_text, samples_per_text = len(hypotheses) // texts, len(samples) // texts
    for text in range(texts):
        references = [Counter(tokenize(summary)) for summary in samples[text * samples_per_text :][:samples_per_text]]
        candidates = [Counter(tokenize(summary)) for summary in hypotheses[text * per_text :][:per_text]]
        sums = [fsum(_rouge1(candidate, reference) for reference in references) for candidate in candidates]
        best.append(text * per_text + sums.index(max(sums)))
    return torch.tensor(best)


def _rouge1(one: Counter[str], other: Counter[str]) -> float:
    """Return the ROUGE-1 F-measure of two summaries, given as counts of words."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0


@cache
def _tokenizer() -> Any:
    """Return the tokenizer that splits a string into the stems that ROUGE compares."""
    from rouge_score.tokenizers import DefaultTokenizer  # imported here: it takes a second

    return DefaultTokenizer(use_stemmer=True)


_scorer = cache(lambda: rouge_scorer(tuple(REWARD_WEIGHTS)))  # created when first used: the import takes a second
