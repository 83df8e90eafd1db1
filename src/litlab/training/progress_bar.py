"""What the terminal shows of a training: its arithmetic, a bar, and a line per epoch."""

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
    """A bar that is redrawn a few times a second, and a line for every epoch that stays.

    Lightning's own redraws at every step: at a thousand steps a second that costs more than the step. Where the output
    is not a terminal, a line every ten seconds takes the place of the bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._terminal = sys.stdout.isatty()
        self._interval = 0.25 if self._terminal else 10.0  # seconds
        self._drawn = time.monotonic()
        self._epoch_started = 0.0

    def init_train_tqdm(self) -> Tqdm:
        """The bar of an epoch; it vanishes when its line is printed."""
        return self._adapted(super().init_train_tqdm)

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation."""
        return self._adapted(super().init_validation_tqdm)

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test."""
        return self._adapted(super().init_test_tqdm)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, once, what is derived from the batch size and the number of devices."""
        self._say(describe(trainer, pl_module))
        super().on_train_start(trainer, pl_module)
        if trainer.fit_loop.restarted_mid_epoch:  # then Lightning does not announce the epoch
            self._say(f"resumed    at step {trainer.global_step:,}, in epoch {trainer.current_epoch + 1}")
            self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Begin the epoch's bar."""
        super().on_train_epoch_start(trainer, *args)
        self._epoch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw if the last time is long enough ago."""
        if self._is_due():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            metrics = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            self._tick(
                f"epoch {trainer.current_epoch + 1:>3}  batch {batch_idx + 1} of {trainer.num_training_batches}  {metrics}"
            )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Redraw if the last time is long enough ago."""
        if self._is_due():
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, *rest)
            self._tick(f"validation batch {batch_idx + 1}")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Redraw if the last time is long enough ago."""
        if self._is_due():
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, *rest)
            self._tick(f"test batch {batch_idx + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the scores."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            scores = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
            shown = "  ".join(
                f"{name} {value:.4f}" for name, value in {"train/loss": self._loss(trainer), **scores}.items()
            )
            seconds = time.monotonic() - self._epoch_started
            self._say(f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  {seconds:5.1f} s  {shown}")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss of the last log beside the bar, what modules log with `prog_bar=True`, and the throughput."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        for callback in getattr(trainer, "callbacks", []):
            if isinstance(callback, Throughput):
                metrics |= callback.brief()
        loss = self._loss(trainer)
        return metrics if math.isnan(loss) else {"loss": f"{loss:.4f}", **metrics}

    @staticmethod
    def _loss(trainer: Trainer) -> float:
        return next(
            (callback.loss for callback in getattr(trainer, "callbacks", []) if isinstance(callback, TrainingLog)),
            math.nan,
        )

    def _adapted(self, make_bar: Callable[[], Tqdm]) -> Tqdm:
        if not self._terminal:
            return Tqdm(disable=True)
        bar = make_bar()
        bar.leave = False
        return bar

    def _say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.is_enabled:
            with suppress(OSError):  # nobody reads it any more; the training goes on
                Tqdm.write(text)
                sys.stdout.flush()

    def _tick(self, text: str) -> None:
        """Print a line where no bar is drawn."""
        if not self._terminal:
            self._say(text)

    def _is_due(self) -> bool:
        if (now := time.monotonic()) - self._drawn < self._interval:
            return False
        self._drawn = now
        return True


def describe(trainer: Trainer, module: LightningModule) -> str:
    """The data and the arithmetic of a training in a few lines: batch, steps, parameters, hardware."""
    accumulation = trainer.accumulate_grad_batches
    steps_per_epoch = trainer.num_training_batches // -accumulation * -1
    total = trainer.estimated_stepping_batches  # infinite if only time ends the training
    batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    lines = []
    if description := getattr(trainer.datamodule, "description", None):  # type: ignore[attr-defined]
        lines.append(description)
    if batch_size:
        share = batch_size / (trainer.world_size * accumulation)
        devices = f"{trainer.world_size} device{'s' if trainer.world_size > 1 else ''}"
        lines.append(f"batch      {batch_size} examples = {share:g} x {devices} x {accumulation} accumulated")
    warmup = module.hparams.get("warmup")
    if total != math.inf:
        of_them = f", {int(warmup * total):,} of them warm-up" if isinstance(warmup, float) and warmup <= 1 else ""
        lines.append(f"steps      {steps_per_epoch:,} per epoch, {int(total):,} in all{of_them}")
    lines.append(f"parameters {parameters:,}" + (f", {trained:,} trained" if trained != parameters else ""))
    lines.append(
        f"hardware   {trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}"
    )
    return "\n".join(lines)
