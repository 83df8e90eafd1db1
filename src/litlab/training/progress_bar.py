"""Terminal output of a training: batch sizes and steps, a progress bar, and a line per epoch."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from litlab.training.throughput import Throughput
from litlab.training.training_log import TrainingLog


class ProgressBar(TQDMProgressBar):
    """A progress bar that is redrawn four times per second, and a permanent line per epoch.

    Lightning redraws its bar at every step: at a thousand steps per second, this takes longer than the step. If the
    output is not a terminal, the bar is replaced by a line every ten seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._terminal = sys.stdout.isatty()
        self._interval = 0.25 if self._terminal else 10.0  # seconds between two updates
        self._drawn = time.monotonic()
        self._epoch_started = 0.0

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of an epoch, which disappears at the end of the epoch."""
        return self._create_bar(super().init_train_tqdm)

    def init_validation_tqdm(self) -> Tqdm:
        """Return the bar of a validation."""
        return self._create_bar(super().init_validation_tqdm)

    def init_test_tqdm(self) -> Tqdm:
        """Return the bar of an evaluation on the test split."""
        return self._create_bar(super().init_test_tqdm)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the sizes that are derived from the configuration."""
        self._print(describe(trainer, pl_module))
        super().on_train_start(trainer, pl_module)
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning does not call on_train_epoch_start
            self._print(f"resumed    at step {trainer.global_step:,}, in epoch {trainer.current_epoch + 1}")
            self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the bar of the epoch."""
        super().on_train_epoch_start(trainer, *args)
        self._epoch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw the bar if that is due."""
        if self._is_due():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            metrics = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            batches = f"batch {batch_idx + 1} of {trainer.num_training_batches}"
            self._print_progress(f"epoch {trainer.current_epoch + 1:>3}  {batches}  {metrics}")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Redraw the bar if that is due."""
        if self._is_due():
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, *rest)
            self._print_progress(f"validation batch {batch_idx + 1}")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Redraw the bar if that is due."""
        if self._is_due():
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, *rest)
            self._print_progress(f"test batch {batch_idx + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch: steps, seconds and metrics."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            validation = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            metrics = {"train/loss": self._loss(trainer), **validation}
            values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            seconds = time.monotonic() - self._epoch_started
            self._print(
                f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  {seconds:5.1f} s  {values}"
            )

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values next to the bar: last logged loss, values logged with `prog_bar=True`, and throughput."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in getattr(trainer, "callbacks", []):
            if isinstance(callback, Throughput):
                metrics |= callback.formatted()
        loss = self._loss(trainer)
        return metrics if math.isnan(loss) else {"loss": f"{loss:.4f}", **metrics}

    @staticmethod
    def _loss(trainer: Trainer) -> float:
        return next(
            (callback.loss for callback in getattr(trainer, "callbacks", []) if isinstance(callback, TrainingLog)),
            math.nan,
        )

    def _create_bar(self, make_bar: Callable[[], Tqdm]) -> Tqdm:
        """Return a bar that disappears at its end, or a disabled bar if the output is not a terminal."""
        if not self._terminal:
            return Tqdm(disable=True)
        bar = make_bar()
        bar.leave = False
        return bar

    def _print(self, text: str) -> None:
        """Print a line above the bar."""
        if self.is_enabled:
            with suppress(OSError):  # stdout was closed; the training continues
                Tqdm.write(text)
                sys.stdout.flush()

    def _print_progress(self, text: str) -> None:
        """Print a line if the output is not a terminal."""
        if not self._terminal:
            self._print(text)

    def _is_due(self) -> bool:
        if (now := time.monotonic()) - self._drawn < self._interval:
            return False
        self._drawn = now
        return True


def describe(trainer: Trainer, module: LightningModule) -> str:
    """Return a summary of a training: data, batch size, steps, parameters and hardware, one per line."""
    accumulation = trainer.accumulate_grad_batches
    steps_per_epoch = trainer.num_training_batches // -accumulation * -1
    total = trainer.estimated_stepping_batches  # infinite if only max_time limits the training
    batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    # data and batch size
    lines = []
    if description := getattr(trainer.datamodule, "description", None):  # type: ignore[attr-defined]
        lines.append(description)
    if batch_size:
        share = batch_size / (trainer.world_size * accumulation)
        devices = f"{trainer.world_size} device{'s' if trainer.world_size > 1 else ''}"
        lines.append(f"batch      {batch_size} examples = {share:g} x {devices} x {accumulation} accumulated")

    # steps, parameters and hardware
    warmup = module.hparams.get("warmup")
    if total != math.inf:
        warmup_steps = f", {int(warmup * total):,} of them warm-up" if isinstance(warmup, float) and warmup <= 1 else ""
        lines.append(f"steps      {steps_per_epoch:,} per epoch, {int(total):,} in all{warmup_steps}")
    lines.append(f"parameters {parameters:,}" + (f", {trained:,} trained" if trained != parameters else ""))
    lines.append(
        f"hardware   {trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}"
    )
    return "\n".join(lines)
