"""Logs throughput, padding, data wait, memory and FLOP utilization of a training."""

import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype
from pydantic import PositiveFloat
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "train/examples_per_second": ("ex/s", tqdm.format_sizeof),
    "train/tokens_per_second": ("tok/s", tqdm.format_sizeof),
    "train/data_wait_share": ("wait", "{:.0%}".format),
    "train/flop_utilization": ("mfu", "{:.0%}".format),
    "train/padding_share": ("pad", "{:.0%}".format),
    "train/peak_memory_gb": ("mem", "{:.1f}GB".format),
}  # metric -> its short name and format in the progress bar; a narrow terminal shows only the first ones


class Throughput(Callback):
    """Logs the throughput over the steps since the last log, across ranks, every `trainer.log_every_n_steps` steps.

    - `train/examples_per_second`: training examples.
    - `train/tokens_per_second`: tokens without padding; for an encoder-decoder, with the tokens of the targets.
    - `train/padding_share`: share of padding in all tokens of the batches; 0 to 1.
    - `train/data_wait_share`: share of the time spent waiting for batches, from request to arrival on device; 0 to 1.
    - `train/peak_memory_gb`: peak memory since the start of the process, maximum over ranks, in 10^9 bytes: on a GPU
      the memory allocated to tensors, otherwise the resident memory of the process.
    - `train/flop_utilization`: model FLOP utilization (Chowdhery et al., 2022, appendix B), with padding: FLOP/s of the
      model divided by the peak FLOP/s; 0 to 1.

    Tokens are logged if batches have an `attention_mask`, (batch, length). Utilization is logged if the peak is
    known, torch.compile is not used, and optimization is automatic. Time is wall-clock time without validations and
    checkpoint writes. The first optimizer step of a process is slow: it is left out, unless it is the only step of a
    log. The second step is left out in the same way if its FLOPs are counted. The trainer needs the loops of
    `litlab.training.loops`, which record the time of batch requests.

    Args:
        peak_tflops: peak of one device in the training's precision, in 10^12 FLOP/s; null: Lightning's value. Lightning
            has no value for some GPUs and for CPUs.
    """

    def __init__(self, peak_tflops: PositiveFloat | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.last: dict[str, float] = {}  # last logged values, for the progress bar
        self._peak: float | None = None  # FLOP/s of one device
        self._flops = 0.0  # FLOPs per token, with padding; per example if batches have no tokens
        self._counter: FlopCounterMode | None = None  # active while the FLOPs of a batch are counted
        self._undecided = False  # whether to decide, after the first batch, if FLOPs are counted
        self._to_be_counted = False  # whether to count the FLOPs of the next batch
        self._counted = 0  # tokens or examples of the counted batch
        self._counts_targets = False  # whether labels count as tokens
        self._first = True  # whether no optimizer step has ended yet
        self._paused: float | None = None  # time at which the clock was stopped; None while it runs
        self._begin(0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and determine which values can be measured."""
        configs = (getattr(module, "config", None) for module in pl_module.modules())
        self._counts_targets = any(getattr(config, "is_encoder_decoder", False) for config in configs)
        self._peak = self.peak_tflops * 1e12 if self.peak_tflops else known_peak(trainer)
        # manual optimization may take several optimizer steps per batch, and the counter stops at the first
        self._undecided = bool(self._peak and pl_module.automatic_optimization)
        self._to_be_counted, self._flops = False, 0.0
        self._first = True
        self._begin(now(trainer))
        self._paused = self._began  # until the first batch is requested

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the batch to the sums, and count its FLOPs if that is due."""
        # time since the request
        requested = trainer.fit_loop.epoch_loop.batch_requested  # type: ignore[attr-defined]
        self._wait += time.perf_counter() - requested
        if self._paused is not None:
            self._began += requested - self._paused
            self._paused = None

        # examples and tokens
        examples, tokens, padded = sizes(batch, self._counts_targets)
        weight = batch.get("weight") if isinstance(batch, Mapping) else None
        # a batch of weight 0 repeats an example of another rank or micro-batch
        if not (isinstance(weight, float) and weight == 0):
            self._examples += examples
            self._tokens += tokens
            self._padded += padded
        if self._to_be_counted:
            self._to_be_counted, self._counted = False, padded or examples
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Stop the FLOP counter, because the FLOPs of the optimizer are not those of the model."""
        self._stop_counting()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every `trainer.log_every_n_steps` steps."""
        self._stop_counting()  # with gradient accumulation, there may have been no optimizer step
        # not in the first batch: torch does not compile a function whose first call is under the counter
        if self._undecided:
            self._undecided, self._to_be_counted = False, not has_compiled()
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log(trainer)
            elif self._first:
                self._begin(now(trainer))
            self._first = self._to_be_counted  # a step whose FLOPs are counted is slow too

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock during a validation."""
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock while a checkpoint is written."""
        self._pause(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the FLOP counter, because it slows down all operations."""
        self._stop_counting()

    def formatted(self) -> dict[str, str]:
        """Return the last logged values by short name, formatted for the progress bar."""
        return {short: to_text(self.last[name]) for name, (short, to_text) in METRICS.items() if name in self.last}

    def _begin(self, moment: float) -> None:
        """Reset the sums; `moment` is the current time in seconds."""
        self._began = moment  # seconds; moved forward by the length of each pause
        self._wait = 0.0  # seconds
        self._examples = self._padded = 0
        self._tokens: int | Tensor = 0  # on the device, until it is logged

    def _pause(self, trainer: Trainer) -> None:
        """Stop the clock until the next batch is requested."""
        if self._paused is None:
            self._paused = now(trainer)

    def _stop_counting(self) -> None:
        """Stop the FLOP counter, if it is active, and keep the FLOPs per token or example."""
        if self._counter is not None:
            counter, self._counter = self._counter, None
            counter.__exit__(None, None, None)
            if self._counted:
                self._flops = counter.get_total_flops() / self._counted

    def _log(self, trainer: Trainer) -> None:
        """Log the values across ranks since the last log, and reset the sums."""
        moment = now(trainer)
        memory = peak_memory(trainer.strategy.root_device)
        sums = [moment - self._began, self._wait, self._examples, float(self._tokens), self._padded, memory]
        sums_of_ranks = [sums]
        if trainer.world_size > 1:
            numbers = torch.tensor(sums, dtype=torch.float64, device=trainer.strategy.root_device)
            sums_of_ranks = trainer.strategy.all_gather(numbers).tolist()
        self.last = self._rates(sums_of_ranks)
        for logger in trainer.loggers:
            # Lightning counts steps from 0
            logger.log_metrics({**self.last, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        self._begin(moment)

    def _rates(self, sums_of_ranks: Sequence[Sequence[float]]) -> dict[str, float]:
        """Return the values to log from the sums of each rank."""
        seconds, wait, examples, tokens, padded, _ = map(sum, zip(*sums_of_ranks, strict=True))
        rates = {}
        if examples:
            rates["train/examples_per_second"] = examples / seconds * len(sums_of_ranks)
        if padded:
            rates["train/tokens_per_second"] = tokens / seconds * len(sums_of_ranks)
            rates["train/padding_share"] = 1 - tokens / padded
        rates["train/data_wait_share"] = wait / seconds
        rates["train/peak_memory_gb"] = max(memory for *_, memory in sums_of_ranks) / 1e9
        if self._peak and self._flops:
            rates["train/flop_utilization"] = (padded or examples) * self._flops / (seconds * self._peak)
        return rates


def sizes(batch: Any, targets: bool) -> tuple[int, int | Tensor, int]:
    """Return the numbers of examples, tokens and tokens with padding in a batch; a number that is not known is 0.

    Args:
        batch: a dict with `id`, (batch,), or any batch whose first tensor is (batch, ...); text batches have
            `attention_mask`, (batch, length).
        targets: whether `labels`, (batch, length), count as tokens too; negative labels are padding.
    """
    if not isinstance(batch, Mapping):
        parts = batch if isinstance(batch, list | tuple) else [batch]
        first = next((part for part in parts if torch.is_tensor(part)), None)
        return len(first) if first is not None and first.ndim else 0, 0, 0
    examples = len(batch["id"]) if "id" in batch else sizes([*batch.values()], False)[0]
    mask = batch.get("attention_mask")
    if not torch.is_tensor(mask) or mask.ndim != 2:
        return examples, 0, 0
    if not targets or "labels" not in batch:
        return examples, mask.sum(), mask.numel()
    labels = batch["labels"]
    return examples, mask.sum() + (labels >= 0).sum(), mask.numel() + labels.numel()


def now(trainer: Trainer) -> float:
    """Return the time in seconds after the device has finished all queued work."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def has_compiled() -> bool:
    """Return whether torch.compile was used in this process: the FLOP counter does not count compiled operations."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"])


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in bytes: memory of the GPU, or resident memory for another device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def known_peak(trainer: Trainer) -> float | None:
    """Return the peak FLOP/s of one device in the training's precision; None if Lightning has no value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns if it has no value
        return get_available_flops(trainer.strategy.root_device, _plugin_to_compute_dtype(trainer.precision_plugin))
