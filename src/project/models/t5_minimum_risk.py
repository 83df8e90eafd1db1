"""A T5 summarizer that is trained and decoded for ROUGE.

Minimum risk training raises the probability of the model's own summaries with higher ROUGE. It minimizes the expected risk,
1 minus ROUGE (Shen et al., 2016; for headlines Ayana et al., 2016), as a policy gradient whose baseline is the mean reward of the
other summaries of the same text (Kool et al., 2019).

Minimum Bayes risk decoding chooses the beam-search hypothesis with the least expected risk, with sampled summaries as equally
probable targets (Kumar and Byrne, 2004; Eikema and Aziz, 2022).
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
LENGTH_GROUPS = 4  # a batch's summaries are divided into this many groups of similar length
LENGTH_MULTIPLE = (
    4  # groups are padded to multiples of this many tokens: few shapes, as in project/data/summarization.py
)
# factor of the risk (from 0 to 1) relative to a target's negative log-likelihood (a sum over its tokens); both are divided by the
# number of target tokens of the batch, so the risk counts more for short targets
RISK_SCALE = 10.0


class T5MinimumRisk(T5Summarizer):
    """A T5Summarizer with minimum risk training and minimum Bayes risk decoding.

    All other options are those of T5Summarizer.

    Args:
        risk_samples: summaries sampled per text for minimum risk training, at least 2; 0: train on the targets only (maximum
            likelihood), as random weights need. ROUGE sees only the letters a to z and digits.
        risk_after: share of all steps, at the start, that train on the targets only, as new kinds of texts need.
        likelihood: weight of the targets' negative log-likelihood in the loss of minimum risk training.
        mbr_samples: summaries sampled per text for minimum Bayes risk decoding: the beam-search hypothesis with the highest mean
            ROUGE-1 against them is chosen. 0: the most probable one, which is also used for texts without letters a to z
            and, for speed, in validations during training.
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
                "model.risk_samples=1: one summary has no other to compare with; use at least 2, or 0 for maximum likelihood."
            )
        if mbr_samples and self.generation["num_beams"] == 1:
            raise BadInput(
                f"model.mbr_samples={mbr_samples}: greedy decoding has one hypothesis only; set model.num_beams to 2 or more, or "
                "mbr_samples to 0."
            )

    def configure_model(self) -> None:
        """Build or load the network, once.

        Raises:
            BadInput: if minimum risk training does not support the network's class.
        """
        super().configure_model()
        if self.risk_samples and not hasattr(self.network, "prepare_decoder_input_ids_from_labels"):
            raise BadInput(
                f"model.risk_samples={self.risk_samples}: minimum risk training does not support {type(self.network).__name__}; set it to 0."
            )

    def on_train_start(self) -> None:
        """Compute the first step of minimum risk training."""
        if self.risk_after:
            self.first_risk_step = self.risk_after * self.trainer.estimated_stepping_batches

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one slice of a global batch, weighted so that the average over slices is the mean over the batch's tokens."""
        if not self.risk_samples or self.global_step < self.first_risk_step:
            return super().training_step(batch, batch_idx)
        longest = self.generation["max_new_tokens"]
        uniforms = uniform_numbers(batch["id"], self.global_step, self.risk_samples, longest)
        loss = expected_risk(self.network, batch, uniforms, self.likelihood, self.unsharded)
        return loss * batch["weight"]

    def generate(self, batch: dict[str, Any]) -> Tensor:
        """Summaries as tokens, (batch, at most max_new_tokens): the hypotheses with the least risk; during training the most probable."""
        if not self.mbr_samples or self._in_training():
            return super().generate(batch)
        hypotheses = self.hypotheses(batch, self.generation["num_beams"])  # (batch x num_beams, length)
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        uniforms = uniform_numbers(batch["id"], 0, self.mbr_samples, self.generation["max_new_tokens"])
        devices = [input_ids.device] if input_ids.is_cuda else []  # only this GPU: other processes use the others
        with torch.random.fork_rng(
            devices
        ):  # a network that is not a T5, or is sharded, samples with torch's generator
            torch.manual_seed(int(batch["id"][0]))
            drawn = draw(self.network, input_ids, mask, uniforms, self.unsharded)
        return hypotheses[least_risk(batch["decode"](hypotheses), batch["decode"](drawn), len(batch["id"]))]


