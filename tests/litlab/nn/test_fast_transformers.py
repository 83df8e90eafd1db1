import copy

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from litlab.nn.fast_transformers import Dropout, Norm, speed_up


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_right_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kept = Dropout(p)(torch.ones(1001, 999, dtype=dtype))
    share = (kept == 0).double().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / kept.numel()) ** 0.5)
    assert kept.double().mean().item() == pytest.approx(1, abs=0.01)
    assert len(kept.unique()) == 2


def test_dropout_drops_elements_independently_of_their_neighbours() -> None:
    """Four elements use parts of the same 64-bit random number."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1_000_000)) > 0).double().view(-1, 4) - 0.5
    correlations = kept.T @ kept / len(kept) * 4
    assert torch.allclose(correlations, torch.eye(4, dtype=torch.double), atol=0.01)


def test_the_gradient_of_dropout_uses_the_same_mask() -> None:
    torch.manual_seed(0)
    input = torch.randn(7, 13, requires_grad=True)
    output = Dropout(0.3)(input)
    output.sum().backward()
    assert torch.allclose(input.grad, output.detach() / input.detach())


def test_dropout_depends_on_the_seed_and_is_off_in_evaluation() -> None:
    layer, ones = Dropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first, second = layer(ones), layer(ones)
    torch.manual_seed(1)
    assert torch.equal(layer(ones), first) and not torch.equal(first, second)
    assert (
        torch.equal(layer.eval()(ones), ones) and not Dropout(1.0)(ones).any() and torch.equal(Dropout(0.0)(ones), ones)
    )


def bert(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes, **rates))


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
    rest = {"dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=100, **sizes, **rest))


def batch(length: int, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(2, 100, (5, length), generator=generator)
    mask = torch.ones_like(tokens)
    if padded:
        for row in range(1, 5):
            mask[row, -row:] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def labels(kind: str) -> torch.Tensor:
    if kind == "bert":
        return torch.tensor([0, 1, 0, 1, 1])
    wanted = torch.randint(2, 100, (5, 9), generator=torch.Generator().manual_seed(9))
    wanted[2:, 6:] = -100
    return wanted


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_a_faster_network_computes_the_same_loss_and_gradient(kind: str, padded: bool, train: bool, bf16: bool) -> None:
    plain = {"bert": bert, "t5": t5}[kind]().train(train)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    losses, gradients = [], []
    for network in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(**batch(21, padded), labels=labels(kind)).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    similarity = torch.cosine_similarity(*gradients, dim=0).item()
    assert losses[1] == pytest.approx(losses[0], rel=0.003 if bf16 else 1e-5)
    assert similarity > (0.998 if bf16 else 0.999999)


@pytest.mark.parametrize("make", [bert, t5])
def test_names_of_weights_do_not_change(make: type) -> None:
    plain, fast = make(), make()
    speed_up(fast)
    assert plain.state_dict().keys() == fast.state_dict().keys()


def test_padding_gets_no_attention() -> None:
    fast = bert()
    speed_up(fast)
    whole = batch(21, padded=True)
    other = {**whole, "input_ids": torch.where(whole["attention_mask"] == 1, whole["input_ids"], 7)}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast.train()(**whole).logits, fast(**other).logits)


def test_attention_weights_are_dropped_out_too() -> None:
    fast = bert(dropout=0.0)
    for module in fast.modules():
        if hasattr(module, "query"):
            module.dropout.p = 0.5
    speed_up(fast)
    inputs = batch(21, padded=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(fast.train()(**inputs).logits, fast(**inputs).logits)
        assert torch.equal(fast.eval()(**inputs).logits, fast(**inputs).logits)


@pytest.mark.parametrize("make", [bert, t5])
def test_a_network_in_evaluation_stays_in_evaluation(make: type) -> None:
    network = make(dropout=0.5).eval() if make is bert else make().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    speed_up(network)
    assert not any(module.training for module in network.modules())
    assert any(isinstance(module, Dropout) for module in network.modules())


def test_normalization_in_float16_does_not_overflow() -> None:
    torch.manual_seed(0)
    vectors = 20 * torch.randn(3, 512)
    assert torch.allclose(Norm(512).half()(vectors.half()).float(), T5LayerNorm(512)(vectors), rtol=0.01)


def test_the_gradient_of_the_normalization_is_correct_and_a_second_derivative_is_refused() -> None:
    torch.manual_seed(0)
    norm, vectors = Norm(8), torch.randn(2, 3, 8, requires_grad=True)
    norm.weight.data.normal_()
    plain = T5LayerNorm(8)
    plain.load_state_dict(norm.state_dict())
    wanted = torch.randn(2, 3, 8)
    gradients = []
    for module in (norm, plain):
        vectors.grad = None
        (module(vectors) * wanted).sum().backward()
        gradients.append((vectors.grad, module.weight.grad))
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*gradients, strict=True))
    (gradient,) = torch.autograd.grad(norm(vectors).square().sum(), vectors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_networks_run_without_memory() -> None:
    """On the meta device, as for Lightning's counting of operations."""
    network = t5()
    speed_up(network)
    inputs = {name: values.to("meta") for name, values in batch(9, padded=False).items()}
    assert network.to("meta")(input_ids=inputs["input_ids"], labels=labels("t5").to("meta")).logits.shape == (5, 9, 100)
