"""Batches without padding: the tokens of all texts in one row, and attention that stays within each text.

The network computes for each text what it computes in a padded batch, but for dropout of attention weights, which torch's
kernel does not have. Other dropout stays. MosaicBERT is trained so for the same reason (Portes et al., 2023).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import BertForSequenceClassification, PreTrainedConfig, PreTrainedModel

NAMES = ("input_ids", "token_type_ids", "attention_mask")
STEP = 32  # tokens per text to whose multiples shapes are rounded for torch.compile: 16 shapes up to 512 tokens
GRAPHS = 40  # that are compiled at most: 16, as many for smaller last batches, and some; other shapes run uncompiled


def has_kernel(network: PreTrainedModel, device: torch.device, precision: str) -> bool:
    """Whether attention of this network runs in torch's kernel for texts of different length.

    Args:
        network: of any kind.
        device: that it is on.
        precision: of the trainer.
    """
    if type(network) is not BertForSequenceClassification or device.type != "cuda" or torch.version.hip:
        return False
    width = network.config.hidden_size // network.config.num_attention_heads
    known = width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)
    return known and precision.startswith(("bf16", "16"))


def pack(batch: dict[str, Any], longest: int | None = None) -> dict[str, Any]:
    """A batch whose texts, padded at their ends, lie one behind the other; what else it holds stays.

    On the CPU, before it is sent to the device: there, the number of tokens would have to be waited for.

    Args:
        batch: with `attention_mask`, `input_ids` and perhaps `token_type_ids`, each (batch, length).
        longest: tokens of the longest text of any batch, if shapes are to repeat: tokens of no text follow, up to a multiple
            of 32 per text.

    Returns:
        The batch with these three as (1, tokens), `position_ids` (1, tokens), `starts` (batch,), the place of each text's first
        token, `cu_seqlens` (batch + 1 or 2,), these and the end of the last text, and `longest`, the most tokens of a text.
    """
    real = batch["attention_mask"].bool()
    rows, length = real.shape
    tokens: dict[str, Tensor] = {name: batch[name][real] for name in NAMES if name in batch}
    tokens["position_ids"] = torch.arange(length, device=real.device).expand(rows, length)[real]
    ends = F.pad(real.sum(dim=1).cumsum(dim=0, dtype=torch.int32), (1, 0))
    more: dict[str, Any] = {"starts": ends[:-1].long()}
    if longest:
        rest = -len(tokens["input_ids"]) % (STEP * rows)
        tokens = {name: F.pad(values, (0, rest)) for name, values in tokens.items()}
        ends = torch.cat([ends, ends[-1:] + rest])  # one more text, perhaps empty, which nobody looks at
        length = max(longest, STEP * rows)
    more |= {name: values[None] for name, values in tokens.items()}
    return {**batch, **more, "cu_seqlens": ends, "longest": length}


def widen(batch: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """A batch with more padding, so that shapes repeat.

    Args:
        batch: with `attention_mask`, `input_ids` and perhaps `token_type_ids`, each (batch, length).
        config: of the network.

    Returns:
        The batch, in which these have a length that is a multiple of 32, or the network's limit.
    """
    length = batch["attention_mask"].shape[1]
    more = -length % STEP
    if limit := getattr(config, "max_position_embeddings", None):
        more = min(more, max(limit - length, 0))
    fill = {"input_ids": config.pad_token_id or 0}
    return {
        **batch,
        **{name: F.pad(batch[name], (0, more), value=fill.get(name, 0)) for name in NAMES if name in batch},
    }


def compile_training(network: PreTrainedModel) -> None:
    """Have torch compile the encoder when it is first called, once per shape; names of weights do not change."""
    limits: Any = torch._dynamo.config  # beyond its limit, torch runs a new shape uncompiled
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    network.base_model.compile(dynamic=False)


def classify(network: Any, batch: dict[str, Any]) -> Tensor:
    """Logits, (batch, classes), of a packed batch, as BertForSequenceClassification makes them of a padded one."""
    names = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "longest")
    hidden = network.bert(**{name: batch[name] for name in names if name in batch}).last_hidden_state[0]
    first = hidden[batch["starts"], None]  # (batch, 1, width)
    return network.classifier(network.dropout(network.bert.pooler(first)))


def attend(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None
) -> Tensor:
    """Attention of each token to those of its own text.

    Args:
        query: (tokens, heads, width of a head).
        key: as `query`.
        value: as `query`.
        cu_seqlens: where each text begins and the last one ends, (texts + 1,) int32.
        longest: most tokens of a text.
        scaling: of the scores; None: one over the root of the width.

    Returns:
        (tokens, heads, width of a head).
    """
    if query.is_cuda and query.dtype != torch.float32:
        ends = cu_seqlens
        return varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling)  # type: ignore[return-value]
    # elsewhere, for tests: slow, because it computes what it masks
    text = torch.searchsorted(cu_seqlens, torch.arange(len(query)).to(cu_seqlens), right=True)
    query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    same = text[:, None] == text
    return F.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=scaling).transpose(0, 1)
