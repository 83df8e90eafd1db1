"""Training for the score itself: of the summaries that a model draws of a text, the better ones become likelier.

It minimizes the expected risk, which is 1 minus ROUGE (Shen et al., 2016; for headlines Ayana et al., 2016), as a policy
gradient whose baseline is the mean of the other summaries of the same text (Kool et al., 2019).
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from litlab.models.scores import rouge_scorer
from litlab.models.t5_decoding import sample

NAMES = ("rouge1", "rougeL")  # whose mean counts
SCALE = 10.0  # of the risk, a number of few hundredths, beside the likelihood of a token


def expected_risk(
    network: Any, batch: dict[str, Any], count: int, max_new_tokens: int, likelihood: float, whole: bool
) -> Tensor:
    """The loss: ten times the expected risk, as what is drawn estimates it, and a share of the targets' negative log-likelihood.

    The share keeps the summaries sentences. What is drawn cannot be differentiated; the gradient is an unbiased estimate of the
    risk's all the same, but for a factor: as the likelihood, it is a mean over the tokens of the targets.

    Args:
        network: an encoder-decoder.
        batch: `input_ids` and `attention_mask` (batch, length), `labels` (batch, target length), below 0 where a target has
            ended, and `decode`, which turns tokens into strings.
        count: summaries drawn of each text, at least 2.
        max_new_tokens: of each.
        likelihood: the share, from 0 to 1.
        whole: whether litlab's own decoding can be used for a T5: not if its weights are sharded.
    """
    labels, mask, pad = batch["labels"], batch["attention_mask"], network.config.pad_token_id
    encoded = network.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)[0]
    drawn = draw(network, encoded.detach(), mask, count, max_new_tokens, whole)
    scores = score(batch["decode"](drawn), batch["decode"](labels.where(labels >= 0, pad))).to(labels.device)
    better = (scores - scores.mean(dim=1, keepdim=True)) * count / (count - 1)  # than the mean of the others
    drawn = drawn.masked_fill(drawn == pad, -100)
    length = max(drawn.shape[1], labels.shape[1])
    both = torch.cat([F.pad(tokens, (0, length - tokens.shape[1]), value=-100) for tokens in (drawn, labels)])
    encoded, mask = (torch.cat([tensor.repeat_interleave(count, dim=0), tensor]) for tensor in (encoded, mask))
    logits = network(
        encoder_outputs=(encoded,),
        attention_mask=mask,
        decoder_input_ids=network.prepare_decoder_input_ids_from_labels(labels=both),
        use_cache=False,
    ).logits
    losses = F.cross_entropy(logits.flatten(0, 1).float(), both.flatten(), ignore_index=-100, reduction="none")
    of_drawn, of_targets = losses.view(both.shape).split([len(drawn), len(labels)])
    tokens = (labels >= 0).sum()
    way = (better.flatten()[:, None] * of_drawn).sum() / count / tokens  # has the risk's gradient, but not its value
    risk = 1 - scores.mean() + way - way.detach()
    return (1 - likelihood) * SCALE * risk + likelihood * of_targets.sum() / tokens


@torch.no_grad()
def draw(network: Any, encoded: Tensor, attention_mask: Tensor, count: int, max_new_tokens: int, whole: bool) -> Tensor:
    """Summaries as tokens, (batch x count, at most max_new_tokens), those of a text behind each other.

    Args:
        network: as of `expected_risk`, as the other arguments.
        encoded: what its encoder has made of the texts, (batch, length, width).
        attention_mask: of the texts, (batch, length).
        count: summaries of each text.
        max_new_tokens: of each.
        whole: see `expected_risk`.
    """
    if whole and type(network) is T5ForConditionalGeneration:
        return sample(network, encoded, attention_mask, max_new_tokens, count)
    return network.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        num_return_sequences=count,
        do_sample=True,
        top_k=0,
        num_beams=1,
        # a pretrained model's own settings would be another distribution than the one that is trained
        top_p=1.0,
        temperature=1.0,
        min_length=0,
        no_repeat_ngram_size=0,
        forced_eos_token_id=None,
    )[:, 1:]


def score(summaries: list[str], targets: list[str]) -> Tensor:
    """The mean of ROUGE-1 and ROUGE-L, (targets, summaries of each).

    Args:
        summaries: as many of each target, those of a target behind each other.
        targets: what they should say.
    """
    count = len(summaries) // len(targets)
    found = _scorer()([target for target in targets for _ in range(count)], summaries)
    return torch.tensor([sum(scores[name].fmeasure for name in NAMES) / len(NAMES) for scores in found]).view(-1, count)


_scorer = cache(lambda: rouge_scorer(NAMES))  # it takes a second to import
