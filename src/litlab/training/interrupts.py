"""SIGTERM and Ctrl-C, answered where nothing is lost."""

import contextlib
import math
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 75  # exit status; EX_TEMPFAIL of sysexits.h: try again
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE_SECONDS = 10  # for the step that is under way; a cluster kills 30 seconds after it has asked
ECHO_SECONDS = 2  # make and the like pass a signal on that litlab has had already


class Interrupted(SystemExit):
    """A training that was asked to stop has saved its state and stops."""


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a request while `patient`, and into KeyboardInterrupt otherwise.

    Whoever is patient looks at `requested` often, saves, and raises `Interrupted`. A second signal does not wait for
    that, and neither does a step that takes longer than 10 seconds: then the last checkpoint is what remains.
    """

    def __init__(self) -> None:
        self.requested = False
        self.patient = False
        self._received = -math.inf  # when
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
        """Stop the timer that ends a step that takes too long: the request is being answered."""
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), self._received
        self._received = now
        if now - before < ECHO_SECONDS:
            return
        if self.requested or not self.patient:
            raise KeyboardInterrupt
        self.requested = True
        self._original.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._end_step))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        with contextlib.suppress(OSError, RuntimeError):  # whoever reads it may have got the signal too
            print(
                f"\n{signal.Signals(number).name}: stopping after this step; once more stops at once", file=sys.stderr
            )

    def _end_step(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
