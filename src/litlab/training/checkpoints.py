"""best.ckpt and last.ckpt: written between two optimizer steps, with everything that a run needs to go on unchanged."""

import random
import time
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from pydantic import PositiveFloat
from torchmetrics import Metric

from litlab.training.interrupts import Interrupted, Interrupts
from litlab.training.loggers import MetricsCsv

State = dict[str, Any]

LOGGED = ("callback", "logged", "progress_bar")  # what Lightning remembers of it


def random_state() -> State:
    """The state of all global random number generators, as plain values and tensors."""
    version, numbers, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: State) -> None:
    """Make all global random number generators continue from `state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # another machine cannot be exact anyway
        torch.cuda.set_rng_state_all(state["cuda"])


def of_all_ranks(trainer: Trainer, value: Any) -> list[Any]:
    """What each process holds, by rank."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def of_rank(trainer: Trainer, values: list[Any]) -> Any:
    """What the process of this rank had; where the number of processes has grown, what another had."""
    return values[trainer.global_rank % len(values)]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose files are written between two optimizer steps.

    Lightning 2.6.6 writes them in the middle of things, before the step that they belong to is over: what is left of
    it would be missing when a run continues from such a file. Paths follow a run directory that was moved.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with nothing to write."""
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
        self.path = Path("last.ckpt")  # set by the command line, as are the next two
        self.interrupts = Interrupts()
        self.origin: State = {}  # what tells this run's checkpoints from another's
        self.validation_due = False  # whether the step at which the run continues is followed by a validation
        self.epoch_began: State = {}  # random states when the dataloader was asked for the epoch's iterator, and for its first batch
        self._at_validation: tuple[State, State] | None = None
        self._loaded: State | None = None
        self._configured: list[list[State]] = []  # the optimizers' settings
        self._saved = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the configuration says of the optimizers, before a checkpoint replaces it."""
        self._configured = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Add the state; in the middle of a validation that of its beginning."""
        run, mine = self._at_validation or self._state(trainer, pl_module)
        checkpoint["litlab"] = {
            **self.origin,
            **run,
            "optimizers": self._configured,
            "ranks": of_all_ranks(trainer, mine),
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
        for name, metric in _metrics(trainer.lightning_module):
            if name in mine["metrics"]:
                _set_states(metric, mine["metrics"][name])
        for key, mean in mine["means"].items():
            trainer.fit_loop.epoch_loop._results[key] = _unfinished_mean(trainer, mean)
        if state["run"] == self.origin["run"]:
            trainer.should_stop = state["should_stop"]
        else:
            self._configure_optimizers_anew(trainer, state["optimizers"])
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
        if self._at_validation and self._agreed(trainer, self.interrupts.requested)[0]:
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
        stop, due = self._agreed(trainer, self.interrupts.requested, due)
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

    def _configure_optimizers_anew(self, trainer: Trainer, before: list[list[State]]) -> None:
        """In a fork what was configured otherwise wins over the checkpoint; the schedule stays where it is."""
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
        self.interrupts.calm()
        self.write_best(trainer)
        self._save(trainer)
        raise Interrupted

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _agreed(self, trainer: Trainer, *wishes: bool) -> list[bool]:
        """What any process wants, so that all do it at the same step."""
        if trainer.world_size == 1:
            return list(wishes)
        wanted = torch.tensor(wishes, dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(wanted, torch.distributed.ReduceOp.MAX)
        return [bool(wish) for wish in wanted.tolist()]

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
            "metrics_csv": csv[0].length() if csv else None,
        }
        of_process = {
            "random": random_state(),
            "epoch_began": self.epoch_began,
            "means": {key: _mean_state(mean) for key, mean in loop._results.items() if not mean.has_reset},
            "metrics": {name: _states(metric) for name, metric in _metrics(module)},
        }
        return of_run, of_process


def _settings(group: State) -> State:
    return {name: value for name, value in group.items() if name != "params"}


def _metrics(module: LightningModule) -> list[tuple[str, Metric]]:
    """The metrics of a module that are under way; those of a finished validation are empty."""
    return [(name, child) for name, child in module.named_modules() if isinstance(child, Metric)]


def _states(metric: Metric) -> State:
    return {"states": dict(metric.metric_state), "count": metric._update_count}


def _set_states(metric: Metric, state: State) -> None:
    device = metric.device
    for name, value in state["states"].items():
        setattr(metric, name, [part.to(device) for part in value] if isinstance(value, list) else value.to(device))
    metric._update_count = state["count"]


def _mean_state(mean: _ResultMetric) -> State:
    """What Lightning has summed up of one name that is logged with `on_epoch=True`."""
    meta = mean.meta
    plain = {
        field.name: getattr(meta, field.name) for field in fields(meta) if field.name not in ("reduce_fx", "_sync")
    }
    sync = {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    return {
        "meta": {**plain, "reduce_fx": meta.reduce_fx.__name__},
        "sync": sync,
        "tensor": mean.is_tensor,
        **_states(mean),
    }


def _unfinished_mean(trainer: Trainer, state: State) -> _ResultMetric:
    """The same, to be continued."""
    meta = _Metadata(**state["meta"])
    meta.sync = _Sync(
        _should=state["sync"]["should"], fn=trainer.strategy.reduce, rank_zero_only=state["sync"]["rank_zero_only"]
    )
    mean = _ResultMetric(meta, state["tensor"]).to(trainer.strategy.root_device)
    _set_states(mean, state)
    if not state["tensor"]:
        mean.value = trainer.lightning_module.get_submodule(state["meta"]["metric_attribute"])
    return mean
