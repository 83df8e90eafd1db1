import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from litlab.models.optimizer import decay_groups, rate_at

SCHEDULES = ["linear", "cosine", "exponential", "constant"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_then_never_rises_and_is_never_zero(schedule, total: int, share: float) -> None:
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


def test_only_matrices_decay() -> None:
    module = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "frozen": nn.Linear(4, 4)}
    )
    module["frozen"].requires_grad_(False)
    decayed, rest = decay_groups(module, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(module["linear"].weight)] and decayed["weight_decay"] == 0.1
    expected = {module["embed"].weight, module["linear"].bias, module["norm"].weight, module["norm"].bias}
    assert {id(p) for p in rest["params"]} == {id(p) for p in expected} and rest["weight_decay"] == 0.0


def test_a_tied_embedding_does_not_decay() -> None:
    embed, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embed.weight
    groups = decay_groups(nn.ModuleList([embed, head]), 0.1)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0
    torch.optim.AdamW(groups)
