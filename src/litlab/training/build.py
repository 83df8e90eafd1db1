"""Trainer arguments, fit loop and signal handling that are the same for every configuration.

Callbacks find the run directory in `trainer.default_root_dir`.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision

from litlab.runs.directory import RunDirectory
from litlab.runs.start import Start
from litlab.training import precision
from litlab.training.checkpoint_io import AtomicCheckpointIO
from litlab.training.checkpoints import LastCheckpoint
from litlab.training.evaluation_results import CountTestEvaluations, EvaluationResults
from litlab.training.guard import Guard
from litlab.training.interrupts import Interrupts
from litlab.training.loggers import MetricsCsv
from litlab.training.loops import FitLoop

OWN_PRECISION = re.compile("fsdp|deepspeed|modelparallel")  # strategies that have their own precision plugin

AnyCallback = TypeVar("AnyCallback")


@dataclass
class Job:
    """Input of `fit` and `evaluate`: model, data, trainer and run.

    Args:
        model: the module to train or evaluate.
        datamodule: the data.
        trainer: a trainer built with `trainer_arguments`.
        start: the run directory, and what training starts from.
        config: the full configuration as YAML, without secrets.
        seed: seed of all random number generators.
        project: the folder whose git commit and changes are recorded.
        arguments: command-line arguments after the command.
    """

    model: LightningModule
    datamodule: LightningDataModule
    trainer: Trainer
    start: Start
    config: str
    seed: int
    project: Path
    arguments: list[str]

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return self.start.run


def trainer_arguments(config: Any, run: Path) -> dict[str, Any]:
    """Return Trainer arguments that override its configuration: run directory, loggers, callbacks and plugins.

    Args:
        config: the trainer's settings, with instantiated loggers, callbacks and plugins.
        run: the run directory.
    """
    arguments: dict[str, Any] = {
        "default_root_dir": str(run),
        "plugins": [*as_list(config.plugins), AtomicCheckpointIO()],
        "callbacks": [*as_list(config.callbacks), EvaluationResults(), CountTestEvaluations()],
    }
    if not config.fast_dev_run:
        # the configured loggers come first: a module's self.logger is the first logger
        loggers = as_list(None if config.logger is True else config.logger)
        arguments["logger"] = [*loggers, MetricsCsv(run)]
    # replace Lightning's bfloat16 plugin; Bf16Mixed says why
    strategy = config.strategy if isinstance(config.strategy, str) else type(config.strategy).__name__
    if config.precision in ("bf16-mixed", "bf16") and not OWN_PRECISION.match(strategy.lower()):
        arguments["precision"] = None  # the plugin sets it
        arguments["plugins"].append(precision.Bf16Mixed(precision.device_type(config.accelerator)))
    return arguments


def prepare_fit(trainer: Trainer, interrupts: Interrupts) -> None:
    """Replace Lightning's fit loop with one that resumes exactly, and replace its gradient clipping by norm.

    Args:
        trainer: a trainer with the callbacks `LastCheckpoint` and `Guard`.
        interrupts: turns SIGTERM and Ctrl-C into requests to stop.
    """
    trainer.fit_loop = FitLoop(trainer, callback_of(trainer, LastCheckpoint), interrupts)
    if type(trainer.precision_plugin) in (Precision, precision.Bf16Mixed):  # other plugins scale or shard gradients
        trainer.precision_plugin.clip_grad_by_norm = callback_of(trainer, Guard).clip  # type: ignore[method-assign]
    elif isinstance(trainer.precision_plugin, FSDPPrecision):
        trainer.precision_plugin.clip_grad_by_norm = partial(clip_sharded, trainer)  # type: ignore[method-assign]


def clip_sharded(trainer: Trainer, optimizer: Any, clip_val: float) -> None:
    """Clip sharded gradients by their norm across ranks; Lightning's FSDPPrecision raises an error instead."""
    trainer.strategy.model.clip_grad_norm_(clip_val)  # type: ignore[union-attr, operator]


def use_own_signal_handlers(trainer: Trainer) -> None:
    """Disable Lightning's signal handlers: they can save in the middle of a step and requeue the job from that file."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def callback_of(trainer: Trainer, kind: type[AnyCallback]) -> AnyCallback:
    """Return the trainer's callback of a class.

    Raises:
        LookupError: if the trainer has no such callback.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kind):
            return callback
    raise LookupError(f"the trainer has no {kind.__name__} callback: add one to its callbacks.")


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, any other value in a list, and None or False as an empty list."""
    return value if isinstance(value, list) else [value] if value else []
