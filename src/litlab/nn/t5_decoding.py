"""Greedy decoding of a T5, and sampling from it, faster than `generate` of transformers.

Greedy decoding returns the tokens of `generate(num_beams=1)`, up to rounding in bfloat16; benchmarks/generation.py compares both.
It is faster because weights are cast to the autocast dtype and concatenated once per batch instead of once per token, repeated
n-grams are found in all summaries at once, and finished summaries leave the batch. On a GPU, most kernels take longer to launch
than to run: one decoding step is recorded as a CUDA graph, once per shape, and replayed for each token.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration

END_CHECK_INTERVAL = 8  # on a GPU, tokens between two checks whether all summaries have ended: each check synchronizes
LENGTH_MULTIPLE = 64  # on a GPU, the texts' length is rounded up to a multiple of this, so that recordings are reused
MIN_ACTIVE_SHARE = 0.7  # if fewer of a batch's summaries are unfinished, the finished ones leave the batch

# name of the cache argument of forward() and generate(): transformers 5.24 renamed it
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(T5ForConditionalGeneration.forward).parameters else "past_key_values"
)


class _Layer:
    """One decoder layer with the cached keys and values of all summaries and texts.

    Args:
        block: the layer's modules.
        encoded: the encoder's output, (batch, text length, model width).
        dtype: dtype of the matrix products.
        limit: most tokens of a summary.
        count: summaries per text.
    """

    def __init__(self, block: nn.Module, encoded: Tensor, dtype: torch.dtype, limit: int, count: int = 1) -> None:
        inner, cross, self.feed_forward = block.layer  # type: ignore[misc]
        self.inner_norm, self.cross_norm = inner.layer_norm, cross.layer_norm
        inner, cross = inner.SelfAttention, cross.EncDecAttention
        self.heads, self.dtype, self.count = inner.n_heads, dtype, count
        self.inner_inputs = torch.cat([inner.q.weight, inner.k.weight, inner.v.weight]).to(dtype)
        self.inner_output, self.cross_output = inner.o.weight.to(dtype), cross.o.weight.to(dtype)
        self.cross_query = cross.q.weight.to(dtype)
        encoded = encoded.to(dtype)
        # keys (batch, heads, length, head width) and values (batch, heads, head width, length), of texts and summaries: float32
        # tensors with the precision of `dtype`, contiguous in the order in which they are read
        (keys,) = self._heads(F.linear(encoded, cross.k.weight.to(dtype)), 1)
        values = cross.v.weight.to(dtype) @ encoded.flatten(0, 1).T  # (heads x width, batch x length)
        values = values.view(self.heads, -1, *encoded.shape[:2]).permute(2, 0, 1, 3)
        self.text_keys, self.text_values = (
            some.to(torch.float32, memory_format=torch.contiguous_format) for some in (keys, values)
        )
        size, width = (len(encoded) * count, self.heads), inner.key_value_proj_dim
        self.keys = torch.empty(*size, limit, width, device=encoded.device)
        self.values = torch.empty(*size, width, limit, device=encoded.device)

    def step(
        self, hidden: Tensor, position: Any, bias: Tensor, text_bias: Tensor, slots: Tensor | None = None
    ) -> Tensor:
        """The layer's output for the last token of each summary, (batch, 1, model width).

        Args:
            hidden: output of the layer below, (batch, 1, model width).
            position: index of the token: an integer, or a tensor (1,) if shapes must not change.
            bias: position bias to the tokens so far, (1, heads, 1, position + 1), or to all, (1, heads, 1, limit).
            text_bias: 0 for the tokens of the texts, the lowest float32 for padding, (batch, 1, 1, text length).
            slots: index of each summary among `count` per remaining text, (summaries,); None: one summary per text.
        """
        # self-attention over the summary so far
        query, key, value = self._heads(F.linear(self.inner_norm(hidden).to(self.dtype), self.inner_inputs), 3)
        if torch.is_tensor(position):
            keys = self.keys.index_copy_(2, position, key.float())
            values = self.values.index_copy_(3, position, value.transpose(2, 3).float())
        else:
            self.keys[:, :, position], self.values[:, :, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = self.keys[:, :, : position + 1], self.values[:, :, :, : position + 1]
        hidden = hidden + F.linear(self._attend(query, keys, values, bias), self.inner_output)

        # cross-attention over the text
        (query,) = self._heads(F.linear(self.cross_norm(hidden).to(self.dtype), self.cross_query), 1)
        if slots is not None:
            # group the queries by text, so that its keys and values are read once for all of its summaries
            texts, _, _, width = self.text_keys.shape
            grouped = query.new_zeros(texts * self.count, self.heads, width)
            grouped[slots] = query[:, :, 0]
            query = grouped.view(texts, self.count, self.heads, width).transpose(1, 2)
        attended = self._attend(query, self.text_keys, self.text_values, text_bias)
        if slots is not None:
            attended = attended.flatten(0, 1)[slots, None]
        hidden = hidden + F.linear(attended, self.cross_output)
        return self.feed_forward(hidden)

    def keep(self, rows: Tensor, texts: Tensor) -> None:
        """Keep only these summaries and these texts."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.text_keys, self.text_values = self.text_keys[texts], self.text_values[texts]

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(batch, length, parts x heads x width) as tensors (batch, heads, length, width)."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Unscaled attention of a few queries, (batch, queries, heads x width)."""
        # in float32: torch's bfloat16 kernel is ten times slower
        with torch.autocast(query.device.type, enabled=False):
            scores = (keys @ query.float().transpose(2, 3)).transpose(2, 3) + bias
            attended = values @ scores.softmax(dim=3).transpose(2, 3)
        return attended.permute(0, 3, 1, 2).flatten(2).to(self.dtype)


