"""Faster replacements for modules of `transformers`; their results are equal up to rounding and random numbers.

benchmarks/LOG.md lists the speedup of each. They support neither second derivatives nor torch.func: for these, do not
call `speed_up`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertPreTrainedModel, BertSelfAttention
from transformers.models.t5.modeling_t5 import (
    T5DenseActDense,
    T5DenseGatedActDense,
    T5LayerCrossAttention,
    T5LayerNorm,
    T5PreTrainedModel,
)

from litlab.nn import padding_free

ATTENTION = "litlab"


def speed_up(network: PreTrainedModel) -> None:
    """Replace modules of a network with faster ones where they exist.

    Args:
        network: any network of transformers; the names and values of its parameters do not change.
    """
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is NewGELUActivation:  # the same function in eight operations
                setattr(parent, name, nn.GELU(approximate="tanh").train(child.training))
        if isinstance(parent, BertSelfAttention):
            parent.register_forward_pre_hook(_cast_once)
        if type(parent) in FASTER:
            parent.__class__ = FASTER[type(parent)]
        if isinstance(parent, T5LayerCrossAttention):
            vars(parent.EncDecAttention)["is_cross"] = True
    if isinstance(network, BertPreTrainedModel | T5PreTrainedModel):
        network.set_attn_implementation(ATTENTION)


def _cast_once(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the input of the query, key and value projections once, where autocast would cast it for each."""
    if torch.compiler.is_compiling():
        return inputs  # the compiler merges equal casts, and torch 2.11 cannot compile `_product_dtype`
    return (inputs[0].to(_product_dtype(inputs[0])), *inputs[1:])


def _product_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype to which a matrix product casts its input."""
    device = input.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else input.dtype


class Dropout(nn.Dropout):
    """Dropout that is faster on a CPU: it draws 16 random bits per element, where torch draws an integer.

    The probability is rounded to a multiple of 1/65,536, and kept elements are scaled accordingly. On other devices,
    torch's dropout is used.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability `p`; input and output have the same shape."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        return _drop(input, self.p)


def _drop(input: Tensor, p: float) -> Tensor:
    if torch.compiler.is_compiling():
        return F.dropout(input, p)
    dropped = round(p * 2**16)
    return _Drop.apply(input, dropped) if dropped else input


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, dropped: int) -> Tensor:
        if dropped == 2**16:
            factor = torch.zeros_like(input)
        else:
            # NumPy draws random bits faster than torch on a CPU, and int16 converts to float faster than bool
            numbers = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
            bits = torch.from_numpy(numbers.random_raw(-(-input.numel() // 4)).view(np.int16))
            first_kept = dropped - 2**15
            # 1 for elements to keep, 0 for elements to drop
            kept = bits[: input.numel()].view(input.shape).clamp_(first_kept - 1, first_kept).sub_(first_kept - 1)
            scale = torch.tensor(2**16 / (2**16 - dropped), dtype=input.dtype)
            if input.dtype == torch.bfloat16:
                # multiply the bits of the scale by 0 or 1: the bits of bfloat16 zero are all 0
                factor = kept.mul_(scale.view(torch.int16)).view(torch.bfloat16)
            else:
                factor = kept.to(input.dtype).mul_(scale)
        ctx.save_for_backward(factor)
        return input * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


class Norm(T5LayerNorm):
    """T5's RMS normalization, with fewer operations on a CPU; its output has the dtype of the next matrix product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Divide each vector, (..., width), by its root mean square and multiply it by the weights."""
        dtype = _product_dtype(hidden_states)
        if hidden_states.device.type != "cpu" or {hidden_states.dtype, self.weight.dtype} != {torch.float32}:
            return super().forward(hidden_states).to(dtype)
        return _Normalize.apply(hidden_states, self.weight, self.variance_epsilon, dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(input, dim=-1, keepdim=True)
        scale = norm.square_().div_(input.shape[-1]).add_(epsilon).rsqrt_()
        normal = input * scale
        ctx.save_for_backward(normal, scale, weight)
        return (normal * weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normal, scale, weight = ctx.saved_tensors
        gradient = gradient.to(normal.dtype)
        product = (gradient * normal).flatten(0, -2)
        along = torch.mv(product, weight).div_(-normal.shape[-1]).view(scale.shape)
        return torch.addcmul(gradient * weight, normal, along).mul_(scale), product.sum(dim=0), None, None


class FeedForward(T5DenseActDense):
    """T5's feed-forward layer, without the cast to the weights' dtype that autocast reverses."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Shape in and out: (batch, length, width)."""
        return self.wo(self.dropout(self.act(self.wi(hidden_states))))


class GatedFeedForward(T5DenseGatedActDense):
    """The feed-forward layer of T5 1.1, without the cast to the weights' dtype that autocast reverses."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Shape in and out: (batch, length, width)."""
        return self.wo(self.dropout(self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states)))


FASTER: dict[type, type] = {
    nn.Dropout: Dropout,
    T5LayerNorm: Norm,
    T5DenseActDense: FeedForward,
    T5DenseGatedActDense: GatedFeedForward,
}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    longest: int = 0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of BERT and T5; `transformers` calls it with these arguments.

    Args:
        module: attention layer.
        query: (batch, heads, length, head width).
        key: (batch, heads, other length, head width).
        value: (batch, heads, other length, head width).
        mask: true where attention is allowed, (batch, 1, length, other length); None: everywhere, or causal if the
            module is.
        dropout: dropout probability of the attention weights.
        scaling: factor of the attention scores; None: 1 / sqrt(head width).
        position_bias: T5's bias of the attention scores, (1, heads, length, other length).
        cu_seqlens: for a packed batch, the index of each text's first token and the end, (texts + 1,); no dropout then.
        longest: for a packed batch, the number of tokens of the longest text.
        unused: arguments of other attention functions.

    Returns:
        The attended values, (batch, length, heads, head width), and None instead of the attention weights.
    """
    # a batch packed without padding
    if cu_seqlens is not None:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return padding_free.attend(query, key, value, cu_seqlens, longest, scaling)[None], None
    # add mask and position bias
    if mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if getattr(module, "is_cross", False):
        position_bias = None  # T5 passes zeros to cross-attention
    trains_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16 and module.training
    bias = mask
    if trains_on_cpu or position_bias is not None:
        bias = _joined(position_bias, mask, torch.float32 if trains_on_cpu else query.dtype)
    # torch's kernels, except for training in bfloat16 on a CPU
    if not trains_on_cpu:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
        return attended.transpose(1, 2), None
    # there, torch's kernels compute in float32 or have a backward pass that is several times slower
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    scores = (query if factor == 1 else query * factor) @ key.transpose(2, 3)
    scores = scores.float() if bias is None else scores + bias  # softmax is several times faster in float32
    weights = scores.softmax(dim=3).to(query.dtype)
    return (_drop(weights, dropout) @ value).transpose(1, 2), None


def _joined(position_bias: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the bias plus the mask (the lowest value where it is false); all layers share the first result."""
    owner = mask if position_bias is None else position_bias
    if owner is None:
        return None
    if (joined := getattr(owner, "joined", None)) is None:
        joined = owner.new_zeros(owner.shape, dtype=dtype) if position_bias is None else position_bias.to(dtype)
        if mask is not None:
            joined = joined.masked_fill(~mask, torch.finfo(dtype).min)
        if joined is not owner:
            owner.joined = joined  # type: ignore[attr-defined]
    return joined
