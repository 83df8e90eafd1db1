"""What a person did wrong, said in one sentence."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        doing: what was being done, as in "while caching MNIST".
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