@torch.no_grad()
def greedy(
    network: T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    no_repeat_ngram_size: int,
) -> Tensor:
    """Greedy decoding: append the most probable token until every summary has ended.

    Args:
        network: a T5 in evaluation mode.
        input_ids: texts as tokens, (batch, length).
        attention_mask: 1 for tokens, 0 for padding, (batch, length).
        max_new_tokens: most tokens of a summary.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in a summary; 0: no such limit.

    Returns:
        Summaries as tokens, (batch, at most max_new_tokens), padded after their ends.
    """
    if input_ids.device.type == "cuda":
        return fixed_shapes(network, input_ids, attention_mask, max_new_tokens, no_repeat_ngram_size)

    def choose(logits: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        if no_repeat_ngram_size:
            _ban_repeats(logits, written, no_repeat_ngram_size)
        return logits.argmax(dim=1)

    encoded = network.encoder(input_ids, attention_mask).last_hidden_state
    return _decode(network, encoded, attention_mask, max_new_tokens, choose)


@torch.no_grad()
def sample(network: T5ForConditionalGeneration, encoded: Tensor, attention_mask: Tensor, uniforms: Tensor) -> Tensor:
    """Sample several summaries of each text, each token with its probability.

    Args:
        network: a T5 in evaluation mode.
        encoded: the encoder's output, (batch, length, model width).
        attention_mask: 1 for tokens, 0 for padding, (batch, length).
        uniforms: uniform random numbers from 0 to 1, one per token, (batch x summaries per text, most tokens of a summary).

    Returns:
        Summaries as tokens, (batch x summaries per text, at most as many tokens), padded after their ends.
    """

    def choose(logits: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        # inverse transform sampling; torch.multinomial draws a number per token of the vocabulary and is ten times slower
        sums = logits.softmax(dim=1).cumsum(dim=1)
        drawn = uniforms[rows, written.shape[1] - 1, None] * sums[:, -1:]
        return torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=sums.shape[1] - 1)

    return _decode(network, encoded, attention_mask, uniforms.shape[1], choose, len(uniforms) // len(encoded))


def _decode(
    network: T5ForConditionalGeneration,
    encoded: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    count: int = 1,
) -> Tensor:
    """Write summaries token by token, (batch x count, at most max_new_tokens).

    Args:
        network: a T5 in evaluation mode.
        encoded: the encoder's output, (batch, length, model width).
        attention_mask: 1 for tokens, 0 for padding, (batch, length).
        max_new_tokens: most tokens of a summary.
        choose: returns the next tokens, (rows,), given their logits, (rows, vocabulary), the tokens so far,
            (rows, position + 1), and the indices of these rows among all summaries, (rows,).
        count: summaries per text.
    """
    device, config = encoded.device, network.config
    decoder: Any = network.decoder
    pad = config.pad_token_id or 0
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else network.dtype
    ends = end_tokens(network)
    layers = [_Layer(block, encoded, dtype, max_new_tokens, count) for block in decoder.block]
    biases = _biases(network, max_new_tokens, dtype)
    head = network.lm_head.weight.to(dtype)
    text_bias = (attention_mask[:, None, None] - 1) * -torch.finfo(torch.float32).min

    # tokens of all summaries, after the decoder's start token; `rows` are the unfinished ones, `texts` their texts
    tokens = torch.full((len(encoded) * count, max_new_tokens + 1), pad, device=device)
    tokens[:, 0] = _start_token(network)
    rows, texts = torch.arange(len(tokens), device=device), torch.arange(len(encoded), device=device)
    slots = rows if count > 1 else None
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for position in range(max_new_tokens):
        # logits of the next token of each row, (rows, vocabulary)
        hidden = decoder.embed_tokens(tokens[rows, position, None])
        for layer in layers:
            hidden = layer.step(hidden, position, biases[:, :, position, None, : position + 1], text_bias, slots)
        hidden = decoder.final_layer_norm(hidden)
        if config.scale_decoder_outputs:
            hidden = hidden * config.d_model**-0.5
        logits = F.linear(hidden[:, 0].to(dtype), head).float()

        # the next token; padding for finished summaries
        chosen = choose(logits, tokens[rows, : position + 1], rows).masked_fill(ended, pad)
        tokens[rows, position + 1] = chosen
        ended |= torch.isin(chosen, ends)
        left = len(rows) - int(ended.sum())
        if left == 0:
            return tokens[:, 1 : position + 2]

        # drop finished summaries, and texts that have no unfinished one
        if left < MIN_ACTIVE_SHARE * len(rows):
            kept_rows = (~ended).nonzero()[:, 0]
            rows, ended = rows[kept_rows], ended[kept_rows]
            left_texts, text_of_row = (rows // count).unique(return_inverse=True)
            kept_texts, texts = torch.searchsorted(texts, left_texts), left_texts
            text_bias, slots = text_bias[kept_texts], text_of_row * count + rows % count if count > 1 else None
            for layer in layers:
                layer.keep(kept_rows, kept_texts)
    return tokens[:, 1:]


class BeamCache(EncoderDecoderCache):
    """A T5 decoder's cache for beam search that does not copy the texts' keys and values: hypotheses of a text share them."""

    def __init__(self) -> None:
        super().__init__(DynamicCache(), DynamicCache())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Select hypotheses; each replaces one of the same text."""
        self.self_attention_cache.reorder_cache(beam_idx)


def end_tokens(network: T5ForConditionalGeneration) -> Tensor:
    """The end-of-sequence tokens, none, one or several, (ends,)."""
    ends = network.generation_config.eos_token_id
    return torch.as_tensor([] if ends is None else ends, dtype=torch.long, device=network.device).view(-1)


def _start_token(network: T5ForConditionalGeneration) -> int:
    start = network.generation_config.decoder_start_token_id  # some saved models have it only in their config
    return network.config.decoder_start_token_id if start is None else start


def _biases(network: T5ForConditionalGeneration, limit: int, dtype: torch.dtype) -> Tensor:
    """The relative position bias between all tokens, float32 with the precision of `dtype`, (1, heads, limit, limit)."""
    block: Any = network.decoder.block[0]
    return block.layer[0].SelfAttention.compute_bias(limit, limit, network.device).to(dtype).float()


def _ban_repeats(logits: Tensor, written: Tensor, size: int) -> None:
    """Forbid tokens that would repeat an n-gram of `size` tokens: set their logits to minus infinity, in place."""
    length = written.shape[1]
    if length < size:
        return
    windows = written.unfold(1, size, 1)  # (batch, windows, size)
    again = (windows[:, :, :-1] == written[:, None, length - size + 1 :]).all(dim=2)  # (batch, windows)
    row, window = again.nonzero(as_tuple=True)
    logits[row, windows[row, window, -1]] = -torch.inf


class _Recording:
    """One decoding step on tensors with fixed addresses, so that a GPU can replay it as a graph.

    Args:
        network: a T5 in evaluation mode.
        layers: the decoder's layers.
        size: number of summaries, tokens of a text, most tokens of a summary.
        dtype: dtype of the matrix products.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in a summary; 0: no such limit.
    """

    def __init__(
        self,
        network: T5ForConditionalGeneration,
        layers: list[_Layer],
        size: tuple[int, int, int],
        dtype: torch.dtype,
        no_repeat_ngram_size: int,
    ) -> None:
        (rows, length, self.limit), config, decoder = size, network.config, network.decoder
        device = network.device
        self.decoder: Any = decoder
        self.layers, self.dtype, self.ngram = layers, dtype, no_repeat_ngram_size
        self.pad = config.pad_token_id or 0
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        self.start, self.ends = _start_token(network), end_tokens(network)
        self.head = network.lm_head.weight.to(dtype)
        self.biases = _biases(network, self.limit, dtype)
        self.text_bias = torch.zeros(rows, 1, 1, length, device=device)
        self.positions = torch.arange(self.limit + 1, device=device)
        self.tokens = torch.empty(rows, self.limit + 1, dtype=torch.long, device=device)
        self.ended = torch.empty(rows, dtype=torch.bool, device=device)
        self.position, self.used = (torch.empty(1, dtype=torch.long, device=device) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, network: T5ForConditionalGeneration, layers: list[_Layer], attention_mask: Tensor) -> None:
        """Copy in this batch's texts, and the weights: they may have changed since the last batch."""
        for mine, new in zip(self.layers, layers, strict=True):
            for name, tensor in vars(new).items():
                if torch.is_tensor(tensor) and name not in ("keys", "values"):
                    vars(mine)[name].copy_(tensor)
            mine.keys.zero_()  # later positions are masked, but must be finite
            mine.values.zero_()
        self.head.copy_(network.lm_head.weight)
        self.biases.copy_(_biases(network, self.limit, self.dtype))
        self.text_bias.copy_((attention_mask[:, None, None] - 1) * -torch.finfo(torch.float32).min)
        self.reset()

    def reset(self) -> None:
        """Return to the first token."""
        self.tokens.fill_(self.pad)
        self.tokens[:, 0] = self.start
        for state in (self.ended, self.position, self.used):
            state.zero_()

    def record(self) -> None:
        """Capture one step as a CUDA graph."""
        # warm up on another stream: libraries allocate memory when they are first used
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(2):
                self.step()
                self.reset()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread, which pins batches, may use the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.step()
        self.graph = graph

    def run(self) -> Tensor:
        """Write the summaries as tokens, (batch, at most limit)."""
        for done in range(self.limit):
            if done % END_CHECK_INTERVAL == 0 and done and bool(self.ended.all()):
                break
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()
        return self.tokens[:, 1 : int(self.used) + 1].clone()

    def step(self) -> None:
        """Append one token to every summary; padding if it has ended."""
        self.used += (~self.ended).any()
        bias = self.biases.index_select(2, self.position)
        bias = bias.masked_fill(self.positions[: self.limit] > self.position, torch.finfo(torch.float32).min)
        hidden = self.decoder.embed_tokens(self.tokens.index_select(1, self.position))
        for layer in self.layers:
            hidden = layer.step(hidden, self.position, bias, self.text_bias)
        hidden = self.decoder.final_layer_norm(hidden) * self.scale
        logits = F.linear(hidden[:, 0].to(self.dtype), self.head).float()
        if 0 < self.ngram <= self.limit + 1:
            self._ban_repeats(logits)
        chosen = logits.argmax(dim=1).masked_fill(self.ended, self.pad)
        self.position += 1
        self.tokens.index_copy_(1, self.position, chosen[:, None])
        self.ended |= (chosen[:, None] == self.ends).any(dim=1)

    def _ban_repeats(self, logits: Tensor) -> None:
        """The same as the function `_ban_repeats`, with shapes that do not depend on the position."""
        size = self.ngram
        windows = self.tokens.unfold(1, size, 1)  # (batch, windows, size)
        last = (
            self.positions[: size - 1] + self.position + 2 - size
        )  # indices of the last tokens; negative at the start
        recent = self.tokens.index_select(1, last.clamp(min=0))
        again = (windows[:, :, :-1] == recent[:, None]).all(dim=2)  # (batch, windows)
        again &= self.positions[size - 1 :] <= self.position  # only windows of written tokens
        logits.scatter_add_(1, windows[:, :, -1], torch.where(again, -torch.inf, 0.0))


# the newest recording of each network: texts come longest first, so an old shape does not return
_recordings: WeakKeyDictionary[Any, tuple[Any, _Recording]] = WeakKeyDictionary()


def fixed_shapes(
    network: T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    no_repeat_ngram_size: int,
) -> Tensor:
    """The same as `greedy`, on tensors whose shapes and addresses do not change from token to token."""
    device = input_ids.device
    casts = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if casts else network.dtype
    more = -input_ids.shape[1] % LENGTH_MULTIPLE
    input_ids, attention_mask = F.pad(input_ids, (0, more)), F.pad(attention_mask, (0, more))
    # inference mode is off: its tensors cannot be changed later; autocast's cache is off: a recording would outlive it
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, dtype, enabled=casts, cache_enabled=False),
    ):
        encoded = network.encoder(input_ids, attention_mask).last_hidden_state
        blocks: Any = network.decoder.block
        layers = [_Layer(block, encoded, dtype, max_new_tokens) for block in blocks]
        size = (*input_ids.shape, max_new_tokens)
        key = (size, dtype, no_repeat_ngram_size, network.shared.weight.data_ptr())
        if new := _recordings.get(network, (None,))[0] != key:
            _recordings[network] = key, _Recording(network, layers, size, dtype, no_repeat_ngram_size)
        recording = _recordings[network][1]
        recording.begin(network, layers, attention_mask)
        if new and device.type == "cuda":
            recording.record()
        return recording.run()
