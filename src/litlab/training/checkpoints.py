"""best.ckpt and last.ckpt: written between two optimizer steps, with everything that a run needs to go on unchanged."""

import os
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import PositiveFloat

from litlab.training.interrupts import Interrupted, Interrupts
from litlab.training.loggers import MetricsCsv
from litlab.training.ranks import any_rank, gather, of_rank
from litlab.training.state import (
    State,
    mean_state,
    metric_state,
    metrics_of,
    random_state,
    set_metric_state,
    set_random_state,
    unfinished_mean,
)

LOGGED = ("callback", "logged", "progress_bar")  # where Lightning's logger connector keeps what was logged


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose files are written between two optimizer steps.

    Lightning 2.6.6 writes them before the step that they belong to is over: what is left of the step would be missing
    when a run continues from such a file. Paths follow a run directory that was moved.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write to the run directory; begin with nothing to write."""
        self.dirpath = os.path.join(trainer.default_root_dir, "checkpoints")
        super().setup(trainer, pl_module, stage)
        self._waiting: list[str] = []
        self._superseded: list[str] = []

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint; one that does not depend on when files are written."""
        return f"BestCheckpoint({self.monitor}, {self.mode})"

    def load_state_dict(self, state_dict: State) -> None:
        """Take over which files are the best, wherever they lie now."""
        before, here = state_dict["dirpath"], str(self.dirpath)

        def moved(path: str) -> str:
            return here + path.removeprefix(before) if before and path.startswith(before) else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths: State = {name: moved(state_dict[name]) for name in names}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        self.current_score = state_dict["current_score"]
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})

    def write(self, trainer: Trainer) -> None:
        """Write what was decided on since the last time."""
        for path in dict.fromkeys(self._waiting):
            trainer.save_checkpoint(path, self.save_weights_only)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)
        for path in self._superseded:
            super()._remove_checkpoint(trainer, path)
        self._waiting, self._superseded = [], []

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        self._waiting.append(filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._superseded.append(filepath)


class LastCheckpoint(Callback):
    """Writes last.ckpt after each validation, every few minutes, and when the run is asked to stop.

    It holds what Lightning 2.6.6 leaves out: the states of the random number generators, how far a validation is, what
    was logged, the unfinished means of the epoch and the length of metrics.csv. `litlab.training.loops` says when a step is over.

    Args:
        every_minutes: most work that is lost when the process is killed; nothing is lost to SIGTERM and Ctrl-C.
    """

    def __init__(self, every_minutes: PositiveFloat = 5) -> None:
        self.every_minutes = every_minutes
        self._origin: State = {}  # what tells this run's checkpoints from another's
        self.validation_due = False  # whether the step at which the run continues is followed by a validation
        self.epoch_began: State = {}  # random states when the dataloader was asked for the epoch's iterator, and for its first batch
        self._at_validation: tuple[State, State] | None = None
        self._loaded: State | None = None
        self._configured: list[list[State]] = []  # the optimizers' settings
        self._saved = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read, on the first rank, which run this is and its settings."""
        if stage == "fit":
            run = Path(trainer.default_root_dir)
            mine = {"run": run.name, "config": _config(run)} if trainer.is_global_zero else {}
            self._origin = trainer.strategy.broadcast(mine)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the configuration says of the optimizers, before a checkpoint replaces it."""
        self._configured = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Add the state; in the middle of a validation that of its beginning."""
        run, mine = self._at_validation or self._state(trainer, pl_module)
        checkpoint["litlab"] = {
            **self._origin,
            **run,
            "optimizers": self._configured,
            "ranks": gather(trainer, mine),
        }
        checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = run["validation_progress"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Keep the state until the training starts: what lies between may draw random numbers."""
        if trainer.state.fn == "fit":
            self._loaded = checkpoint["litlab"]

    def restore(self, trainer: Trainer) -> None:
        """Set what was saved; the next thing that happens is what happened next when it was saved."""
        self._saved = time.monotonic()
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        mine = of_rank(trainer, state["ranks"])
        self.validation_due = state["validation_due"]
        self.epoch_began = mine["epoch_began"]
        connector: Any = trainer._logger_connector
        for name in LOGGED:
            getattr(connector, f"_{name}_metrics").update(state["logged"][name])
        connector._first_loop_iter, connector._current_fx = state["first_batch"], state["logging_hook"]
        for name, metric in metrics_of(trainer.lightning_module):
            if name in mine["metrics"]:
                set_metric_state(metric, mine["metrics"][name])
        for key, mean in mine["means"].items():
            trainer.fit_loop.epoch_loop._results[key] = unfinished_mean(trainer, mean)
        if state["run"] == self._origin["run"]:
            trainer.should_stop = state["should_stop"]
        else:
            self._apply_new_optimizer_settings(trainer, state["optimizers"])
        set_random_state(mine["random"])

    def before_validation(self, trainer: Trainer) -> None:
        """Remember the state: a validation that is interrupted is done again."""
        self.validation_due = True
        self._at_validation = deepcopy(self._state(trainer, trainer.lightning_module))
        self.validation_due = False

    def after_validation(self) -> None:
        """The validation is over."""
        self._at_validation = None

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop in the middle of a validation if that was asked for."""
        if self._at_validation and any_rank(trainer, _interrupts(trainer).requested)[0]:
            self._stop(trainer)

    def after_step(self, trainer: Trainer, save: bool) -> None:
        """Write what is due. Between two optimizer steps: no gradient is under way, no batch half used.

        Args:
            trainer: the trainer.
            save: whether last.ckpt is to be written in any case.

        Raises:
            Interrupted: if the run was asked to stop.
        """
        due = time.monotonic() - self._saved > self.every_minutes * 60
        stop, due = any_rank(trainer, _interrupts(trainer).requested, due)
        if stop:
            self._stop(trainer)
        self.write_best(trainer)
        if (save or due) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer)

    def write_best(self, trainer: Trainer) -> None:
        """Write the best checkpoints that were decided on."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint):
                callback.write(trainer)

    def _apply_new_optimizer_settings(self, trainer: Trainer, before: list[list[State]]) -> None:
        """In a fork, changed settings win over the checkpoint's; the schedule stays where it is."""
        for optimizer, old_groups, new_groups in zip(trainer.optimizers, before, self._configured, strict=True):
            for group, old, new in zip(optimizer.param_groups, old_groups, new_groups, strict=True):
                changed = {name: value for name, value in new.items() if value != old.get(name)}
                if "initial_lr" in changed:  # of the peak; the schedule has brought the rate to a fraction of it
                    changed["lr"] = group["lr"] * new["initial_lr"] / group["initial_lr"]
                group.update(changed)
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]

    def _stop(self, trainer: Trainer) -> None:
        _interrupts(trainer).cancel_timeout()
        self.write_best(trainer)
        self._save(trainer)
        raise Interrupted

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        self._saved = time.monotonic()

    def _state(self, trainer: Trainer, module: LightningModule) -> tuple[State, State]:
        """What the run has, and what each of its processes has for itself."""
        connector: Any = trainer._logger_connector
        loop = trainer.fit_loop.epoch_loop
        csv = [logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)]
        of_run = {
            "validation_due": self.validation_due,
            "validation_progress": loop.val_loop.batch_progress.state_dict(),
            "should_stop": trainer.should_stop,
            "logged": {name: dict(getattr(connector, f"_{name}_metrics")) for name in LOGGED},
            "first_batch": connector._first_loop_iter,
            "logging_hook": connector._current_fx,
            "metrics_csv": csv[0].size() if csv else None,
        }
        of_process = {
            "random": random_state(),
            "epoch_began": self.epoch_began,
            "means": {key: mean_state(mean) for key, mean in loop._results.items() if not mean.has_reset},
            "metrics": {name: metric_state(metric) for name, metric in metrics_of(module)},
        }
        return of_run, of_process


def _settings(group: State) -> State:
    return {name: value for name, value in group.items() if name != "params"}


def _interrupts(trainer: Trainer) -> Interrupts:
    """The requests to stop, which the fit loop of `litlab.training.loops` holds."""
    loop: Any = trainer.fit_loop
    return loop.interrupts


def _config(run: Path) -> Any:
    """The settings that a run directory records; None if it has none, as in a notebook."""
    file = run / "config.yaml"
    return yaml.safe_load(file.read_text()) if file.exists() else None
