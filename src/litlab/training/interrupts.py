"""Handles SIGTERM and Ctrl-C: the training stops between two steps, so that no work is lost."""

import contextlib
import math
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 75  # exit status: EX_TEMPFAIL of sysexits.h, try again
SIGNALS = (signal.SIGTERM, signal.SIGINT)
STEP_TIMEOUT = 10  # seconds for the current step; clusters send SIGKILL 30 seconds after SIGTERM
DUPLICATE_WINDOW = 2  # seconds in which a repeated signal is ignored; make, for example, forwards Ctrl-C


class Interrupted(SystemExit):
    """Raised after a training that was asked to stop has saved its state."""


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a request to stop while `deferred` is set, and into KeyboardInterrupt otherwise.

    Code that sets `deferred` checks `requested` often, saves, and raises `Interrupted`. A second signal, or a step that
    takes longer than 10 seconds, raises KeyboardInterrupt without saving: the run continues from its last checkpoint.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False
        self._received = -math.inf  # time of the last signal, in seconds
        self._original: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._original[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel_timeout()
        for number, handler in self._original.items():
            signal.signal(number, handler)

    def cancel_timeout(self) -> None:
        """Cancel the timer that raises KeyboardInterrupt if the current step takes too long."""
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: request to stop, or raise KeyboardInterrupt."""
        now, before = time.monotonic(), self._received
        self._received = now
        if now - before < DUPLICATE_WINDOW:
            return
        if self.requested or not self.deferred:
            raise KeyboardInterrupt
        self.requested = True
        self._original.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._end_step))
        signal.setitimer(signal.ITIMER_REAL, STEP_TIMEOUT)
        with contextlib.suppress(OSError, RuntimeError):  # stderr may be closed, or in use by the interrupted code
            print(
                f"\n{signal.Signals(number).name}: stopping after this step; send it again to stop at once",
                file=sys.stderr,
            )

    def _end_step(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
