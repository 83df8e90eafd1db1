"""Lightning's training loops, made to continue exactly where they were.

What Lightning 2.6.6 does otherwise: it guesses from counters whether the step at which a run continues was followed by a
validation, and skips one that was due; it does not restore `should_stop`, and skips the end of an epoch
if the last step was done; it drops the state of a dataloader that was made before the checkpoint was read, and begins the
epoch again with a dataloader that has no state. A test resumes from each of these points and compares every bit.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from tqdm import tqdm

from litlab.training.checkpoints import LastCheckpoint
from litlab.training.interrupts import Interrupted, Interrupts
from litlab.training.state import random_state, set_random_state

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


TRANSFER_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")
NOTHING: AbstractContextManager[None] = nullcontext()


class FitLoop(_FitLoop):
    """The epochs.

    Args:
        trainer: its own loop is replaced by this one.
        last_checkpoint: saves and restores.
        interrupts: requests to stop, answered between two steps.
    """

    def __init__(self, trainer: Trainer, last_checkpoint: LastCheckpoint, interrupts: Interrupts) -> None:
        replaced = trainer.fit_loop
        super().__init__(trainer, replaced.min_epochs, replaced.max_epochs)
        self.last_checkpoint = last_checkpoint
        self.interrupts = interrupts
        self.epoch_loop = EpochLoop(
            trainer, last_checkpoint, replaced.epoch_loop.min_steps, replaced.epoch_loop.max_steps
        )

    @property
    def done(self) -> bool:
        """Whether the training is over; not before the end of the epoch in which it continues."""
        epoch: Any = self.epoch_progress.current
        return not (self.is_resuming and epoch.ready != epoch.processed) and super().done

    def run(self) -> None:
        """Train; a request to stop is answered between two steps."""
        self.interrupts.patient = True
        try:
            with shortcuts(self.trainer):
                super().run()
        finally:
            self.interrupts.patient = False
        self.last_checkpoint.write_best(self.trainer)
        if self.interrupts.requested:
            self.interrupts.cancel_timeout()
            raise Interrupted

    def setup_data(self) -> None:
        """Make the dataloader, and remember the random state before it is asked for its iterator."""
        if self._combined_loader is None or self._should_reload_train_dl:
            self.last_checkpoint.epoch_began["iterator"] = random_state()
        super().setup_data()

    def reset(self) -> None:
        """Find out where to continue."""
        super().reset()
        epoch: Any = self.epoch_progress.current
        if (
            epoch.ready == epoch.processed
        ):  # between two epochs; Lightning takes it for the middle of one if max_steps is set
            self._restarting = self.epoch_loop.restarting = False

    def on_run_start(self) -> None:
        """Restore what Lightning does not, last of all."""
        super().on_run_start()
        self._load_combined_loader_states()
        self.last_checkpoint.restore(self.trainer)

    def advance(self) -> None:
        """Train for an epoch, whose end is like that of any other."""
        self._restarting = False
        super().advance()

    def on_advance_end(self) -> None:
        """End an epoch; checkpoints that its hooks asked for are written before the next one begins."""
        super().on_advance_end()
        self.last_checkpoint.write_best(self.trainer)


class EpochLoop(_TrainingEpochLoop):
    """The steps of an epoch, each followed by what is due: a validation, a checkpoint, a stop."""

    def __init__(
        self, trainer: Trainer, last_checkpoint: LastCheckpoint, min_steps: int | None, max_steps: int
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.last_checkpoint = last_checkpoint
        self._validation_wanted = False
        self._takes_index: bool | None = None  # whether the training step takes the number of the batch
        self.asked = 0.0  # when the last batch was asked for, for Throughput
        self.val_loop: ValidationLoop = ValidationLoop(trainer, last_checkpoint)

    @property
    def done(self) -> bool:
        """Whether the epoch is over; not before a validation that is due, and not within an optimizer step."""
        if self.last_checkpoint.validation_due or (self.trainer.should_stop and self._should_accumulate()):
            return False
        return super().done

    @property
    def _is_validation_done(self) -> bool:
        return True

    def run(self, data_fetcher: _DataFetcher) -> None:
        """Train for an epoch, or for what is left of it, which may be nothing."""
        super().run(data_fetcher)
        self.on_iteration_done()  # the next epoch does not continue this one

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Bring the dataloader to where it was."""
        if self.restarting and self.batch_progress.current.ready:
            if not all(hasattr(loader, "load_state_dict") for loader in data_fetcher.combined_loader.flattened):
                self._replay(data_fetcher)
        elif self.trainer.current_epoch > 0:
            self.last_checkpoint.epoch_began["iterator"] = random_state()
            if (
                self.trainer.fit_loop.is_resuming
            ):  # Lightning keeps the one that it made before the random state was restored
                iter(data_fetcher)
        super().on_run_start(data_fetcher)
        if not self.restarting:
            self.last_checkpoint.epoch_began["first_batch"] = random_state()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch, unless the run continues with a validation."""
        self.restarting = False
        if not self.last_checkpoint.validation_due:
            self.asked = time.perf_counter()
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate if it is time, then save what is due."""
        self.val_loop.has_run = False
        super().on_advance_end(data_fetcher)
        if not self._should_accumulate():
            self.last_checkpoint.after_step(self.trainer, self.val_loop.has_run or self._is_training_done)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if self.last_checkpoint.validation_due:
            self.last_checkpoint.validation_due = False
            return True
        self._validation_wanted = self._validation_wanted or super()._should_check_val_fx(data_fetcher)
        if self._should_accumulate():  # then after the optimizer step
            return False
        wanted, self._validation_wanted = self._validation_wanted, False
        return wanted

    def _build_kwargs(self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        """The arguments of the training step, whose signature Lightning reads again at every step."""
        if self._takes_index is None:
            step = self.trainer.lightning_module.training_step
            self._takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        kwargs["batch"] = batch
        if self._takes_index:
            kwargs["batch_idx"] = batch_idx
        return kwargs

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: LastCheckpoint asks all ranks, once per optimizer step and not per batch."""

    def _replay(self, data_fetcher: _DataFetcher) -> None:
        """Ask a dataloader that knows no position for the batches that were trained on already."""
        after = random_state()
        set_random_state(self.last_checkpoint.epoch_began["iterator"])
        iter(data_fetcher)
        set_random_state(self.last_checkpoint.epoch_began["first_batch"])
        taken = self.batch_progress.current.ready
        for _ in tqdm(range(taken), "batches seen", unit="batch", delay=2, leave=False):
            next(data_fetcher)
        data_fetcher.fetched = 0  # Lightning adds them
        set_random_state(after)


class ValidationLoop(_EvaluationLoop):
    """The validation inside a training."""

    def __init__(self, trainer: Trainer, last_checkpoint: LastCheckpoint) -> None:
        super().__init__(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False)
        self.last_checkpoint = last_checkpoint
        self.has_run = False

    def run(self) -> list[Any]:
        """Validate."""
        if self.trainer.sanity_checking:
            return super().run()
        self.last_checkpoint.before_validation(self.trainer)
        try:
            return super().run()
        finally:
            self.last_checkpoint.after_validation()
            self.has_run = True


@contextmanager
def shortcuts(trainer: Trainer) -> Iterator[None]:
    """Spare Lightning, for this training, what has no effect in it: for a small model, that takes longer than its step.

    Hooks of a step that are not overridden are None, which Lightning does not call; a profiler that does nothing returns
    at once; and batches for the CPU are not sent there.
    """
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    callbacks, profiler = trainer.callbacks, trainer.profiler  # type: ignore[attr-defined]
    owners: list[tuple[Any, type]] = [(callback, Callback) for callback in callbacks]
    replaced: list[tuple[Any, str, Any]] = [
        (owner, hook, None)
        for owner, base in [*owners, (module, LightningModule)]
        for hook in STEP_HOOKS
        if hook not in vars(owner) and getattr(type(owner), hook) is getattr(base, hook)
    ]
    if type(profiler) is PassThroughProfiler:
        replaced.append((profiler, "profile", lambda action_name: NOTHING))
    says = any(is_overridden(hook, owner) for hook in TRANSFER_HOOKS for owner in (module, data) if owner is not None)
    if trainer.strategy.root_device.type == "cpu" and not says:
        replaced.append((trainer.strategy, "batch_to_device", lambda batch, *args, **kwargs: batch))
    for owner, name, value in replaced:
        vars(owner)[name] = value
    try:
        yield
    finally:
        for owner, name, _ in replaced:
            vars(owner).pop(name, None)
