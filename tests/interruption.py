"""Interrupt trainings after any Lightning hook, resume them, and compare them with an uninterrupted training."""

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
    """Ends a training without saving anything more, as SIGKILL would."""


def kill() -> None:
    """End the training at once."""
    raise Killed


def terminate() -> None:
    """Send SIGTERM to this process, as a cluster does."""
    os.kill(os.getpid(), signal.SIGTERM)


ENDS = ((kill, "failed"), (terminate, "interrupted"))  # each with the status of the run
INTERRUPTIONS = pytest.mark.parametrize(
    "both", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["by turns", "both signals"]
)


class Interrupter:
    """Records every hook that Lightning calls on callbacks, and interrupts the training after one of them.

    Args:
        monkeypatch: pytest's fixture, which removes the recorder after the test.
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
        """Interrupt the next training after a hook call.

        Args:
            position: index of the call in `calls`.
            interrupt: `kill`, `terminate` or another function.
        """
        self.calls, self._interrupt = [], interrupt
        self._due = lambda: len(self.calls) - 1 == position

    def after_steps(self, number: int, interrupt: Callable[[], Any]) -> None:
        """Interrupt the next training after a number of batches, counted from 1."""
        self.calls, self._interrupt = [], interrupt
        self._due = lambda: self.calls[-1] == "on_train_batch_end" and self.calls.count("on_train_batch_end") == number

    def never(self) -> None:
        """Do not interrupt the next training; afterwards `calls` lists all hooks in order."""
        self.calls, self._due = [], lambda: False


def fit_interrupted(*arguments: str) -> RunDirectory:
    """Train until `kill` or `terminate` ends the training."""
    with pytest.raises((Killed, SystemExit)) as end:
        run("fit", [*arguments])
    assert isinstance(end.value, Killed) or end.value.code == INTERRUPTED
    return newest()


def positions(calls: list[str], hooks: tuple[str, ...]) -> list[int]:
    """One position in `calls` per hook: the first call of the first hook, ..., the last call of the last hook."""
    found = []
    for number, hook in enumerate(hooks):
        indices = [index for index, called in enumerate(calls) if called == hook]
        found.append(indices[round((len(indices) - 1) * number / max(1, len(hooks) - 1))])
    return found


def assert_continues_bit_for_bit(
    interrupter: Interrupter, arguments: tuple[str, ...], hooks: tuple[str, ...], both: bool = False
) -> None:
    """Compare interrupted and resumed runs with an uninterrupted run, with an interruption after each hook.

    Args:
        interrupter: the interrupter of the test.
        arguments: arguments of the command fit.
        hooks: hooks after which to interrupt.
        both: interrupt by SIGKILL and by SIGTERM after each hook; otherwise by turns.
    """
    interrupter.never()
    whole = fit(*arguments)
    calls = interrupter.calls
    for number, position in enumerate(positions(calls, hooks)):
        for interrupt, status in ENDS if both else [ENDS[number % 2]]:
            interrupter.after_call(position, interrupt)
            part = fit_interrupted(*arguments)
            assert part.path != whole.path and part.record()["status"] == status
            interrupter.never()
            assert fit("--resume=latest").path == part.path
            assert not differing(whole.path, part.path), (calls[position], position, interrupt.__name__)
