"""Errors with a one-sentence message for the user, and helpers that write such sentences."""

import difflib
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNREADABLE = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, terminal codes, surrogates
MAX_LENGTH = 500  # characters of a message


class BadInput(Exception):
    """Invalid input. The message says in one sentence what is wrong, where, and what is accepted.

    The command line prints it without a traceback and exits with status 2.
    """


class StoppedByGuard(Exception):
    """Training was stopped because it would waste time or give wrong results. The message is one sentence, as above.

    The command line prints it and exits with status 3.
    """


@contextmanager
def explain_full_disk(folder: Path, doing: str, setting: str | None) -> Iterator[None]:
    """Turn a "no space left" error of a write below `folder` into a `BadInput` that says what to do.

    Args:
        folder: the folder that is written to.
        doing: the current step, as in "while caching data".
        setting: the environment variable that moves the folder; None if there is none.

    Raises:
        BadInput: if the disk is full or the quota is used up.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's file writer raises a RuntimeError on top of the OSError
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            cause = cause.__context__
        if cause is None:
            raise
        advice = f", or set {setting} to another folder" if setting else ""
        raise BadInput(f"no space left in {folder} while {doing}: free some space{advice}.") from error


def one_line(text: str) -> str:
    """Return a text on one line, without control characters, cut to `MAX_LENGTH` characters."""
    plain = UNREADABLE.sub(" ", text)
    return plain if len(plain) <= MAX_LENGTH else f"{plain[: MAX_LENGTH - 3]}..."


def first_sentence(message: str) -> str:
    """Return the first sentence of a library's error message and its list of accepted values, on one line."""
    first, *others = " ".join(message.split()).split(" HINT:")[0].split(". ")
    choices = [other for other in others if other.startswith(("Available names are", "Example choices"))]
    return one_line("; ".join(part.rstrip(".,! ") for part in (first, *choices)) + ".")


def did_you_mean(word: str, known: list[str]) -> str:
    """Return the end of a sentence that suggests the closest known spelling; empty if none is close."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}" if near else ""
