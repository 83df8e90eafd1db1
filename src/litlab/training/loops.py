"""Lightning's training loops, extended to resume exactly.

Lightning 2.6.6 does not resume exactly in these cases:

- It guesses from counters whether the last step was validated, and skips a validation that was due.
- It does not restore `should_stop`.
- If the checkpoint was written after the last step of an epoch, it skips the end of that epoch.
- It drops the state of a dataloader that was created before the checkpoint was loaded.
- If the dataloader has no state, it starts the epoch again.

Tests cover each case: the resumed run must be bit-identical to an uninterrupted run.
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
NO_PROFILING: AbstractContextManager[None] = nullcontext()


class FitLoop(_FitLoop):
    """The loop over epochs.

    Args:
        trainer: the trainer whose fit loop this one replaces.
        last_checkpoint: the callback that saves and restores the state.
        interrupts: turns SIGTERM and Ctrl-C into requests to stop, which are checked between two steps.
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
        """Whether training is finished. A resumed run completes its interrupted epoch first."""
        epoch: Any = self.epoch_progress.current
        return not (self.is_resuming and epoch.ready != epoch.processed) and super().done

    def run(self) -> None:
        """Train; a request to stop takes effect between two steps."""
        self.interrupts.deferred = True
        try:
            with shortcuts(self.trainer):
                super().run()
        finally:
            self.interrupts.deferred = False
        self.last_checkpoint.write_best(self.trainer)
        if self.interrupts.requested:
            self.interrupts.cancel_timeout()
            raise Interrupted

    def setup_data(self) -> None:
        """Keep the current random state, then create the dataloader and its iterator."""
        if self._combined_loader is None or self._should_reload_train_dl:
            self.last_checkpoint.epoch_began["iterator"] = random_state()
        super().setup_data()

    def reset(self) -> None:
        """Set the position at which training continues."""
        super().reset()
        epoch: Any = self.epoch_progress.current
        # between two epochs; if max_steps is set, Lightning treats this as the middle of an epoch
        if epoch.ready == epoch.processed:
            self._restarting = self.epoch_loop.restarting = False

    def on_run_start(self) -> None:
        """Restore the state that Lightning does not restore, immediately before training."""
        super().on_run_start()
        self._load_combined_loader_states()
        self.last_checkpoint.restore(self.trainer)

    def advance(self) -> None:
        """Train for an epoch; the end of a resumed epoch is not skipped."""
        self._restarting = False
        super().advance()

    def on_advance_end(self) -> None:
        """End an epoch, and write the checkpoints that its hooks requested before the next epoch starts."""
        super().on_advance_end()
        self.last_checkpoint.write_best(self.trainer)


