"""Logged throughput, measured with a clock that only a test moves forward."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import fit
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import DataLoader, TensorDataset

from litlab.data.batches import TrainingBatches, shuffled
from litlab.runs.directory import rows
from litlab.training import throughput
from litlab.training.checkpoints import LastCheckpoint
from litlab.training.interrupts import Interrupts
from litlab.training.loggers import MetricsCsv
from litlab.training.loops import FitLoop
from litlab.training.progress_bar import ProgressBar
from litlab.training.throughput import METRICS, Throughput

READ, STEP, FIRST_STEP, OTHER = 1.0, 3.0, 500.0, 1000.0  # seconds


class Clock:
    """A replacement for time.perf_counter."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        dynamo.counters.clear()  # counts of functions that other tests have compiled


class Slow(LightningModule):
    """A model whose steps take 3 seconds, the first step 500, and a validation batch 1,000."""

    def __init__(self, clock: Clock, network: nn.Module | None = None) -> None:
        super().__init__()
        self.clock, self.network = clock, network or nn.Linear(1, 1)
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.seconds += STEP if self.steps else FIRST_STEP
        self.steps += 1
        inputs = batch["image"] if isinstance(batch, dict) and "image" in batch else torch.ones(1, 1)
        return self.network(inputs).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.seconds += OTHER

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SlowDisk(Callback):
    """A callback that makes each checkpoint write take 1,000 seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_save_checkpoint(self, *_: Any) -> None:
        self.clock.seconds += OTHER


def train(
    folder: Path, module: LightningModule, loader: Any, callback: Throughput | None = None, **options: Any
) -> list[dict[str, float]]:
    """Train with litlab's loops; returns the rows of metrics.csv that contain throughput."""
    last_checkpoint = LastCheckpoint(every_minutes=1e-9)
    disk = [SlowDisk(module.clock)] if isinstance(module, Slow) else []
    trainer = Trainer(
        accelerator="cpu",
        logger=MetricsCsv(folder),
        callbacks=[callback or Throughput(), *disk, last_checkpoint],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "log_every_n_steps": 2, **options},
    )
    trainer.fit_loop = FitLoop(trainer, last_checkpoint, Interrupts())
    validates = is_overridden("validation_step", module)
    trainer.fit(module, loader, DataLoader(TensorDataset(torch.ones(2, 1))) if validates else None)
    return [row for row in rows(folder) if "train/peak_memory_gb" in row]


def batches(clock: Clock, sizes: list[int], make: Callable[[int], Any] = lambda size: torch.ones(size, 1)) -> list[Any]:
    """Return a dataloader that takes one second per batch."""

    class Reading(list):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                clock.seconds += READ
                yield batch

    return Reading(map(make, sizes))


def test_throughput_and_wait_exclude_validations_checkpoints_and_the_first_step(clock: Clock, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "val_check_interval": 3, "num_sanity_val_steps": 2}
    logged = train(tmp_path, Slow(clock), batches(clock, [7, 8, 10, 20, 30, 50]), **options)
    assert [row["step"] for row in logged] == [1, 3, 5, 7, 9, 11]
    seconds = READ + STEP
    expected = [8, (10 + 20) / 2, (30 + 50) / 2, (7 + 8) / 2, (10 + 20) / 2, (30 + 50) / 2]
    assert [row["train/examples_per_second"] for row in logged] == pytest.approx([n / seconds for n in expected])
    assert [row["train/data_wait_share"] for row in logged] == pytest.approx([READ / seconds] * 6)


def test_the_first_step_counts_if_it_is_logged_alone(clock: Clock, tmp_path: Path) -> None:
    logged = train(tmp_path, Slow(clock), batches(clock, [7, 8]), log_every_n_steps=1)
    speeds = [row["train/examples_per_second"] for row in logged]
    assert speeds == pytest.approx([7 / (READ + FIRST_STEP), 8 / (READ + STEP)])


def test_a_step_of_several_micro_batches_counts_all_of_them(clock: Clock, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 3, "log_every_n_steps": 1}
    logged = train(tmp_path, Slow(clock), batches(clock, [1, 1, 1, 2, 3, 4]), **options)
    assert [row["step"] for row in logged] == [0, 1]
    assert logged[1]["train/examples_per_second"] == pytest.approx(9 / (3 * (READ + STEP)))


