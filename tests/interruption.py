"""Interrupts trainings after any hook that Lightning calls, continues them, and compares them with one that ran through."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from exactness import differing
from in_process import fit, newest
from lightning.pytorch.trainer import call

from litlab.cli.main import run
from litlab.runs.directory import RunDirectory

INTERRUPTED = 75  # exit status
EVERY_STEP = "--last_checkpoint.every_minutes=1e-9"
HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
)


class Killed(BaseException):
    """Ends a training as SIGKILL does, as far as its files are concerned: nothing more is saved."""


def kill() -> None:
    """End the training at once."""
    raise Killed


def terminate() -> None:
    """Ask the training to stop, as a cluster does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Interrupter:
    """Records every hook that Lightning calls on callbacks, and interrupts after one of them.

    Args:
        monkeypatch: takes the recorder off again when the test is over.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._due: Callable[[], bool] = lambda: False
        self._interrupt: Callable[[], Any] = kill
        original = call._call_callback_hooks

        def record(trainer: Any, hook: str, *arguments: Any, **named: Any) -> None:
            original(trainer, hook, *arguments, **named)
            self.calls.append(hook)
            if self._due():
                self._interrupt()

        monkeypatch.setattr(call, "_call_callback_hooks", record)

    def after_call(self, position: int, interrupt: Callable[[], Any]) -> None:
        """Interrupt the next training after a call.

        Args:
            position: number of the call, as in `calls`.
            interrupt: `kill`, `terminate` or anything else.
        """
        self.calls, self._interrupt = [], interrupt
        self._due = lambda: len(self.calls) - 1 == position

    def after_steps(self, number: int, interrupt: Callable[[], Any]) -> None:
        """Interrupt the next training after a number of batches, counted from 1."""
        self.calls, self._interrupt = [], interrupt
        self._due = lambda: self.calls[-1] == "on_train_batch_end" and self.calls.count("on_train_batch_end") == number

    def never(self) -> None:
        """Let the next training run through; afterwards `calls` has all hooks in their order."""
        self.calls, self._due = [], lambda: False


def fit_interrupted(*arguments: str) -> RunDirectory:
    """Train until `kill` or `terminate` ends the training."""
    with pytest.raises((Killed, SystemExit)) as end:
        run("fit", [*arguments])
    assert isinstance(end.value, Killed) or end.value.code == INTERRUPTED
    return newest()


def positions(calls: list[str], hooks: tuple[str, ...]) -> list[int]:
    """A position in a list of calls for each of some hooks: of the first hook its first call, of the last hook its last."""
    found = []
    for number, hook in enumerate(hooks):
        places = [place for place, called in enumerate(calls) if called == hook]
        found.append(places[round((len(places) - 1) * number / max(1, len(hooks) - 1))])
    return found


def assert_continues_bit_for_bit(interrupter: Interrupter, arguments: tuple[str, ...], hooks: tuple[str, ...]) -> None:
    """Train once, then twice for each of some hooks, with an interruption after it, and compare what the runs left.

    Args:
        interrupter: of this test.
        arguments: of the command fit.
        hooks: after which to interrupt.
    """
    interrupter.never()
    whole = fit(*arguments)
    calls = interrupter.calls
    for interrupt, status in ((kill, "failed"), (terminate, "interrupted")):
        for position in positions(calls, hooks):
            interrupter.after_call(position, interrupt)
            part = fit_interrupted(*arguments)
            assert part.path != whole.path and part.record()["status"] == status
            interrupter.never()
            assert fit("--resume=latest").path == part.path
            assert not differing(whole.path, part.path), (calls[position], position, interrupt.__name__)
