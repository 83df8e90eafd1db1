"""Callbacks that write best.ckpt and last.ckpt between two optimizer steps, with all state for an exact resume."""

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

LOGGED = ("callback", "logged", "progress_bar")  # groups of logged metrics in Lightning's logger connector


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that writes best.ckpt between two optimizer steps.

    Lightning 2.6.6 writes them before the step ends, so a run that continues from such a file misses the rest of the
    step. If the run directory was moved, `load_state_dict` updates the paths in the state.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder of the checkpoints, and start with no pending files."""
        self.dirpath = os.path.join(trainer.default_root_dir, "checkpoints")
        super().setup(trainer, pl_module, stage)
        self._pending: list[str] = []
        self._superseded: list[str] = []

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint. Unlike Lightning's, it does not depend on the save interval."""
        return f"BestCheckpoint({self.monitor}, {self.mode})"

    def load_state_dict(self, state_dict: State) -> None:
        """Restore the list of best files; if the run directory was moved, update their paths."""
        before, here = state_dict["dirpath"], str(self.dirpath)

        def moved(path: str) -> str:
            return here + path.removeprefix(before) if before and path.startswith(before) else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths: State = {name: moved(state_dict[name]) for name in names}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        self.current_score = state_dict["current_score"]
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})

    def write(self, trainer: Trainer) -> None:
        """Write the pending checkpoints and remove those that they replace."""
        for path in dict.fromkeys(self._pending):
            trainer.save_checkpoint(path, self.save_weights_only)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)
        for path in self._superseded:
            super()._remove_checkpoint(trainer, path)
        self._pending, self._superseded = [], []

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Mark the file as pending; ModelCheckpoint would write it here, in the middle of a step."""
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        self._pending.append(filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Mark the file for removal by `write`."""
        self._superseded.append(filepath)