def expected_risk(network: Any, batch: dict[str, Any], uniforms: Tensor, likelihood: float, unsharded: bool) -> Tensor:
    """The loss: ten times the expected risk of each text, plus the weighted negative log-likelihood of its target.

    The likelihood keeps the summaries fluent. Both terms are sums over the texts, divided by the number of target tokens. Summaries
    sampled in evaluation mode estimate the risk. Sampling has no gradient: it is estimated from each summary's advantage over
    the others, unbiased unless there is dropout.

    Args:
        network: an encoder-decoder.
        batch: `input_ids` and `attention_mask` (batch, length), `labels` (batch, target length), negative after a
            target's end, and `decode`, which turns tokens into strings.
        uniforms: uniform random numbers, (batch x at least 2 summaries per text, most tokens); see `draw`.
        likelihood: weight of the likelihood, from 0 to 1.
        unsharded: whether this process has all weights, so that litlab's own decoding can be used.
    """
    labels, mask, pad = batch["labels"], batch["attention_mask"], network.config.pad_token_id
    count = len(uniforms) // len(labels)

    # sample summaries; without dropout, one pass of the encoder serves sampling and training
    encode = partial(network.get_encoder(), input_ids=batch["input_ids"], attention_mask=mask)
    encode_once = unsharded and getattr(network.config, "dropout_rate", 1) == 0
    encoded = encode()[0] if encode_once else None
    drawn = draw(network, batch["input_ids"], mask, uniforms, unsharded, encoded)
    encoded = encode()[0] if encoded is None else encoded

    # compute their rewards against the targets
    rewards = reward(batch["decode"](drawn), batch["decode"](labels.where(labels >= 0, pad))).to(labels.device)
    advantages = (
        (rewards - rewards.mean(dim=1, keepdim=True)) * count / (count - 1)
    )  # relative to the mean of the others

    # log-likelihoods of sampled summaries, masked after their ends, and of targets, in one batch
    ends = torch.isin(drawn, end_tokens(network))
    drawn = drawn.masked_fill(ends.cumsum(dim=1) > ends.long(), -100)
    length = max(uniforms.shape[1], labels.shape[1])
    summaries = torch.cat([F.pad(tokens, (0, length - tokens.shape[1]), value=-100) for tokens in (drawn, labels)])
    texts = torch.arange(len(labels), device=labels.device)
    texts = torch.cat([texts.repeat_interleave(count), texts])
    losses = _negative_log_likelihoods(network, encoded, mask, texts, summaries)
    of_drawn, of_targets = losses.split([len(drawn), len(labels)])

    # the surrogate has the gradient of the risk; subtracting its value leaves the estimated risk as the value
    surrogate = (advantages.flatten() * of_drawn).sum() / count
    risk = (1 - rewards.mean(dim=1)).sum() + surrogate - surrogate.detach()
    return ((1 - likelihood) * RISK_SCALE * risk + likelihood * of_targets.sum()) / (labels >= 0).sum()


