"""Greedy decoding of a T5 without what `transformers` does per token for every model and every way of decoding.

It writes what `generate(num_beams=1)` writes, several times sooner on a CPU: weights are cast to autocast's format and
joined once per batch and not at every token, repetitions are looked for in all summaries at once, and summaries that
have ended leave the batch. benchmarks/generation.py compares both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

LEFT = 0.7  # share of a batch's summaries that are still written; if fewer are, the others leave the batch


class _Layer:
    """One layer of the decoder, and the keys and values that it remembers of every summary and its text.

    Args:
        block: the layer's modules.
        encoded: what the encoder has made of the texts, (batch, text length, model width).
        dtype: of matrix products.
        limit: most tokens of a summary.
    """

    def __init__(self, block: nn.Module, encoded: Tensor, dtype: torch.dtype, limit: int) -> None:
        inner, cross, self.feed_forward = block.layer  # type: ignore[misc]
        self.inner_norm, self.cross_norm = inner.layer_norm, cross.layer_norm
        inner, cross = inner.SelfAttention, cross.EncDecAttention
        self.heads, self.dtype = inner.n_heads, dtype
        self.inner_inputs = torch.cat([inner.q.weight, inner.k.weight, inner.v.weight]).to(dtype)
        self.inner_output, self.cross_output = inner.o.weight.to(dtype), cross.o.weight.to(dtype)
        self.cross_query = cross.q.weight.to(dtype)
        of_text = torch.cat([cross.k.weight, cross.v.weight]).to(dtype)
        # (batch, heads, length, width of a head), of the texts and of the summaries, with the numbers that `dtype` has
        self.text_keys, self.text_values = self._heads(F.linear(encoded.to(dtype), of_text).float(), 2)
        size = (len(encoded), self.heads, limit, inner.key_value_proj_dim)
        self.keys, self.values = (torch.empty(size, device=encoded.device) for _ in range(2))

    def step(self, hidden: Tensor, position: int, bias: Tensor, real: Tensor) -> Tensor:
        """What the layer makes of the last token of each summary, (batch, 1, model width).

        Args:
            hidden: what the layer below has made of it.
            position: of the token.
            bias: of its attention to the tokens up to itself, (1, heads, 1, position + 1).
            real: 0 for the tokens of the texts, nearly minus infinity for padding, (batch, 1, 1, text length).
        """
        query, key, value = self._heads(F.linear(self.inner_norm(hidden).to(self.dtype), self.inner_inputs), 3)
        self.keys[:, :, position], self.values[:, :, position] = key[:, :, 0], value[:, :, 0]
        keys, values = self.keys[:, :, : position + 1], self.values[:, :, : position + 1]
        hidden = hidden + self._attend(query, keys, values, bias, self.inner_output)
        (query,) = self._heads(F.linear(self.cross_norm(hidden).to(self.dtype), self.cross_query), 1)
        hidden = hidden + self._attend(query, self.text_keys, self.text_values, real, self.cross_output)
        return self.feed_forward(hidden)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the summaries."""
        for name in ("keys", "values", "text_keys", "text_values"):
            setattr(self, name, getattr(self, name)[rows])

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(batch, length, parts x heads x width) as tensors (batch, heads, length, width)."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous().unbind()

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, output: Tensor) -> Tensor:
        """Attention of one query, without scaling, in float32: torch's own kernel for bfloat16 takes ten times as long.

        It rounds where that kernel does, so that the same tokens are chosen.
        """
        with torch.autocast(query.device.type, enabled=False):
            scores = query.float() @ keys.transpose(2, 3) + bias
            weights = (scores - scores.amax(dim=3, keepdim=True)).exp()
            attended = weights.to(self.dtype).float() @ values / weights.sum(dim=3, keepdim=True)
        return F.linear(attended.to(self.dtype).transpose(1, 2).flatten(2), output)


@torch.no_grad()
def greedy(
    network: T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    no_repeat_ngram_size: int,
) -> Tensor:
    """The most probable token after each, until a summary ends.

    Args:
        network: a T5 in evaluation mode.
        input_ids: texts as tokens, (batch, length).
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
        max_new_tokens: longest summary.
        no_repeat_ngram_size: no sequence of this many tokens comes twice in a summary; 0: no such rule.

    Returns:
        Summaries as tokens, (batch, at most max_new_tokens), padded behind their ends.
    """
    device, config = input_ids.device, network.config
    decoder: Any = network.decoder
    pad = config.pad_token_id or 0
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else network.dtype
    ends = torch.as_tensor(network.generation_config.eos_token_id, device=device)
    encoded = network.encoder(input_ids, attention_mask).last_hidden_state
    layers = [_Layer(block, encoded, dtype, max_new_tokens) for block in decoder.block]
    biases = decoder.block[0].layer[0].SelfAttention.compute_bias(max_new_tokens, max_new_tokens, device)
    biases = biases.to(dtype).float()
    head = network.lm_head.weight.to(dtype)
    real = (attention_mask[:, None, None] - 1) * -torch.finfo(torch.float32).min
    # tokens of all summaries, beginning with the decoder's start; `rows` are those that are still written
    tokens = torch.full((len(input_ids), max_new_tokens + 1), pad, device=device)
    start = network.generation_config.decoder_start_token_id  # not every saved model has it there
    tokens[:, 0] = config.decoder_start_token_id if start is None else start
    rows = torch.arange(len(input_ids), device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for position in range(max_new_tokens):
        hidden = decoder.embed_tokens(tokens[rows, position, None])
        for layer in layers:
            hidden = layer.step(hidden, position, biases[:, :, position, None, : position + 1], real)
        hidden = decoder.final_layer_norm(hidden)
        if config.scale_decoder_outputs:
            hidden = hidden * config.d_model**-0.5
        logits = F.linear(hidden[:, 0].to(dtype), head).float()
        if no_repeat_ngram_size:
            _ban_repeats(logits, tokens[rows, : position + 1], no_repeat_ngram_size)
        chosen = logits.argmax(dim=1).masked_fill(ended, pad)
        tokens[rows, position + 1] = chosen
        ended |= torch.isin(chosen, ends)
        left = len(rows) - int(ended.sum())
        if left == 0:
            return tokens[:, 1 : position + 2]
        if left < LEFT * len(rows):
            on = (~ended).nonzero()[:, 0]
            rows, ended, real = rows[on], ended[on], real[on]
            for layer in layers:
                layer.keep(on)
    return tokens[:, 1:]


def _ban_repeats(logits: Tensor, written: Tensor, size: int) -> None:
    """Make a token impossible where it would complete a sequence of `size` tokens that is in the summary already."""
    length = written.shape[1]
    if length < size:
        return
    windows = written.unfold(1, size, 1)  # (batch, windows, size)
    again = (windows[:, :, :-1] == written[:, None, length - size + 1 :]).all(dim=2)  # (batch, windows)
    row, window = again.nonzero(as_tuple=True)
    logits[row, windows[row, window, -1]] = -torch.inf
