"""Errors whose message is one sentence for the user, and what makes a sentence of other errors."""

import difflib
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNREADABLE = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, terminal codes, surrogates
LONGEST = 500  # characters of a sentence


class BadInput(Exception):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


class StoppedByGuard(Exception):
    """A training that would waste time or give wrong numbers was stopped. The message is one sentence, as above.

    The command line prints it and exits with status 3.
    """


@contextmanager
def explain_full_disk(folder: Path, doing: str, setting: str) -> Iterator[None]:
    """Turn "no space left" while writing below `folder` into a `BadInput` that says what to free.

    Args:
        folder: where the bytes were to go.
        doing: what was being done, as in "while caching data".
        setting: the environment variable that moves the folder.

    Raises:
        BadInput: if the disk is full or the quota is used up.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's file writer hides the first behind the second
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            cause = cause.__context__
        if cause is None:
            raise
        raise BadInput(
            f"no space left in {folder} while {doing}: free some, or set {setting} to another folder."
        ) from error


def one_line(text: str) -> str:
    """A text for a message: on one line, without control characters, and not longer than can be read."""
    plain = UNREADABLE.sub(" ", text)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."


def first_sentence(message: str) -> str:
    """What a library says of a problem and what it would accept, without line breaks and hints, ending with one full stop."""
    first, *others = " ".join(message.split()).split(" HINT:")[0].split(". ")
    choices = [other for other in others if other.startswith(("Available names are", "Example choices"))]
    return one_line("; ".join(part.rstrip(".,! ") for part in (first, *choices)) + ".")


def did_you_mean(word: str, known: list[str]) -> str:
    """The closest known spelling as the end of a sentence; empty if none is close."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}" if near else ""
