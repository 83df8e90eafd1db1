"""Training for the score itself, and decoding for it.

Training makes those of the summaries that a model draws of a text likelier that score better. It minimizes the expected risk, which
is 1 minus ROUGE (Shen et al., 2016; for headlines Ayana et al., 2016), as a policy gradient whose baseline is the mean of the
other summaries of the same text (Kool et al., 2019).

Decoding takes the hypothesis of beam search with the least risk, as if one of the drawn summaries were the target, each with the same
probability (Kumar and Byrne, 2004; Eikema and Aziz, 2022).
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
from torch import Tensor
from transformers import GenerationConfig, T5ForConditionalGeneration

from litlab.nn.metrics import rouge_scorer
from litlab.nn.t5_decoding import ends_of, sample

SHARES = {"rouge1": 0.75, "rougeL": 0.25}  # of the score that is learned from
PARTS = 4  # into which the summaries of a batch are divided by length: drawn ones are of any
MULTIPLE = 4  # the tokens to which the summaries of a part are padded: few shapes, as in data/summarization.py
# of a risk, a number between 0 and 1, beside the likelihood of a target of many tokens; among the tokens of a batch of short
# targets it weighs more than among those of long ones
SCALE = 10.0


def expected_risk(network: Any, batch: dict[str, Any], chances: Tensor, likelihood: float, whole: bool) -> Tensor:
    """The loss: ten times the risk that is expected of each text, and a share of its target's negative log-likelihood.

    The share keeps the summaries sentences. Both are sums over the texts, divided by the tokens of the targets. What is drawn, in
    evaluation mode, estimates the risk; its gradient, which cannot go through drawing, is estimated by how much better each
    summary is than the others, without bias unless there is dropout.

    Args:
        network: an encoder-decoder.
        batch: `input_ids` and `attention_mask` (batch, length), `labels` (batch, target length), below 0 where a target has
            ended, and `decode`, which turns tokens into strings.
        chances: what decides, (batch x at least 2 summaries of each text, longest summary); see `draw`.
        likelihood: the share, from 0 to 1.
        whole: whether litlab's own decoding can be used for a T5: not if its weights are sharded.
    """
    labels, mask, pad = batch["labels"], batch["attention_mask"], network.config.pad_token_id
    count = len(chances) // len(labels)
    encode = partial(network.get_encoder(), input_ids=batch["input_ids"], attention_mask=mask)
    same = whole and getattr(network.config, "dropout_rate", 1) == 0  # as without gradient, and in evaluation mode
    encoded = encode()[0] if same else None
    drawn = draw(network, batch["input_ids"], mask, chances, whole, encoded)
    encoded = encode()[0] if encoded is None else encoded
    scores = score(batch["decode"](drawn), batch["decode"](labels.where(labels >= 0, pad))).to(labels.device)
    better = (scores - scores.mean(dim=1, keepdim=True)) * count / (count - 1)  # than the mean of the others
    ends = torch.isin(drawn, ends_of(network))
    drawn = drawn.masked_fill(ends.cumsum(dim=1) > ends.long(), -100)  # behind its end
    length = max(chances.shape[1], labels.shape[1])
    both = torch.cat([F.pad(tokens, (0, length - tokens.shape[1]), value=-100) for tokens in (drawn, labels)])
    texts = torch.arange(len(labels), device=labels.device)
    losses = _losses(network, encoded, mask, torch.cat([texts.repeat_interleave(count), texts]), both)
    of_drawn, of_targets = losses.split([len(drawn), len(labels)])
    way = (better.flatten() * of_drawn).sum() / count  # has the gradient of the risk, but not its value
    risk = (1 - scores.mean(dim=1)).sum() + way - way.detach()
    return ((1 - likelihood) * SCALE * risk + likelihood * of_targets.sum()) / (labels >= 0).sum()


def _losses(network: Any, encoded: Tensor, mask: Tensor, texts: Tensor, summaries: Tensor) -> Tensor:
    """The negative log-likelihood of each summary, (summaries,); they are sorted by length into parts, for little padding.

    Args:
        network: as of `expected_risk`.
        encoded: what its encoder has made of the texts, (batch, length, width).
        mask: of the texts, (batch, length).
        texts: which of them each summary is of, (summaries,).
        summaries: tokens, (summaries, most), below 0 behind their ends.
    """
    lengths = (summaries >= 0).sum(dim=1)
    order = lengths.argsort()
    losses = []
    parts = min(PARTS, len(summaries) // mask.shape[0])  # as many on each process, which sharded networks need
    for rows in order.tensor_split(parts):
        width = -(-int(lengths[rows[-1]]) // MULTIPLE) * MULTIPLE  # or all, if there are fewer
        labels, of = summaries[rows, :width], texts[rows]
        logits = network(
            encoder_outputs=(encoded[of],),
            attention_mask=mask[of],
            decoder_input_ids=network.prepare_decoder_input_ids_from_labels(labels=labels),
            use_cache=False,
        ).logits
        each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
        losses.append(each.view(labels.shape).sum(dim=1))
    return torch.cat(losses)[order.argsort()]


def chances_of(ids: Tensor, step: int, count: int, length: int) -> Tensor:
    """What decides which summaries are drawn of some texts, (texts x count, length), between 0 and 1.

    It is a function of the step and of each text, so that it does not matter which process draws, or beside which others.

    Args:
        ids: of the texts, (texts,).
        step: of the optimizer.
        count: summaries of each text.
        length: tokens of the longest.
    """
    generators = (np.random.Generator(np.random.SFC64([step, number])) for number in ids.tolist())
    rows = [generator.random((count, length), dtype=np.float32) for generator in generators]
    return torch.from_numpy(np.concatenate(rows)).to(ids.device)


@torch.no_grad()
def draw(
    network: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    chances: Tensor,
    whole: bool,
    encoded: Tensor | None = None,
) -> Tensor:
    """Summaries as tokens, (batch x summaries of each text, at most the longest), those of a text behind each other.

    Other networks than a T5, and sharded ones, are asked to generate, and draw torch's random numbers, as dropout does.

    Args:
        network: as of `expected_risk`, as the other arguments.
        input_ids: texts as tokens, (batch, length).
        attention_mask: of the texts, (batch, length).
        chances: see `expected_risk`.
        whole: see `expected_risk`.
        encoded: what the encoder makes of the texts in evaluation mode, (batch, length, width); None: it is asked.
    """
    with _evaluating(network):
        if whole and type(network) is T5ForConditionalGeneration:
            if encoded is None:
                encoded = network.encoder(input_ids, attention_mask).last_hidden_state
            return sample(network, encoded, attention_mask, chances)
        own = network.generation_config
        names = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
        # a pretrained model's other settings would be another distribution than the one that is trained
        network.generation_config = GenerationConfig(
            **{name: getattr(own, name) for name in names},
            max_new_tokens=chances.shape[1],
            num_return_sequences=len(chances) // len(input_ids),
            do_sample=True,
            top_k=0,
        )
        try:
            return network.generate(input_ids=input_ids, attention_mask=attention_mask)[:, 1:]
        finally:
            network.generation_config = own


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Without dropout."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def score(summaries: list[str], targets: list[str]) -> Tensor:
    """What is learned from, of ROUGE-1 and ROUGE-L as SHARES has it, (targets, summaries of each).

    Args:
        summaries: as many of each target, those of a target behind each other.
        targets: what they should say.
    """
    count = len(summaries) // len(targets)
    found = _scorer()([target for target in targets for _ in range(count)], summaries)
    return torch.tensor(
        [sum(share * scores[name].fmeasure for name, share in SHARES.items()) for scores in found]
    ).view(-1, count)


def least_risk(hypotheses: list[str], drawn: list[str], texts: int) -> Tensor:
    """Which of the hypotheses of each text has the highest mean ROUGE-1 against what was drawn of it, (texts,).

    ROUGE-1 is counted here, in a tenth of the time of rouge-score in Python: each string is split into words once. It knows the
    letters a to z and digits only.

    Args:
        hypotheses: as many of each text, those of a text behind each other, the likeliest first: of equals the first is taken.
        drawn: likewise, of the same texts.
        texts: how many there are.
    """
    tokenize, best = _tokenizer().tokenize, []
    many, more = len(hypotheses) // texts, len(drawn) // texts
    for text in range(texts):
        others = [Counter(tokenize(summary)) for summary in drawn[text * more :][:more]]
        words = [Counter(tokenize(summary)) for summary in hypotheses[text * many :][:many]]
        agreement = [fsum(_f_measure(some, other) for other in others) for some in words]
        best.append(text * many + agreement.index(max(agreement)))
    return torch.tensor(best)


def _f_measure(one: Counter[str], other: Counter[str]) -> float:
    """ROUGE-1 of two summaries as words."""
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 0.0


@cache
def _tokenizer() -> Any:
    """What splits a string into the stems that ROUGE compares."""
    from rouge_score.tokenizers import DefaultTokenizer  # takes a second, as below

    return DefaultTokenizer(use_stemmer=True)


_scorer = cache(lambda: rouge_scorer(tuple(SHARES)))  # it takes a second to import