class LastCheckpoint(Callback):
    """Writes last.ckpt after each validation, every few minutes, and when the run is asked to stop.

    It adds state that Lightning 2.6.6 does not save: random number generators, progress of a validation, logged
    metrics, unfinished means of the epoch, and the length of metrics.csv. `litlab.training.loops` calls it after each
    optimizer step.

    Args:
        every_minutes: minutes between two writes, and so the most training time that is lost if the process is killed.
            SIGTERM and Ctrl-C lose none.
    """

    def __init__(self, every_minutes: PositiveFloat = 5) -> None:
        self.every_minutes = every_minutes
        self._origin: State = {}  # name and configuration of this run, which identify its checkpoints
        self.validation_due = False  # whether a validation follows the step at which the run continues
        self.epoch_began: State = {}  # random states before the epoch's iterator and its first batch were created
        self._at_validation: tuple[State, State] | None = None  # state from before the current validation
        self._loaded: State | None = None  # state from a checkpoint, before `restore`
        self._configured: list[list[State]] = []  # settings of each parameter group of each optimizer
        self._saved = time.monotonic()  # time of the last write, in seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read name and configuration of the run on rank 0 and share them with all ranks."""
        if stage == "fit":
            run = Path(trainer.default_root_dir)
            origin = {"run": run.name, "config": _config(run)} if trainer.is_global_zero else {}
            self._origin = trainer.strategy.broadcast(origin)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the configured optimizer settings; loading a checkpoint replaces those in the optimizers."""
        self._configured = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Add the state to the checkpoint; during a validation, the state from before the validation."""
        run_state, rank_state = self._at_validation or self._state(trainer, pl_module)
        checkpoint["litlab"] = {
            **self._origin,
            **run_state,
            "optimizers": self._configured,
            "ranks": gather(trainer, rank_state),
        }
        checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = run_state["validation_progress"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Keep the loaded state until `restore`, because code that runs in between may draw random numbers."""
        if trainer.state.fn == "fit":
            self._loaded = checkpoint["litlab"]

    def restore(self, trainer: Trainer) -> None:
        """Restore the loaded state immediately before training continues."""
        self._saved = time.monotonic()
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        rank_state = of_rank(trainer, state["ranks"])

        # 1. position in the epoch
        self.validation_due = state["validation_due"]
        self.epoch_began = rank_state["epoch_began"]

        # 2. logged metrics, metrics of the module and unfinished means
        connector: Any = trainer._logger_connector
        for name in LOGGED:
            getattr(connector, f"_{name}_metrics").update(state["logged"][name])
        connector._first_loop_iter, connector._current_fx = state["first_batch"], state["logging_hook"]
        for name, metric in metrics_of(trainer.lightning_module):
            if name in rank_state["metrics"]:
                set_metric_state(metric, rank_state["metrics"][name])
        for key, mean in rank_state["means"].items():
            trainer.fit_loop.epoch_loop._results[key] = unfinished_mean(trainer, mean)

        # 3. a resumed run restores should_stop; a fork applies its own optimizer settings
        if state["run"] == self._origin["run"]:
            trainer.should_stop = state["should_stop"]
        else:
            self._apply_new_optimizer_settings(trainer, state["optimizers"])

        # 4. random states, last: the steps above may draw random numbers
        set_random_state(rank_state["random"])

    def before_validation(self, trainer: Trainer) -> None:
        """Keep the state from before a validation, because a resumed run repeats an interrupted validation."""
        self.validation_due = True
        self._at_validation = deepcopy(self._state(trainer, trainer.lightning_module))
        self.validation_due = False

    def after_validation(self) -> None:
        """Discard the state that `before_validation` kept."""
        self._at_validation = None

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Stop in the middle of a validation if the run was asked to stop."""
        if self._at_validation and any_rank(trainer, _interrupts(trainer).requested)[0]:
            self._stop(trainer)

    def after_step(self, trainer: Trainer, save: bool) -> None:
        """Write the checkpoints that are due, between two optimizer steps, when no gradients are accumulated.

        Args:
            trainer: the trainer.
            save: whether to write last.ckpt before `every_minutes` have passed.

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
        """Write the pending best checkpoints."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint):
                callback.write(trainer)

    def _apply_new_optimizer_settings(self, trainer: Trainer, before: list[list[State]]) -> None:
        """Apply the optimizer settings that a fork has changed; the schedule keeps its position.

        Args:
            trainer: the trainer with the restored optimizers.
            before: configured settings of the other run, for each parameter group of each optimizer.
        """
        for optimizer, old_groups, new_groups in zip(trainer.optimizers, before, self._configured, strict=True):
            for group, old, new in zip(optimizer.param_groups, old_groups, new_groups, strict=True):
                changed = {name: value for name, value in new.items() if value != old.get(name)}
                # with a new peak learning rate, the current rate stays the same fraction of the peak
                if "initial_lr" in changed:
                    changed["lr"] = group["lr"] * new["initial_lr"] / group["initial_lr"]
                group.update(changed)
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]

    def _stop(self, trainer: Trainer) -> None:
        """Write the pending best checkpoints and last.ckpt, and raise `Interrupted`."""
        _interrupts(trainer).cancel_timeout()
        self.write_best(trainer)
        self._save(trainer)
        raise Interrupted

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        self._saved = time.monotonic()

    def _state(self, trainer: Trainer, module: LightningModule) -> tuple[State, State]:
        """Return the state of the run, and the state of this rank."""
        connector: Any = trainer._logger_connector
        loop = trainer.fit_loop.epoch_loop
        csv = [logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)]
        run_state = {
            "validation_due": self.validation_due,
            "validation_progress": loop.val_loop.batch_progress.state_dict(),
            "should_stop": trainer.should_stop,
            "logged": {name: dict(getattr(connector, f"_{name}_metrics")) for name in LOGGED},
            "first_batch": connector._first_loop_iter,
            "logging_hook": connector._current_fx,
            "metrics_csv": csv[0].size() if csv else None,
        }
        rank_state = {
            "random": random_state(),
            "epoch_began": self.epoch_began,
            "means": {key: mean_state(mean) for key, mean in loop._results.items() if not mean.has_reset},
            "metrics": {name: metric_state(metric) for name, metric in metrics_of(module)},
        }
        return run_state, rank_state


def _settings(group: State) -> State:
    return {name: value for name, value in group.items() if name != "params"}


def _interrupts(trainer: Trainer) -> Interrupts:
    """Return the `Interrupts` of the fit loop, which must be the one of `litlab.training.loops`."""
    loop: Any = trainer.fit_loop
    return loop.interrupts


def _config(run: Path) -> Any:
    """Return the configuration in a run directory; None if config.yaml is missing, as in a notebook."""
    file = run / "config.yaml"
    return yaml.safe_load(file.read_text()) if file.exists() else None