def test_repeated_examples_of_weight_0_are_not_counted(clock: Clock, tmp_path: Path) -> None:
    """Six micro-batches share four examples; two of them repeat an example with weight 0."""
    plan = shuffled(12, 4, seed=0)
    loader = TrainingBatches(lambda ids: {"id": ids}, plan, accumulation=6)
    logged = train(tmp_path, Slow(clock), loader, accumulate_grad_batches=6, log_every_n_steps=1)
    assert [row["train/examples_per_second"] for row in logged[1:]] == pytest.approx([4 / (6 * STEP)] * 2)


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
LABELS = torch.tensor([[5, 6], [7, -100], [8, -100]])


@pytest.mark.parametrize(("encoder_decoder", "tokens", "padded"), [(False, 6, 12), (True, 10, 18)])
def test_tokens_are_counted_without_padding_and_targets_only_for_an_encoder_decoder(
    clock: Clock, tmp_path: Path, encoder_decoder: bool, tokens: int, padded: int
) -> None:
    """Without a decoder, the labels belong to tokens that the attention mask counts already."""
    module = Slow(clock)
    module.network.config = type("Config", (), {"is_encoder_decoder": encoder_decoder})()
    batch = {"id": torch.arange(3), "attention_mask": MASK, "labels": LABELS}
    [row] = train(tmp_path, module, batches(clock, [0, 0], lambda _: batch))
    assert row["train/tokens_per_second"] == pytest.approx(tokens / (READ + STEP))
    assert row["train/padding_share"] == pytest.approx(1 - tokens / padded)
    assert row["train/examples_per_second"] == pytest.approx(3 / (READ + STEP))


@pytest.mark.parametrize(
    ("batch", "examples"),
    [
        (torch.ones(4, 2), 4),
        ([torch.ones(4, 2), torch.ones(9)], 4),
        (("names", torch.ones(4)), 4),
        ({"names": ["a"], "x": torch.ones(4, 2)}, 4),
        ({"x": torch.ones(4, 2), "weight": torch.zeros(4)}, 4),
        ({"id": [3, 1], "x": torch.ones(4, 2)}, 2),
        ({"x": torch.ones(4, 2), "attention_mask": None}, 4),
        (torch.ones(()), None),
        ("nothing to count", None),
        ({}, None),
    ],
)
def test_the_examples_of_any_batch_are_counted_or_left_out(
    clock: Clock, tmp_path: Path, batch: Any, examples: int | None
) -> None:
    [row] = train(tmp_path, Slow(clock), batches(clock, [0, 0], lambda _: batch))
    assert row.get("train/examples_per_second") == (examples and pytest.approx(examples / (READ + STEP)))
    assert "train/tokens_per_second" not in row and "train/padding_share" not in row


