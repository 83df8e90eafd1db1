"""The checks of every property: an input is accepted or refused with one sentence, quickly and without side effects."""

import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings

from litlab.errors import BadInput

TIMEOUT = 10  # seconds; the slowest valid input takes a third of a second
LONGEST = 600  # maximum characters of a message; most of them are the path of a temporary folder
# audit events that must not occur while a file or a setting is read: starting programs, using the network
FORBIDDEN = (
    "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen",
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto",
)  # fmt: skip

# allowed: jsonargparse reads type stubs with typeshed_client, which asks another interpreter for their folders
HARMLESS = ["-c", "import sys, json; print(json.dumps(sys.path))"]

Result = TypeVar("Result")


@dataclass
class Tally:
    """The number of inputs by outcome."""

    accepted: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.crashes + self.hangs

    def __str__(self) -> str:
        return (
            f"fuzz: {self.inputs:,} inputs, {self.refused:,} refused with one sentence, {self.accepted:,} accepted, "
            f"{self.crashes:,} crashes, {self.hangs:,} hangs"
        )


TALLY = Tally()
_forbidden: list[str] | None = None  # observed events of FORBIDDEN; None while they are not recorded


def watch_forbidden_events() -> None:
    """Record and block forbidden audit events; a hook cannot be removed, but it ignores events outside `guarded`."""

    def hook(event: str, arguments: tuple) -> None:
        if _forbidden is None or not event.startswith(FORBIDDEN):
            return
        if event != "subprocess.Popen" or arguments[1][1:] != HARMLESS:
            _forbidden.append(f"{event} {arguments!r:.200}")
            raise PermissionError(event)

    sys.addaudithook(hook)


class Hang(BaseException):
    """The time limit is exceeded; a BaseException, because the code under test may catch an Exception."""


@contextmanager
def guarded() -> Iterator[list[str]]:
    """Record forbidden events, and interrupt the block after `TIMEOUT` seconds."""
    global _forbidden

    def interrupt(number: int, frame: Any) -> None:
        raise Hang

    seen = _forbidden = []
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _forbidden = None


def outcome(use: Callable[[], Result], room: Path, place: str = "") -> tuple[Result | None, str]:
    """Give one input to the code under test, and count the outcome.

    Args:
        use: the call under test.
        room: the folder of the input; the call must not change its list of files.
        place: text that a message must contain.

    Returns:
        The result of the call, or None; the message of its refusal, or an empty string.
    """
    before = sorted(room.rglob("*"))
    # call, and classify the outcome
    try:
        with guarded() as forbidden:
            result, sentence = use(), ""
        TALLY.accepted += 1
    except BadInput as error:
        result, sentence = None, str(error)
        problem = unlike_a_sentence(sentence, place)
        if problem:
            TALLY.crashes += 1
            pytest.fail(f"{problem}: {sentence!r}")
        TALLY.refused += 1
    except Hang:
        TALLY.hangs += 1
        pytest.fail(f"no answer within {TIMEOUT} seconds")
    except BaseException:
        TALLY.crashes += 1
        raise
    # check for side effects
    assert not forbidden, forbidden
    assert sorted(room.rglob("*")) == before, "files were created or deleted"
    return result, sentence


def unlike_a_sentence(text: str, place: str) -> str:
    """Why a text is not one sentence that names the place of the problem; empty if it is."""
    if len(text.splitlines()) != 1:
        return "not one line"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        return "control characters"
    if not text.endswith(".") or "Traceback" in text:
        return "not a sentence"
    if len(text) > LONGEST:
        return f"{len(text)} characters"
    return "" if place in text else f"does not contain {place!r}"


def examples(number: int) -> settings:
    """Hypothesis settings for `number` new random inputs; a failure is printed with the line that reproduces it."""
    return settings(
        max_examples=number,
        deadline=None,  # `outcome` interrupts a call that hangs; a deadline does not
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
