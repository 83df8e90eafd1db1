from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from litlab.nn.fast_transformers import speed_up
from litlab.nn.padding_free import attend, classify, compile_training, has_kernel, pack, widen

LENGTHS = [7, 1, 21, 12, 3]
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}


def bert(**settings: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=100, max_position_embeddings=64, num_labels=3, **{**SIZES, **off, **settings})
    network = BertForSequenceClassification(config)
    for parameter in network.parameters():  # larger weights, so that every token affects every other
        if parameter.ndim == 2:
            parameter.data *= 8
    speed_up(network)
    return network


def texts(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(2, 100, mask.shape, generator=draws)
    types = torch.randint(0, 2, mask.shape, generator=draws)
    return {"input_ids": tokens * mask, "token_type_ids": types * mask, "attention_mask": mask}


def gradients_of(network: BertForSequenceClassification, logits: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    F.cross_entropy(logits, torch.arange(len(logits)) % 3).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("longest", [None, 64], ids=["exact", "rounded"])
@pytest.mark.parametrize("types", [True, False], ids=["pairs", "texts"])
def test_packed_texts_give_the_same_logits_and_gradients_as_padded_ones(longest: int | None, types: bool) -> None:
    network, padded = bert().train(), texts(LENGTHS)
    if not types:
        del padded["token_type_ids"]
    expected = network(**padded).logits
    logits = classify(network, pack(padded, longest))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
    one, other = gradients_of(network, expected), gradients_of(network, logits)
    scale = max(gradient.abs().max() for gradient in one.values())
    assert all((one[name] - other[name]).abs().max() < 1e-5 * max(1, scale) for name in one)


def test_a_text_does_not_attend_to_its_neighbours() -> None:
    network = bert().eval()
    one, other = texts(LENGTHS), texts(LENGTHS, seed=1)
    for name in one:
        other[name][2] = one[name][2]
    logits, others = classify(network, pack(one, 64)), classify(network, pack(other, 64))
    assert torch.allclose(logits[2], others[2], rtol=0, atol=1e-6)
    assert ((logits - others).abs().amax(dim=1) > 0.01).tolist() == [True, True, False, True, True]


def test_the_order_of_texts_does_not_matter() -> None:
    network, padded = bert().eval(), texts(LENGTHS)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {name: values[order] for name, values in padded.items()}
    logits = classify(network, pack(padded))
    assert torch.allclose(classify(network, pack(shuffled)), logits[order], rtol=0, atol=1e-5)


def test_attention_equals_that_of_each_text_alone() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, sum(LENGTHS), 4, 16)
    ends = F.pad(torch.tensor(LENGTHS).cumsum(0, dtype=torch.int32), (1, 0))
    parts = []
    for begin, end in pairwise(ends):
        one = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(*one, scale=0.3).transpose(0, 1))
    assert torch.allclose(attend(query, key, value, ends, max(LENGTHS), 0.3), torch.cat(parts), atol=1e-6)


def test_only_real_tokens_are_packed() -> None:
    padded = {**texts(LENGTHS), "id": torch.arange(5), "weight": 0.5, "target": torch.zeros(5)}
    packed = pack(padded)
    assert packed["input_ids"].shape == packed["position_ids"].shape == packed["attention_mask"].shape == (1, 44)
    assert packed["attention_mask"].all() and packed["input_ids"].all()
    assert packed["cu_seqlens"].tolist() == [0, 7, 8, 29, 41, 44] and packed["cu_seqlens"].dtype == torch.int32
    assert packed["longest"] == 21 and all(packed[name] is padded[name] for name in ("id", "weight", "target"))


def test_rounded_shapes_repeat_and_the_padding_is_a_separate_text() -> None:
    for lengths in ([1, 1, 2], [30, 30, 36], [64, 64, 64], [33, 63, 1]):
        packed = pack(texts(lengths), longest=64)
        assert packed["input_ids"].shape[1] == (96 if sum(lengths) <= 96 else -(-sum(lengths) // 96) * 96)
        assert packed["cu_seqlens"].diff().tolist() == [*lengths, packed["input_ids"].shape[1] - sum(lengths)]
        assert packed["longest"] == 96 >= packed["cu_seqlens"].diff().max()
        assert packed["attention_mask"].sum() == sum(lengths)


def test_widths_are_rounded_up_to_the_networks_limit() -> None:
    config = BertConfig(max_position_embeddings=80, pad_token_id=9)
    assert [widen(texts([2, length]), config)["input_ids"].shape[1] for length in (5, 32, 33, 64, 65, 80)] == [
        *(32, 32, 64, 64, 80, 80)
    ]
    wider = widen(texts([2, 5]), config)
    assert (wider["input_ids"][:, 5:] == 9).all() and not wider["attention_mask"][:, 5:].any()


def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that torch.compile makes, with a backend that does not change them."""
    made: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **settings: compile(call, backend=count, **settings))
    return made


def distilbert() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64}
    off = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
    network = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=100, **sizes, **off))
    speed_up(network)
    return network


@pytest.mark.parametrize(
    "kind", ["packed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("padded", "distilbert"))]
)
def test_a_training_compiles_few_shapes_and_computes_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 batches of 8 texts with up to 64 tokens; every 20th batch is smaller, like the last one of an epoch."""
    made = graphs(monkeypatch)
    network: Any = distilbert() if kind == "distilbert" else bert().train()
    names = list(network.state_dict())
    plain = distilbert() if kind == "distilbert" else bert().train()
    compile_training(network)
    assert list(network.state_dict()) == names
    draws, shapes = torch.Generator().manual_seed(0), set()
    for number in range(40):
        longest = int(torch.randint(2, 65, (), generator=draws))
        rows = 3 if number % 20 == 19 else 8
        batch = texts([*torch.randint(1, longest + 1, (rows,), generator=draws).tolist()], seed=number)
        if kind == "distilbert":
            del batch["token_type_ids"]
        expected = plain(**batch).logits
        if kind == "packed":
            shaped = pack(batch, 64)
            logits = classify(network, shaped)
        else:
            shaped = widen(batch, network.config)
            logits = network(**shaped).logits
        logits.sum().backward()
        shapes.add((rows, shaped["input_ids"].shape))
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
    assert len(shapes) <= 4, "two widths for full batches and two for last batches"
    assert len(made) == len(shapes)


def test_the_kernel_is_for_bert_on_a_gpu_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)
    assert has_kernel(bert(), gpu, "bf16-mixed") and has_kernel(bert(), gpu, "16-mixed")
    assert not has_kernel(bert(), gpu, "32-true") and not has_kernel(bert(), torch.device("cpu"), "bf16-mixed")
    assert not has_kernel(distilbert(), gpu, "bf16-mixed") and not has_kernel(
        bert(num_attention_heads=16), gpu, "bf16-mixed"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not has_kernel(bert(), gpu, "bf16-mixed")


@pytest.mark.slow
def test_beyond_the_limit_a_new_shape_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graphs(monkeypatch)
    monkeypatch.setattr("litlab.nn.padding_free.GRAPHS", 1)
    network = bert().train()
    with torch._dynamo.config.patch(recompile_limit=2):
        compile_training(network)
        for rows in (2, 3, 4, 5, 3, 2):
            batch = texts([9] * rows)
            assert torch.allclose(classify(network, pack(batch, 64)), bert()(**batch).logits, rtol=0, atol=1e-5)
    assert len(made) == 2


def test_dropout_does_not_break_a_compiled_training_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graphs(monkeypatch)
    network = bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    compile_training(network)
    first, second = (classify(network, pack(texts(LENGTHS), 64)) for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert len(made) == 1
