"""Greedy decoding of a T5, and sampling from it, without what `transformers` does per token for every model and every way of decoding.

Greedy decoding writes what `generate(num_beams=1)` writes, but for rounding in bfloat16, and sooner (benchmarks/generation.py compares
both): weights are cast to autocast's format and joined once per batch and not at every token, repetitions are looked for in
all summaries at once, and summaries that have ended leave the batch. On a GPU, where starting an operation takes longer than
most of them, the work for one token is recorded once for each shape and replayed as a CUDA graph.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration

LOOKS = 8  # tokens between two looks on a GPU whether all summaries have ended: each look waits for it
WIDTH = 64  # tokens to whose multiples the texts' length is rounded on a GPU, so that recordings are used again
LEFT = 0.7  # share of a batch's summaries that are still written; if fewer are, the others leave the batch


class _Layer:
    """One layer of the decoder, and the keys and values that it remembers of every summary and its text.

    Args:
        block: the layer's modules.
        encoded: what the encoder has made of the texts, (batch, text length, model width).
        dtype: of matrix products.
        limit: most tokens of a summary.
        count: summaries of each text.
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
        # keys (batch, heads, length, width of a head) and values (batch, heads, width of a head, length), of the texts and of the
        # summaries, with the numbers that `dtype` has: in memory they lie in the order in which they are read
        (keys,) = self._heads(F.linear(encoded, cross.k.weight.to(dtype)), 1)
        values = cross.v.weight.to(dtype) @ encoded.flatten(0, 1).T  # (heads x width, batch x length)
        values = values.view(self.heads, -1, *encoded.shape[:2]).permute(2, 0, 1, 3)
        self.text_keys, self.text_values = (
            some.to(torch.float32, memory_format=torch.contiguous_format) for some in (keys, values)
        )
        size, width = (len(encoded) * count, self.heads), inner.key_value_proj_dim
        self.keys = torch.empty(*size, limit, width, device=encoded.device)
        self.values = torch.empty(*size, width, limit, device=encoded.device)

    def step(self, hidden: Tensor, position: Any, bias: Tensor, real: Tensor, places: Tensor | None = None) -> Tensor:
        """What the layer makes of the last token of each summary, (batch, 1, model width).

        Args:
            hidden: what the layer below has made of it.
            position: of the token, a number or, for shapes that do not change, a tensor (1,).
            bias: of its attention to the tokens up to itself, (1, heads, 1, position + 1), or to all, (1, heads, 1, limit).
            real: 0 for the tokens of the texts, nearly minus infinity for padding, (batch, 1, 1, text length).
            places: of each summary among those of all texts that are left, with `count` of each, (summaries,); None: each is
                the only one of its text.
        """
        query, key, value = self._heads(F.linear(self.inner_norm(hidden).to(self.dtype), self.inner_inputs), 3)
        if torch.is_tensor(position):
            keys = self.keys.index_copy_(2, position, key.float())
            values = self.values.index_copy_(3, position, value.transpose(2, 3).float())
        else:
            self.keys[:, :, position], self.values[:, :, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = self.keys[:, :, : position + 1], self.values[:, :, :, : position + 1]
        hidden = hidden + F.linear(self._attend(query, keys, values, bias), self.inner_output)
        (query,) = self._heads(F.linear(self.cross_norm(hidden).to(self.dtype), self.cross_query), 1)
        if places is not None:
            # side by side, so that the keys and values of a text are read once for all of its summaries
            texts, _, _, width = self.text_keys.shape
            side = query.new_zeros(texts * self.count, self.heads, width)
            side[places] = query[:, :, 0]
            query = side.view(texts, self.count, self.heads, width).transpose(1, 2)
        attended = self._attend(query, self.text_keys, self.text_values, real)
        if places is not None:
            attended = attended.flatten(0, 1)[places, None]
        hidden = hidden + F.linear(attended, self.cross_output)
        return self.feed_forward(hidden)

    def keep(self, rows: Tensor, texts: Tensor) -> None:
        """Go on with some of the summaries, and their texts."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.text_keys, self.text_values = self.text_keys[texts], self.text_values[texts]

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(batch, length, parts x heads x width) as tensors (batch, heads, length, width)."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attention of few queries, (batch, queries, heads x width), without scaling."""
        # in float32: torch's own kernel for bfloat16 takes ten times as long
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
    if input_ids.device.type == "cuda":
        return fixed_shapes(network, input_ids, attention_mask, max_new_tokens, no_repeat_ngram_size)

    def choose(logits: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        if no_repeat_ngram_size:
            _ban_repeats(logits, written, no_repeat_ngram_size)
        return logits.argmax(dim=1)

    encoded = network.encoder(input_ids, attention_mask).last_hidden_state
    return _write(network, encoded, attention_mask, max_new_tokens, choose)


@torch.no_grad()
def sample(network: T5ForConditionalGeneration, encoded: Tensor, attention_mask: Tensor, chances: Tensor) -> Tensor:
    """Several summaries of each text, every token drawn with the probability that the network gives it.

    Args:
        network: a T5 in evaluation mode.
        encoded: what its encoder makes of the texts, (batch, length, model width).
        attention_mask: 1 for real tokens, 0 for padding, (batch, length).
        chances: what decides, evenly distributed between 0 and 1, (batch x summaries of a text, longest summary).

    Returns:
        Summaries as tokens, (batch x summaries of a text, at most the longest), padded behind their ends.
    """

    def choose(logits: Tensor, written: Tensor, rows: Tensor) -> Tensor:
        # torch.multinomial draws a number for each token that there is, which takes ten times as long
        sums = logits.softmax(dim=1).cumsum(dim=1)
        drawn = chances[rows, written.shape[1] - 1, None] * sums[:, -1:]
        return torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=sums.shape[1] - 1)

    return _write(network, encoded, attention_mask, chances.shape[1], choose, len(chances) // len(encoded))


def _write(
    network: T5ForConditionalGeneration,
    encoded: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    choose: Callable[[Tensor, Tensor, Tensor], Tensor],
    count: int = 1,
) -> Tensor:
    """Summaries, token by token, (batch x count, at most max_new_tokens).

    Args:
        network: as of `greedy`.
        encoded: what its encoder has made of the texts, (batch, length, model width).
        attention_mask: as of `greedy`.
        max_new_tokens: as of `greedy`.
        choose: makes the next tokens, (rows,), of their logits, (rows, vocabulary), the tokens up to there, and which rows of
            the summaries these are.
        count: summaries of each text.
    """
    device, config = encoded.device, network.config
    decoder: Any = network.decoder
    pad = config.pad_token_id or 0
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else network.dtype
    ends = ends_of(network)
    layers = [_Layer(block, encoded, dtype, max_new_tokens, count) for block in decoder.block]
    biases = _biases(network, max_new_tokens, dtype)
    head = network.lm_head.weight.to(dtype)
    real = (attention_mask[:, None, None] - 1) * -torch.finfo(torch.float32).min
    # tokens of all summaries, beginning with the decoder's start; `rows` are those that are still written, `texts` theirs
    tokens = torch.full((len(encoded) * count, max_new_tokens + 1), pad, device=device)
    tokens[:, 0] = _start_of(network)
    rows, texts = torch.arange(len(tokens), device=device), torch.arange(len(encoded), device=device)
    places = rows if count > 1 else None
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for position in range(max_new_tokens):
        hidden = decoder.embed_tokens(tokens[rows, position, None])
        for layer in layers:
            hidden = layer.step(hidden, position, biases[:, :, position, None, : position + 1], real, places)
        hidden = decoder.final_layer_norm(hidden)
        if config.scale_decoder_outputs:
            hidden = hidden * config.d_model**-0.5
        logits = F.linear(hidden[:, 0].to(dtype), head).float()
        chosen = choose(logits, tokens[rows, : position + 1], rows).masked_fill(ended, pad)
        tokens[rows, position + 1] = chosen
        ended |= torch.isin(chosen, ends)
        left = len(rows) - int(ended.sum())
        if left == 0:
            return tokens[:, 1 : position + 2]
        if left < LEFT * len(rows):
            on = (~ended).nonzero()[:, 0]
            rows, ended = rows[on], ended[on]
            left_texts, of = (rows // count).unique(return_inverse=True)
            kept, texts = torch.searchsorted(texts, left_texts), left_texts
            real, places = real[kept], of * count + rows % count if count > 1 else None
            for layer in layers:
                layer.keep(on, kept)
    return tokens[:, 1:]


class BeamCache(EncoderDecoderCache):
    """What a T5's decoder remembers in beam search, without copying what it remembers of the texts: all hypotheses of one share it."""

    def __init__(self) -> None:
        super().__init__(DynamicCache(), DynamicCache())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Go on with these hypotheses; each comes from one of the same text."""
        self.self_attention_cache.reorder_cache(beam_idx)


def ends_of(network: T5ForConditionalGeneration) -> Tensor:
    """The tokens that end a summary: none, one or several."""
    ends = network.generation_config.eos_token_id
    return torch.as_tensor([] if ends is None else ends, dtype=torch.long, device=network.device).view(-1)


def _start_of(network: T5ForConditionalGeneration) -> int:
    start = network.generation_config.decoder_start_token_id  # not every saved model has it there
    return network.config.decoder_start_token_id if start is None else start


def _biases(network: T5ForConditionalGeneration, limit: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of each token for each, with the numbers that `dtype` has, (1, heads, limit, limit)."""
    block: Any = network.decoder.block[0]
    return block.layer[0].SelfAttention.compute_bias(limit, limit, network.device).to(dtype).float()


def _ban_repeats(logits: Tensor, written: Tensor, size: int) -> None:
    """Make a token impossible where it would complete a sequence of `size` tokens that is in the summary already."""
    length = written.shape[1]
    if length < size:
        return
    windows = written.unfold(1, size, 1)  # (batch, windows, size)
    again = (windows[:, :, :-1] == written[:, None, length - size + 1 :]).all(dim=2)  # (batch, windows)
    row, window = again.nonzero(as_tuple=True)
    logits[row, windows[row, window, -1]] = -torch.inf


class _Recording:
    """The work for one token of every summary, on tensors that stay where they are, so that a GPU can repeat it by itself.

    Args:
        network: a T5 in evaluation mode.
        layers: of its decoder.
        size: summaries, tokens of a text, most tokens of a summary.
        dtype: of matrix products.
        no_repeat_ngram_size: as of `greedy`.
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
        self.start, self.ends = _start_of(network), ends_of(network)
        self.head = network.lm_head.weight.to(dtype)
        self.biases = _biases(network, self.limit, dtype)
        self.real = torch.zeros(rows, 1, 1, length, device=device)
        self.places = torch.arange(self.limit + 1, device=device)
        self.tokens = torch.empty(rows, self.limit + 1, dtype=torch.long, device=device)
        self.ended = torch.empty(rows, dtype=torch.bool, device=device)
        self.position, self.used = (torch.empty(1, dtype=torch.long, device=device) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, network: T5ForConditionalGeneration, layers: list[_Layer], attention_mask: Tensor) -> None:
        """Take what is new in this batch, and weights that may have been trained since the last one."""
        for mine, new in zip(self.layers, layers, strict=True):
            for name, tensor in vars(new).items():
                if torch.is_tensor(tensor) and name not in ("keys", "values"):
                    vars(mine)[name].copy_(tensor)
            mine.keys.zero_()  # what is not written yet is masked, but must be a number
            mine.values.zero_()
        self.head.copy_(network.lm_head.weight)
        self.biases.copy_(_biases(network, self.limit, self.dtype))
        self.real.copy_((attention_mask[:, None, None] - 1) * -torch.finfo(torch.float32).min)
        self.reset()

    def reset(self) -> None:
        """Go to the first token."""
        self.tokens.fill_(self.pad)
        self.tokens[:, 0] = self.start
        for state in (self.ended, self.position, self.used):
            state.zero_()

    def record(self) -> None:
        """Have a GPU remember the work."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate memory when they are first used
            for _ in range(2):
                self.step()
                self.reset()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, capture_error_mode="thread_local"
        ):  # a thread that pins batches may use the GPU too
            self.step()
        self.graph = graph

    def run(self) -> Tensor:
        """Write the summaries."""
        for done in range(self.limit):
            if done % LOOKS == 0 and done and bool(self.ended.all()):
                break
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()
        return self.tokens[:, 1 : int(self.used) + 1].clone()

    def step(self) -> None:
        """Write one token of every summary, or padding."""
        self.used += (~self.ended).any()
        bias = self.biases.index_select(2, self.position)
        bias = bias.masked_fill(self.places[: self.limit] > self.position, torch.finfo(torch.float32).min)
        hidden = self.decoder.embed_tokens(self.tokens.index_select(1, self.position))
        for layer in self.layers:
            hidden = layer.step(hidden, self.position, bias, self.real)
        hidden = self.decoder.final_layer_norm(hidden) * self.scale
        logits = F.linear(hidden[:, 0].to(self.dtype), self.head).float()
        if 0 < self.ngram <= self.limit + 1:
            self._ban_repeats(logits)
        chosen = logits.argmax(dim=1).masked_fill(self.ended, self.pad)
        self.position += 1
        self.tokens.index_copy_(1, self.position, chosen[:, None])
        self.ended |= (chosen[:, None] == self.ends).any(dim=1)

    def _ban_repeats(self, logits: Tensor) -> None:
        """As `_ban_repeats`, for any position."""
        size = self.ngram
        windows = self.tokens.unfold(1, size, 1)  # (batch, windows, size)
        last = (
            self.places[: size - 1] + self.position + 2 - size
        )  # the places of the last tokens, of which there may be fewer
        recent = self.tokens.index_select(1, last.clamp(min=0))
        again = (windows[:, :, :-1] == recent[:, None]).all(dim=2)  # (batch, windows)
        again &= self.places[size - 1 :] <= self.position  # windows that are written already
        logits.scatter_add_(1, windows[:, :, -1], torch.where(again, -torch.inf, 0.0))


# the newest of each network: texts come longest first, so that a shape which has passed does not come back soon
_recordings: WeakKeyDictionary[Any, tuple[Any, _Recording]] = WeakKeyDictionary()


def fixed_shapes(
    network: T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    no_repeat_ngram_size: int,
) -> Tensor:
    """As `greedy`, with tensors whose shapes and places stay the same from token to token."""
    device = input_ids.device
    casts = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if casts else network.dtype
    more = -input_ids.shape[1] % WIDTH
    input_ids, attention_mask = F.pad(input_ids, (0, more)), F.pad(attention_mask, (0, more))
    # no inference mode: its tensors could not be written to outside. No cache of casts: a recording would outlive it
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
