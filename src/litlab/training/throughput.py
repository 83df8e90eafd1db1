"""How fast a training is, and what slows it down."""

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

SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "train/examples_per_second": ("ex/s", tqdm.format_sizeof),
    "train/tokens_per_second": ("tok/s", tqdm.format_sizeof),
    "train/data_wait_share": ("wait", "{:.0%}".format),
    "train/flop_utilization": ("mfu", "{:.0%}".format),
    "train/padding_share": ("pad", "{:.0%}".format),
    "train/peak_memory_gb": ("mem", "{:.1f}GB".format),
}  # what is logged, and how the progress bar shows it; a narrow terminal cuts off the last ones


class Throughput(Callback):
    """Logs the speed of the training over the steps since the last log, of all processes together, where `TrainingLog` logs.

    - `train/examples_per_second`: examples trained on.
    - `train/tokens_per_second`: their tokens without padding; of an encoder-decoder, those of the targets too.
    - `train/padding_share`: what is padding, of all tokens that the model computes; 0 to 1.
    - `train/data_wait_share`: the time from asking for a batch until it is on the device, of all time; 0 to 1.
    - `train/peak_memory_gb`: 10^9 bytes, of the process that needed most since it began: on a GPU what its tensors had
      allocated, otherwise what lay in memory of the process.
    - `train/flop_utilization`: model FLOP utilization (Chowdhery et al., 2022, appendix B), padding included, FLOP/s of the peak; 0 to 1.

    Only what is known is logged: tokens if batches have an `attention_mask`, (batch, length); utilization if the peak is
    known, nothing is compiled and the module does not optimize by itself. Time is wall-clock time without validations and
    the writing of checkpoints. The first optimizer step of a process, which is much slower than others, is left out unless
    it is logged alone; so is the second if its FLOPs are counted. It needs the loops of `litlab.training.loops`, which remember when
    they ask for a batch.

    Args:
        peak_tflops: the most that one device can do in the precision in use, in 10^12 FLOP/s; null: what Lightning knows
            of a GPU, which of some is nothing, and of CPUs too.
    """

    def __init__(self, peak_tflops: PositiveFloat | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.last: dict[str, float] = {}  # what was logged last, for the progress bar
        self._peak: float | None = None  # FLOP/s of a device
        self._flops = 0.0  # of an example, or of a token, padding or not
        self._counter: FlopCounterMode | None = None  # counts the FLOPs of the batch under way
        self._undecided = False  # whether FLOPs will be counted
        self._to_be_counted = False  # of the next batch
        self._counted = 0  # examples or tokens of that batch
        self._counts_targets = False
        self._first = True  # no optimizer step is over yet
        self._paused: float | None = None  # when the training was interrupted by something else
        self._begin(0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, and find out what can be known."""
        configs = (getattr(module, "config", None) for module in pl_module.modules())
        self._counts_targets = any(getattr(config, "is_encoder_decoder", False) for config in configs)
        self._peak = self.peak_tflops * 1e12 if self.peak_tflops else known_peak(trainer)
        # a module that optimizes by itself may do so several times per batch, of which the counter would see one
        self._undecided = bool(self._peak and pl_module.automatic_optimization)
        self._to_be_counted, self._flops = False, 0.0
        self._first = True
        self._begin(now(trainer))
        self._paused = self._began  # until the first batch is asked for

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count a batch."""
        asked = trainer.fit_loop.epoch_loop.asked  # type: ignore[attr-defined]
        self._wait += time.perf_counter() - asked
        if self._paused is not None:
            self._began += asked - self._paused
            self._paused = None
        examples, tokens, padded = sizes(batch, self._counts_targets)
        weight = batch.get("weight") if isinstance(batch, Mapping) else None
        if not (isinstance(weight, float) and weight == 0):  # such a slice repeats an example of another slice
            self._examples += examples
            self._tokens += tokens
            self._padded += padded
        if self._to_be_counted:
            self._to_be_counted, self._counted = False, padded or examples
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Stop counting FLOPs: those of the optimizer are not the model's."""
        self._stop_counting()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the steps that the trainer logs at."""
        self._stop_counting()  # there was no optimizer step if gradients are accumulated
        if self._undecided:  # after the first batch: what is called under the counter first is never compiled any more
            self._undecided, self._to_be_counted = False, not has_compiled()
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log(trainer)
            elif self._first:
                self._begin(now(trainer))
            self._first = self._to_be_counted  # that is slow too

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: what follows is not training."""
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock: what follows is not training."""
        self._pause(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind that looks at every operation."""
        self._stop_counting()

    def brief(self) -> dict[str, str]:
        """What was logged last, in a few characters each."""
        return {short: show(self.last[name]) for name, (short, show) in SHOWN.items() if name in self.last}

    def _begin(self, moment: float) -> None:
        """Begin new sums."""
        self._began = moment  # seconds; later by what was no training
        self._wait = 0.0  # seconds
        self._examples = self._padded = 0
        self._tokens: int | Tensor = 0  # stays on the device until it is logged

    def _pause(self, trainer: Trainer) -> None:
        """Stop the clock until the next batch is asked for."""
        if self._paused is None:
            self._paused = now(trainer)

    def _stop_counting(self) -> None:
        if self._counter is not None:
            counter, self._counter = self._counter, None
            counter.__exit__(None, None, None)
            if self._counted:
                self._flops = counter.get_total_flops() / self._counted

    def _log(self, trainer: Trainer) -> None:
        moment = now(trainer)
        memory = peak_memory(trainer.strategy.root_device)
        mine = [moment - self._began, self._wait, self._examples, float(self._tokens), self._padded, memory]
        of_all = [mine]
        if trainer.world_size > 1:
            numbers = torch.tensor(mine, dtype=torch.float64, device=trainer.strategy.root_device)
            of_all = trainer.strategy.all_gather(numbers).tolist()
        self.last = self._rates(of_all)
        for logger in trainer.loggers:
            logger.log_metrics(
                {**self.last, "epoch": trainer.current_epoch}, step=trainer.global_step - 1
            )  # as Lightning counts: from 0
        self._begin(moment)

    def _rates(self, of_all: Sequence[Sequence[float]]) -> dict[str, float]:
        """What is logged, of the sums of all processes."""
        seconds, wait, examples, tokens, padded, _ = map(sum, zip(*of_all, strict=True))
        rates = {}
        if examples:
            rates["train/examples_per_second"] = examples / seconds * len(of_all)
        if padded:
            rates["train/tokens_per_second"] = tokens / seconds * len(of_all)
            rates["train/padding_share"] = 1 - tokens / padded
        rates["train/data_wait_share"] = wait / seconds
        rates["train/peak_memory_gb"] = max(memory for *_, memory in of_all) / 1e9
        if self._peak and self._flops:
            rates["train/flop_utilization"] = (padded or examples) * self._flops / (seconds * self._peak)
        return rates


def sizes(batch: Any, targets: bool) -> tuple[int, int | Tensor, int]:
    """How many examples a batch holds, how many tokens, and how many with padding; 0 what it does not tell.

    Args:
        batch: with `id`, or else with a first tensor, of length (batch,); with `attention_mask` (batch, length) if it is of
            texts.
        targets: whether `labels` (batch, length), negative where nothing is to be predicted, are further tokens.
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
    """Seconds, when the device has done what it was told to do so far."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def has_compiled() -> bool:
    """Whether torch.compile was at work in this process: a counter of operations does not see what it made of them."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"])


def peak_memory(device: torch.device) -> float:
    """Bytes that this process needed at most, on its GPU if it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def known_peak(trainer: Trainer) -> float | None:
    """The most FLOP/s of a device in the precision of the training, if Lightning knows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every device that it does not know
        return get_available_flops(trainer.strategy.root_device, _plugin_to_compute_dtype(trainer.precision_plugin))
