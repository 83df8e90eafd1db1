"""Faster parts for the networks of `transformers`: up to rounding and the choice of random numbers they compute the same.

benchmarks/LOG.md has the gain of each.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertPreTrainedModel, BertSelfAttention
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5DenseActDense,
    T5DenseGatedActDense,
    T5LayerCrossAttention,
    T5PreTrainedModel,
)

ATTENTION = "litlab"
SEVERAL_PRODUCTS = (BertSelfAttention, T5Attention, T5DenseActDense, T5DenseGatedActDense)  # of the same input


def speed_up(network: PreTrainedModel) -> None:
    """Exchange parts of a network for faster ones; what it has no faster part for stays.

    Args:
        network: of any kind. Names and weights do not change.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif type(child) is NewGELUActivation:  # the same function as eight operations
                setattr(parent, name, nn.GELU(approximate="tanh"))
        if isinstance(parent, SEVERAL_PRODUCTS):
            parent.register_forward_pre_hook(_cast_once)
        if isinstance(parent, T5LayerCrossAttention):
            vars(parent.EncDecAttention)["is_cross"] = True
    if isinstance(network, BertPreTrainedModel | T5PreTrainedModel):
        network.set_attn_implementation(ATTENTION)


def _cast_once(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the input of several matrix products as autocast would cast it for each of them."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    return (inputs[0].to(torch.get_autocast_dtype(device)), *inputs[1:])


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits per element on a CPU, where torch draws a whole number.

    The probability is rounded to 1/65,536, and what is kept is scaled by the rounded one. Elsewhere it is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability `p`; input and output have the same shape."""
        if not self.training or not self.p or input.device.type != "cpu":
            return super().forward(input)
        return _Drop.apply(input, self.p)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        dropped = round(p * 2**16)
        if dropped == 2**16:
            factor = torch.zeros_like(input)
        else:
            bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
            kept = (bits[: input.numel()] >= dropped - 2**15).view(input.shape)
            factor = kept.to(input.dtype).mul_(2**16 / (2**16 - dropped))
        ctx.save_for_backward(factor)
        return input * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of BERT and T5, as `transformers` calls it.

    Args:
        module: the layer that asks.
        query: (batch, heads, length, width of a head).
        key: (batch, heads, other length, width of a head), as `value`.
        value: what is averaged.
        mask: true where attention is allowed, (batch, 1, length, other length); None: everywhere, or up to itself.
        dropout: of the attention weights.
        scaling: of the scores; None: one over the root of the width.
        position_bias: of a T5, added to the scores, (1, heads, length, other length).
        unused: what other kinds of attention take.

    Returns:
        (batch, length, heads, width of a head), and None in place of the weights.
    """
    if mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if getattr(module, "is_cross", False):
        position_bias = None  # zeros
    trains_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    bias = mask
    if trains_on_cpu or position_bias is not None:
        bias = _joined(position_bias, mask, torch.float32 if trains_on_cpu else query.dtype)
    if not trains_on_cpu:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
        return attended.transpose(1, 2), None
    # torch's own kernels for this case compute in float32, or have a backward pass that is several times slower
    scores = (query * (query.shape[3] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    scores = scores.float() if bias is None else scores + bias  # in float32, in which softmax is several times faster
    weights = scores.softmax(dim=3).to(query.dtype)
    if dropout:
        weights = _Drop.apply(weights, dropout)
    return (weights @ value).transpose(1, 2), None


def _joined(position_bias: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores: the bias, and nearly minus infinity where the mask is false; made once for all layers."""
    owner = mask if position_bias is None else position_bias
    if owner is None:
        return None
    if (joined := getattr(owner, "joined", None)) is None:
        joined = owner.new_zeros(owner.shape, dtype=dtype) if position_bias is None else position_bias.to(dtype)
        if mask is not None:
            joined = joined.masked_fill(~mask, torch.finfo(dtype).min)
        owner.joined = joined  # type: ignore[attr-defined]
    return joined


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
