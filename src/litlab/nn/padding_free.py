"""Padding-free batches: the tokens of all texts in one row, with attention within each text only.

The network computes the same for each text as in a padded batch, except that attention weights have no dropout: torch's
variable-length kernel does not support it. Other dropout stays. MosaicBERT trains without attention dropout for the same
reason (Portes et al., 2023).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import BertForSequenceClassification, PreTrainedConfig, PreTrainedModel

NAMES = ("input_ids", "token_type_ids", "attention_mask")
STEP = 32  # for torch.compile, tokens per text are rounded up to multiples of this: 16 shapes up to 512 tokens
GRAPHS = 40  # most graphs to compile: 16, 16 for smaller last batches, 8 to spare; further shapes run uncompiled


def has_kernel(network: PreTrainedModel, device: torch.device, precision: str) -> bool:
    """Whether torch's variable-length attention kernel supports this network, device and precision.

    Args:
        network: any network of transformers.
        device: the device that holds the network.
        precision: the trainer's precision, as Lightning names it.
    """
    if type(network) is not BertForSequenceClassification or device.type != "cuda" or torch.version.hip:
        return False
    width = network.config.hidden_size // network.config.num_attention_heads
    known = width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)
    return known and precision.startswith(("bf16", "16"))


def pack(batch: dict[str, Any], longest: int | None = None) -> dict[str, Any]:
    """Remove the padding of a batch: its texts follow each other in one row. All other entries stay.

    Call it on the CPU, before the batch is sent to a GPU: there, it would wait for the number of tokens.

    Args:
        batch: `attention_mask`, `input_ids` and optionally `token_type_ids`, each (batch, length), padded at the end.
        longest: for shapes that repeat, the most tokens of any text of any batch: filler tokens are appended, up to a
            multiple of 32 per text.

    Returns:
        The batch with these three as (1, tokens), and with `position_ids` (1, tokens), `starts` (batch,), the index of each
        text's first token, `cu_seqlens` (batch + 1,), or (batch + 2,) with filler, the starts and the end, and `longest`, the
        most tokens of a text.
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
        ends = torch.cat([ends, ends[-1:] + rest])  # the filler is one more text, whose output is unused
        length = max(longest, STEP * rows)
    more |= {name: values[None] for name, values in tokens.items()}
    return {**batch, **more, "cu_seqlens": ends, "longest": length}


def widen(batch: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Add padding to a batch, so that shapes repeat.

    Args:
        batch: `attention_mask`, `input_ids` and optionally `token_type_ids`, each (batch, length).
        config: the network's configuration.

    Returns:
        The batch, with these padded to a multiple of 32 tokens, or to the network's limit.
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
    """Compile the encoder at its first call, once per shape; the names of the weights do not change."""
    limits: Any = torch._dynamo.config  # shapes beyond its limit run uncompiled
    limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    network.base_model.compile(dynamic=False)


def classify(network: Any, batch: dict[str, Any]) -> Tensor:
    """Logits of a packed batch, (batch, classes), equal to those of BertForSequenceClassification for the padded one."""
    names = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens", "longest")
    hidden = network.bert(**{name: batch[name] for name in names if name in batch}).last_hidden_state[0]
    first = hidden[batch["starts"], None]  # (batch, 1, width)
    return network.classifier(network.dropout(network.bert.pooler(first)))


def attend(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None
) -> Tensor:
    """Attention of each token to the tokens of its own text.

    Args:
        query: (tokens, heads, head width).
        key: (tokens, heads, head width).
        value: (tokens, heads, head width).
        cu_seqlens: index of each text's first token and of the end, (texts + 1,) int32.
        longest: most tokens of a text.
        scaling: factor of the attention scores; None: 1 / sqrt(head width).

    Returns:
        (tokens, heads, head width).
    """
    if query.is_cuda and query.dtype != torch.float32:
        ends = cu_seqlens
        return varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling)  # type: ignore[return-value]
    # without the kernel, for tests: slow, because it computes the attention scores between all texts and masks them
    text = torch.searchsorted(cu_seqlens, torch.arange(len(query)).to(cu_seqlens), right=True)
    query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    same = text[:, None] == text
    return F.scaled_dot_product_attention(query, key, value, attn_mask=same, scale=scaling).transpose(0, 1)