class EpochLoop(_TrainingEpochLoop):
    """The loop over the batches of an epoch. After an optimizer step, it validates, saves or stops if that is due."""

    def __init__(
        self, trainer: Trainer, last_checkpoint: LastCheckpoint, min_steps: int | None, max_steps: int
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.last_checkpoint = last_checkpoint
        self._validation_pending = False  # whether to validate after the current optimizer step
        self._takes_batch_idx: bool | None = None  # whether the training step has this argument
        self.batch_requested = 0.0  # time of the last batch request in seconds, for Throughput
        self.val_loop: ValidationLoop = ValidationLoop(trainer, last_checkpoint)

    @property
    def done(self) -> bool:
        """Whether the epoch is finished; never before a validation that is due or between accumulated micro-batches."""
        if self.last_checkpoint.validation_due or (self.trainer.should_stop and self._should_accumulate()):
            return False
        return super().done

    @property
    def _is_validation_done(self) -> bool:
        return True  # `done` waits for a validation that is due

    def run(self, data_fetcher: _DataFetcher) -> None:
        """Train for an epoch or, after a resume, for its remaining steps, if any."""
        super().run(data_fetcher)
        self.on_iteration_done()  # if no step remained, Lightning would treat the next epoch as resumed

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Move the dataloader to the position in the epoch at which training continues."""
        if self.restarting and self.batch_progress.current.ready:
            if not all(hasattr(loader, "load_state_dict") for loader in data_fetcher.combined_loader.flattened):
                self._replay(data_fetcher)
        elif self.trainer.current_epoch > 0:
            self.last_checkpoint.epoch_began["iterator"] = random_state()
            if self.trainer.fit_loop.is_resuming:
                iter(data_fetcher)  # replaces the iterator that Lightning created before the random state was restored
        super().on_run_start(data_fetcher)
        if not self.restarting:
            self.last_checkpoint.epoch_began["first_batch"] = random_state()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch, unless the run continues with a validation."""
        self.restarting = False
        if not self.last_checkpoint.validation_due:
            self.batch_requested = time.perf_counter()
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate if that is due, then write the checkpoints that are due."""
        self.val_loop.has_run = False
        super().on_advance_end(data_fetcher)
        if not self._should_accumulate():
            self.last_checkpoint.after_step(self.trainer, self.val_loop.has_run or self._is_training_done)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if self.last_checkpoint.validation_due:
            self.last_checkpoint.validation_due = False
            return True
        self._validation_pending = self._validation_pending or super()._should_check_val_fx(data_fetcher)
        if self._should_accumulate():  # validate after the optimizer step
            return False
        pending, self._validation_pending = self._validation_pending, False
        return pending

    def _build_kwargs(self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        """Return the arguments of the training step; read its signature once, not at every step as Lightning does."""
        if self._takes_batch_idx is None:
            step = self.trainer.lightning_module.training_step
            self._takes_batch_idx = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        kwargs["batch"] = batch
        if self._takes_batch_idx:
            kwargs["batch_idx"] = batch_idx
        return kwargs

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: LastCheckpoint shares requests to stop across ranks, once per optimizer step."""

    def _replay(self, data_fetcher: _DataFetcher) -> None:
        """Skip the batches of this epoch that were already used, for a dataloader that has no state."""
        # 1. create the iterator with the random states that it had at the start of the epoch
        current = random_state()
        set_random_state(self.last_checkpoint.epoch_began["iterator"])
        iter(data_fetcher)
        set_random_state(self.last_checkpoint.epoch_began["first_batch"])

        # 2. read and drop these batches, then restore the current random state
        count = self.batch_progress.current.ready
        for _ in tqdm(range(count), "skipping batches", unit="batch", delay=2, leave=False):
            next(data_fetcher)
        data_fetcher.fetched = 0  # Lightning adds the count in on_run_start
        set_random_state(current)


class ValidationLoop(_EvaluationLoop):
    """The loop over validation batches during training."""

    def __init__(self, trainer: Trainer, last_checkpoint: LastCheckpoint) -> None:
        super().__init__(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False)
        self.last_checkpoint = last_checkpoint
        self.has_run = False

    def run(self) -> list[Any]:
        """Validate. If this is interrupted, the resumed run repeats the validation from its start."""
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
    """Skip Lightning's calls that have no effect in this training; for a small model, they take longer than the step.

    Within the context, step hooks that are not overridden are None, which Lightning does not call. The default profiler
    returns one shared empty context. Batches are not transferred to the CPU.
    """
    # step hooks that are not overridden
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    callbacks, profiler = trainer.callbacks, trainer.profiler  # type: ignore[attr-defined]
    owners: list[tuple[Any, type]] = [(callback, Callback) for callback in callbacks]
    replaced: list[tuple[Any, str, Any]] = [
        (owner, hook, None)
        for owner, base in [*owners, (module, LightningModule)]
        for hook in STEP_HOOKS
        if hook not in vars(owner) and getattr(type(owner), hook) is getattr(base, hook)
    ]

    # profiling and batch transfer
    if type(profiler) is PassThroughProfiler:
        replaced.append((profiler, "profile", lambda action_name: NO_PROFILING))
    transfers = any(
        is_overridden(hook, owner) for hook in TRANSFER_HOOKS for owner in (module, data) if owner is not None
    )
    if trainer.strategy.root_device.type == "cpu" and not transfers:
        replaced.append((trainer.strategy, "batch_to_device", lambda batch, *args, **kwargs: batch))

    # set on the objects, not on their classes, and removed after the training
    for owner, name, value in replaced:
        vars(owner)[name] = value
    try:
        yield
    finally:
        for owner, name, _ in replaced:
            vars(owner).pop(name, None)