def _negative_log_likelihoods(network: Any, encoded: Tensor, mask: Tensor, texts: Tensor, summaries: Tensor) -> Tensor:
    """The negative log-likelihood of each summary, (summaries,); grouped by length to save padding.

    Args:
        network: an encoder-decoder.
        encoded: the encoder's output, (batch, length, width).
        mask: attention mask of the texts, (batch, length).
        texts: the row of each summary's text in the batch, (summaries,).
        summaries: tokens, (summaries, longest), negative after their ends.
    """
    lengths = (summaries >= 0).sum(dim=1)
    order = lengths.argsort()
    losses = []
    groups = min(LENGTH_GROUPS, len(summaries) // mask.shape[0])  # equal on all ranks, which sharded networks need
    for rows in order.tensor_split(groups):
        width = -(-int(lengths[rows[-1]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE  # at most the longest
        labels, of = summaries[rows, :width], texts[rows]
        logits = network(
            encoder_outputs=(encoded[of],),
            attention_mask=mask[of],
            decoder_input_ids=network.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits  # (rows, width, vocabulary)
        each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
        losses.append(each.view(labels.shape).sum(dim=1))
    return torch.cat(losses)[order.argsort()]


def uniform_numbers(ids: Tensor, step: int, count: int, length: int) -> Tensor:
    """Uniform random numbers from 0 to 1 for sampling summaries, (texts x count, length).

    They depend only on the step and on each text, not on the rank or the other texts of a batch.

    Args:
        ids: ids of the texts, (texts,).
        step: optimizer step.
        count: summaries per text.
        length: most tokens of a summary.
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
    """Sample summaries as tokens, (batch x summaries per text, at most the longest); those of a text are consecutive.

    A network that is not a T5, or is sharded, samples with `generate` and torch's generator instead of `uniforms`.

    Args:
        network: an encoder-decoder.
        input_ids: texts as tokens, (batch, length).
        attention_mask: 1 for tokens, 0 for padding, (batch, length).
        uniforms: uniform random numbers, (batch x summaries per text, most tokens).
        unsharded: whether this process has all weights.
        encoded: the encoder's output in evaluation mode, (batch, length, width); None: it is computed.
    """
    with _evaluation_mode(network):
        if unsharded and type(network) is T5ForConditionalGeneration:
            if encoded is None:
                encoded = network.encoder(input_ids, attention_mask).last_hidden_state
            return sample(network, encoded, attention_mask, uniforms)
        own = network.generation_config
        names = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
        # a pretrained model's other settings would change the distribution: it would not be the trained one
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
    """Evaluation mode inside the block; training mode is restored afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reward(summaries: list[str], targets: list[str]) -> Tensor:
    """The weighted mean of ROUGE-1 and ROUGE-L, (targets, summaries per target).

    Args:
        summaries: the same number per target; those of a target are consecutive.
        targets: the reference summaries.
    """
    count = len(summaries) // len(targets)
    found = _scorer()([target for target in targets for _ in range(count)], summaries)
    return torch.tensor(
        [sum(weight * scores[name].fmeasure for name, weight in REWARD_WEIGHTS.items()) for scores in found]
    ).view(-1, count)


def least_risk(hypotheses: list[str], drawn: list[str], texts: int) -> Tensor:
    """For each text, the index of the hypothesis with the highest mean ROUGE-1 against its sampled summaries, (texts,).

    Each string is split into words once, ten times faster than rouge-score in Python. ROUGE sees only the letters a to z and
    digits.

    Args:
        hypotheses: the same number per text, consecutive, the most probable first; of equal ones, the first is chosen.
        drawn: sampled summaries, the same number per text, consecutive.
        texts: number of texts.
    """
    tokenize, best = _tokenizer().tokenize, []
    per_text, drawn_per_text = len(hypotheses) // texts, len(drawn) // texts
    for text in range(texts):
        references = [Counter(tokenize(summary)) for summary in drawn[text * drawn_per_text :][:drawn_per_text]]
        candidates = [Counter(tokenize(summary)) for summary in hypotheses[text * per_text :][:per_text]]
        agreement = [fsum(_rouge1(words, other) for other in references) for words in candidates]
        best.append(text * per_text + agreement.index(max(agreement)))
    return torch.tensor(best)


def _rouge1(one: Counter[str], other: Counter[str]) -> float:
    """The F-measure of two summaries, given as counts of words."""
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 0.0


@cache
def _tokenizer() -> Any:
    """Splits a string into the stems that ROUGE compares."""
    from rouge_score.tokenizers import DefaultTokenizer  # takes a second, as below

    return DefaultTokenizer(use_stemmer=True)


_scorer = cache(lambda: rouge_scorer(tuple(REWARD_WEIGHTS)))  # it takes a second to import
