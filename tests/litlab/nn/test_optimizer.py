from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from small.model import SmallModel
from torch import nn

from litlab.nn.optimizer import RelativeAdamW, decay_groups, rate_at

SCHEDULES = ["linear", "cosine", "exponential", "constant"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_then_never_rises_and_is_never_zero(schedule, total: int, share: float) -> None:
    warmup = int(share * total)
    rates = [rate_at(step, total, warmup, schedule) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup < total:
        assert rates[warmup] == 1


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("linear", 0.5, 0), ("cosine", 0.5, 0), ("exponential", 0.1, 0.01), ("constant", 1, 1)],
)
def test_the_decay_has_its_shape(schedule, halfway: float, end: float) -> None:
    assert rate_at(60, 110, 10, schedule) == pytest.approx(halfway)
    assert rate_at(110, 110, 10, schedule) == pytest.approx(end)


def test_only_matrices_have_weight_decay() -> None:
    module = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "frozen": nn.Linear(4, 4)}
    )
    module["frozen"].requires_grad_(False)
    decayed, rest = decay_groups(module, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(module["linear"].weight)] and decayed["weight_decay"] == 0.1
    expected = {module["embed"].weight, module["linear"].bias, module["norm"].weight, module["norm"].bias}
    assert {id(p) for p in rest["params"]} == {id(p) for p in expected} and rest["weight_decay"] == 0.0


def test_a_tied_embedding_has_no_weight_decay() -> None:
    embed, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    groups = decay_groups(nn.ModuleList([embed, head]), 0.1)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0
    torch.optim.AdamW(groups)


def test_relative_steps_are_those_of_adamw_times_the_root_mean_square_of_each_tensor() -> None:
    torch.manual_seed(0)
    values = [torch.randn(6, 4) * 0.05, torch.randn(5), torch.zeros(3)]
    gradients = [[torch.randn_like(value) for value in values] for _ in range(3)]

    def trained(make) -> list[torch.Tensor]:
        weights = [nn.Parameter(value.clone()) for value in values]
        optimizers = make(weights)
        for step in gradients:
            sizes = [max(1e-3, float(weight.detach().square().mean().sqrt())) for weight in weights]
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            for number, optimizer in enumerate(optimizers):
                if len(optimizers) > 1:
                    optimizer.param_groups[0]["lr"] = 0.02 * sizes[number]
                optimizer.step()
        return weights

    relative = trained(lambda weights: [RelativeAdamW([{"params": weights}], lr=0.02, weight_decay=0.1, fused=True)])
    alone = trained(lambda weights: [torch.optim.AdamW([weight], lr=0.0, weight_decay=0.1) for weight in weights])
    for one, other, value in zip(relative, alone, values, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.equal(one, value)  # zeros are changed too


def test_a_relative_optimizer_is_saved_and_restored_like_any_other() -> None:
    weights = [nn.Parameter(torch.ones(2, 2))]
    optimizer = RelativeAdamW(weights, lr=0.02, fused=True)
    weights[0].grad = torch.ones(2, 2)
    optimizer.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [1] and optimizer.param_groups[0]["lr"] == 0.02
    other = RelativeAdamW([nn.Parameter(torch.ones(2, 2))], lr=0.5, fused=True)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.02 and other.state_dict()["state"][0]["step"] == 1


class Slower(SmallModel):
    """A subclass that passes another learning rate to its parent."""

    def __init__(self, learning_rate: float = 1e-2, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate / 10, **kwargs)


def test_the_learning_rate_of_the_parent_is_used_and_not_the_hyperparameter_of_the_subclass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Slower(schedule="constant", warmup=0.0)
    module.configure_model()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    module.trainer = Trainer(accelerator="cpu", max_steps=10, **options)
    monkeypatch.setattr(Trainer, "estimated_stepping_batches", 10)
    optimizer: Any = module.configure_optimizers()["optimizer"]
    assert module.hparams["learning_rate"] == 1e-2 and optimizer.param_groups[0]["lr"] == 1e-3
