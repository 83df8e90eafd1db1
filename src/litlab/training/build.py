"""What every Trainer gets, whatever its YAML says. Callbacks find the run directory in `trainer.default_root_dir`."""

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

BRINGS_PRECISION = re.compile("fsdp|deepspeed|modelparallel")  # strategies with a precision plugin of their own

AnyCallback = TypeVar("AnyCallback")


@dataclass
class Job:
    """What one command trains or evaluates, and where that is recorded.

    Args:
        model: the module.
        datamodule: its data.
        trainer: made with `trainer_arguments`.
        start: the run directory, and where a training starts.
        config: the whole configuration, as YAML, without secrets.
        seed: of everything random.
        project: the folder whose code is recorded.
        arguments: the command line after the command.
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
    """Arguments of a Trainer that win over its configuration: the run directory, metrics.csv, predictions, safe checkpoints.

    Args:
        config: the trainer's settings, with loggers, callbacks and plugins instantiated.
        run: the run directory.
    """
    arguments: dict[str, Any] = {
        "default_root_dir": str(run),
        "plugins": [*as_list(config.plugins), AtomicCheckpointIO()],
        "callbacks": [*as_list(config.callbacks), EvaluationResults(), CountTestEvaluations()],
    }
    if not config.fast_dev_run:
        # self.logger of a module is the first
        loggers = as_list(None if config.logger is True else config.logger)
        arguments["logger"] = [*loggers, MetricsCsv(run)]
    strategy = config.strategy if isinstance(config.strategy, str) else type(config.strategy).__name__
    if config.precision in ("bf16-mixed", "bf16") and not BRINGS_PRECISION.match(strategy.lower()):
        arguments["precision"] = None  # the plugin says it
        arguments["plugins"].append(precision.Bf16Mixed(precision.device_type(config.accelerator)))
    return arguments


def prepare_fit(trainer: Trainer, interrupts: Interrupts) -> None:
    """Replace Lightning's fit loop by one that saves and resumes exactly, and let the guard clip gradients.

    Args:
        trainer: has a `LastCheckpoint` and a `Guard` among its callbacks.
        interrupts: requests to stop.
    """
    trainer.fit_loop = FitLoop(trainer, callback_of(trainer, LastCheckpoint), interrupts)
    if type(trainer.precision_plugin) in (Precision, precision.Bf16Mixed):  # others scale or shard gradients
        trainer.precision_plugin.clip_grad_by_norm = callback_of(trainer, Guard).clip  # type: ignore[method-assign]
    elif isinstance(trainer.precision_plugin, FSDPPrecision):
        trainer.precision_plugin.clip_grad_by_norm = partial(clip_sharded, trainer)  # type: ignore[method-assign]


def clip_sharded(trainer: Trainer, optimizer: Any, clip_val: float) -> None:
    """Clip by the norm of the whole gradient, of which each rank holds a part: Lightning's FSDPPrecision refuses to."""
    trainer.strategy.model.clip_grad_norm_(clip_val)  # type: ignore[union-attr, operator]


def use_own_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from answering signals: it saves at any moment, and starts runs from what it saved."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def callback_of(trainer: Trainer, kind: type[AnyCallback]) -> AnyCallback:
    """The trainer's callback of a class.

    Raises:
        LookupError: if it has none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kind):
            return callback
    raise LookupError(
        f"the trainer has no {kind.__name__}: build it with trainer_arguments and the callbacks of the command line"
    )


def as_list(value: Any) -> list[Any]:
    """What Lightning takes as one, several or none, as a list."""
    return value if isinstance(value, list) else [value] if value else []
