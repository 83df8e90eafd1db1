"""Runs a training and evaluates its best checkpoint."""

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from litlab.files import short_path
from litlab.runs.checkpoint import load
from litlab.training.build import Job, callback_of, prepare_fit
from litlab.training.evaluate import evaluate_checkpoint, print_metrics
from litlab.training.failures import (
    explain_dead_worker,
    explain_misconfiguration,
    explain_mismatched_weights,
    explain_unwritable_run,
)
from litlab.training.guard import Guard
from litlab.training.interrupts import Interrupts
from litlab.training.ranks import share_start
from litlab.training.run_record import open_run, record_outcome


def fit(job: Job, interrupts: Interrupts) -> None:
    """Train, then evaluate the best checkpoint on the validation split. The test split is not used.

    Args:
        job: model, data, trainer and run.
        interrupts: turns SIGTERM and Ctrl-C into requests to stop.

    Raises:
        BadInput: if settings, data, files or the run are not valid.
        StoppedByGuard: if a loss or gradient was NaN or Inf.
    """
    try:
        prepare_fit(job.trainer, interrupts)
        # 1. prepare the data first: if they are invalid, no run directory is created and no process is launched
        new = False
        if job.trainer.is_global_zero:
            job.datamodule.prepare_data()
            new = not job.run.is_locked
            open_run(job)
        job.start = share_start(job.trainer, job.start)

        # 2. train and evaluate; run.json records whether this finished
        with record_outcome(job, new):
            seconds = _train(job)
            steps, best = job.trainer.global_step, _best_checkpoint(job.trainer)
            metrics = evaluate_checkpoint(job, "val", best) if best else {}
            if job.trainer.is_global_zero:
                _record(job, steps, seconds, metrics)

        # 3. print the metrics and the next command
        if job.trainer.is_global_zero:
            _print_summary(job, steps, seconds, metrics)
    finally:
        job.run.release()


def _train(job: Job) -> float:
    """Train from the job's start and return the duration in seconds."""
    started, start = time.monotonic(), job.start
    if start.weights:
        job.trainer.callbacks.append(InitialWeights(start.weights))  # type: ignore[attr-defined]
    with (
        explain_unwritable_run(job.run),
        explain_dead_worker(),
        explain_misconfiguration(),
        explain_mismatched_weights(start.copied.get("checkpoints/last.ckpt", start.checkpoint)),
    ):
        job.trainer.fit(job.model, datamodule=job.datamodule, ckpt_path=start.checkpoint, weights_only=True)
    return time.monotonic() - started


def _best_checkpoint(trainer: Trainer) -> Path | None:
    """Return the path of the best checkpoint; None if none was written."""
    checkpoint = trainer.checkpoint_callback
    path = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
    return Path(path) if path else None


def _record(job: Job, steps: int, seconds: float, metrics: dict[str, float]) -> None:
    """Add the number of steps, the duration and the monitored metric to run.json."""
    name = getattr(job.trainer.checkpoint_callback, "monitor", None) or "val/loss"
    job.run.update_record(
        steps=steps,
        training_seconds=round(seconds, 1),
        skipped_steps=callback_of(job.trainer, Guard).skipped,
        best={"name": name, "score": metrics.get(name)},
    )


def _print_summary(job: Job, steps: int, seconds: float, metrics: dict[str, float]) -> None:
    """Print the metrics, the number of steps, and the next command."""
    if metrics:
        print_metrics(job, "val", metrics, "best")
    skipped = callback_of(job.trainer, Guard).skipped
    skipped_steps = f" ({skipped:,} skipped)" if skipped else ""
    print(f"\ntrained {steps:,} steps{skipped_steps} in {seconds:.1f} s")
    print(f"run   {short_path(job.run.path)}")
    if _best_checkpoint(job.trainer) and is_overridden("test_step", job.model):
        print(f"next  make eval RUN={job.run.experiment}/{job.run.id}   evaluates the test split; run.json counts it")


class InitialWeights(Callback):
    """Loads the weights of another run's checkpoint into the model when training starts.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights. The model is already on its device.

        Raises:
            BadInput: if the weights do not match the model.
        """
        with explain_mismatched_weights(self._path):
            trainer.strategy.load_model_state_dict(load(self._path), strict=True)