def test_values_that_cannot_be_measured_are_not_logged(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    directory = fit("-c", "configs/experiment/small.yaml", "--trainer.log_every_n_steps=4")
    logged = [row for row in rows(directory.path) if METRICS.keys() & row.keys()]
    measurable = {"train/examples_per_second", "train/data_wait_share", "train/peak_memory_gb"}
    assert all(METRICS.keys() & row.keys() == measurable for row in logged)
    assert [row["step"] for row in logged] == list(range(3, 32, 4))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert all(most / 100 < row["train/peak_memory_gb"] <= most for row in logged)
    assert all(0 < row["train/data_wait_share"] < 1 for row in logged)


def test_rates_add_up_over_ranks() -> None:
    callback = Throughput()
    callback._peak, callback._flops = 200.0, 10.0  # FLOP/s of a device, FLOPs per token
    sums = [[4.0, 1.0, 8, 60.0, 100, 2e9], [6.0, 2.0, 7, 70.0, 100, 3e9]]
    assert callback._rates(sums) == pytest.approx(
        {
            "train/examples_per_second": 15 / 5,
            "train/tokens_per_second": 130 / 5,
            "train/padding_share": 0.35,
            "train/data_wait_share": 3 / 10,
            "train/peak_memory_gb": 3,
            "train/flop_utilization": 200 * 10 / (2 * 5 * 200),
        }
    )


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def flops(examples: int) -> int:
    """FLOPs of one step of `network`: forward, gradients of the weights, gradient of the hidden layer."""
    return 2 * examples * (2 * 20 * 30 + 3 * 30 * 10)


def images(size: int) -> dict[str, Any]:
    return {"id": torch.arange(size), "image": torch.ones(size, 20)}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_utilization_is_a_share_of_the_peak(clock: Clock, tmp_path: Path, accumulation: int) -> None:
    loader = batches(clock, [8, 16] * accumulation, images)
    options = {"accumulate_grad_batches": accumulation, "log_every_n_steps": 2}
    [row] = train(tmp_path, Slow(clock, network()), loader, Throughput(peak_tflops=1e-6), **options)
    examples = 16 if accumulation == 1 else 8 + 16
    expected = flops(examples) / (accumulation * (READ + STEP) * 1e6)
    assert row["train/flop_utilization"] == pytest.approx(expected)


def test_the_default_peak_is_that_of_lightning(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(throughput, "get_available_flops", lambda *arguments: calls.append(arguments) or 10**6)
    module = Slow(clock, network())
    [row] = train(tmp_path, module, batches(clock, [8, 16], images), precision="bf16-mixed")
    assert calls == [(torch.device("cpu"), torch.bfloat16)]
    assert row["train/flop_utilization"] == pytest.approx(flops(16) / ((READ + STEP) * 1e6))


class Attention(LightningModule):
    """A model with dropout and attention."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.loss = lambda inputs: self.layer(inputs).square().mean()
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch["image"])
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def sequences(size: int) -> dict[str, Any]:
    return {"id": torch.arange(size), "image": torch.linspace(-1, 1, size * 40).reshape(size, 5, 8)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_counting_flops_does_not_change_the_weights(clock: Clock, tmp_path: Path, precision: str) -> None:
    trained = []
    for peak in (None, 1.0):
        module, folder = Attention(), tmp_path / str(peak)
        folder.mkdir()
        loader = batches(clock, [4, 4, 4, 4], sequences)
        logged = train(folder, module, loader, Throughput(peak), precision=precision)
        assert ["train/flop_utilization" in row for row in logged] == [bool(peak)] * 2
        trained.append([*module.parameters(), torch.get_rng_state()])
    assert all(torch.equal(one, two) for one, two in zip(*trained, strict=True))


def test_utilization_is_not_logged_under_manual_optimization(clock: Clock, tmp_path: Path) -> None:
    [row] = train(tmp_path, Attention(manual=True), batches(clock, [4, 4], sequences), Throughput(1.0))
    assert "train/flop_utilization" not in row and "train/examples_per_second" in row


def test_a_compiled_model_stays_compiled_and_logs_no_utilization(clock: Clock, tmp_path: Path) -> None:
    """PyTorch never compiles a function that is first called under a FLOP counter."""
    module, runs = Attention(), []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return lambda *inputs: runs.append(graph) or graph.forward(*inputs)

    module.loss = torch.compile(module.loss, backend=compiler)
    [row] = train(tmp_path, module, batches(clock, [4, 4, 4], sequences), Throughput(1.0))
    assert "train/flop_utilization" not in row and "train/examples_per_second" in row
    assert len(runs) == 3


def test_an_error_while_flops_are_counted_stops_the_counter(clock: Clock, tmp_path: Path) -> None:
    loader = batches(clock, [20, 3], lambda width: {"image": torch.ones(8, width)})  # the second has a wrong shape
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(tmp_path, Slow(clock, network()), loader, Throughput(1.0))
    assert _get_current_dispatch_mode() is None


def test_the_progress_bar_shows_the_last_logged_values() -> None:
    callback = Throughput()
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback, ProgressBar()], enable_checkpointing=False)
    bar = trainer.progress_bar_callback
    assert not bar.get_metrics(trainer, LightningModule())
    callback.last = dict(zip(METRICS, [64123.4, 1.2345e6, 0.031, 0.412, 0.2, 1.27], strict=True))
    expected = {"ex/s": "64.1k", "tok/s": "1.23M", "wait": "3%", "mfu": "41%", "pad": "20%", "mem": "1.3GB"}
    assert bar.get_metrics(trainer, LightningModule()) == expected
    del callback.last["train/tokens_per_second"], callback.last["train/padding_share"]
    assert "tok/s" not in bar.get_metrics(trainer, LightningModule())
