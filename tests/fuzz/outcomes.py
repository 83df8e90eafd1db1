"""What every property asks: an input is used, or refused with one sentence, soon, and nothing else happens."""

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

PATIENCE = 10  # seconds; the slowest honest input takes a third of one
LONGEST = 600  # characters of a sentence, most of which are the path of a temporary folder
# what reading a file or a setting has no business doing: starting programs and talking to the network
FORBIDDEN = (
    "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen",
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto",
)  # fmt: skip

# jsonargparse reads stubs with typeshed_client, which asks another interpreter where they can lie
HARMLESS = ["-c", "import sys, json; print(json.dumps(sys.path))"]

Result = TypeVar("Result")


@dataclass
class Tally:
    """How many inputs came to which end."""

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
_forbidden: list[str] | None = None  # what was seen of FORBIDDEN; None while nobody watches


def watch_for_forbidden_deeds() -> None:
    """Let the interpreter report what an input makes it do; a hook cannot be taken off again, but it can look away."""

    def hook(event: str, arguments: tuple) -> None:
        if _forbidden is None or not event.startswith(FORBIDDEN):
            return
        if event != "subprocess.Popen" or arguments[1][1:] != HARMLESS:
            _forbidden.append(f"{event} {arguments!r:.200}")
            raise PermissionError(event)

    sys.addaudithook(hook)


class Hang(BaseException):
    """Time is up; not an Exception, which the code under test may catch."""


@contextmanager
def guarded() -> Iterator[list[str]]:
    """Watch, and interrupt after `PATIENCE` seconds."""
    global _forbidden

    def interrupt(number: int, frame: Any) -> None:
        raise Hang

    seen = _forbidden = []
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _forbidden = None


def outcome(use: Callable[[], Result], room: Path, place: str = "") -> tuple[Result | None, str]:
    """Give one input to the code under test, and count what became of it.

    Args:
        use: the call.
        room: the folder of the input; the call must leave it as it was.
        place: what a refusal must name.

    Returns:
        What the call returned, and the sentence with which it refused, which is empty if it did not.
    """
    before = sorted(room.rglob("*"))
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
        pytest.fail(f"no answer within {PATIENCE} seconds")
    except BaseException:
        TALLY.crashes += 1
        raise
    assert not forbidden, forbidden
    assert sorted(room.rglob("*")) == before, "something was left behind"
    return result, sentence


def unlike_a_sentence(text: str, place: str) -> str:
    """Why a person would not take a text for one sentence that says where to look; empty if it is one."""
    if len(text.splitlines()) != 1:
        return "not one line"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        return "control characters"
    if not text.endswith(".") or "Traceback" in text:
        return "no sentence"
    if len(text) > LONGEST:
        return f"{len(text)} characters"
    return "" if place in text else f"no word of {place!r}"


def examples(number: int) -> settings:
    """That many random inputs, new ones each time; what fails is printed with the line that repeats it."""
    return settings(
        max_examples=number,
        deadline=None,  # `outcome` interrupts what hangs, which this would not
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
