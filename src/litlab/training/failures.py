"""Turns library errors during training and evaluation into one-sentence messages."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from litlab.errors import BadInput, first_sentence
from litlab.runs.directory import RunDirectory
from litlab.training.interrupts import INTERRUPTED

UNWRITABLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
# messages about wrong settings that Lightning raises as ValueError or RuntimeError
MISCONFIGURED = ("`val_check_interval`", "Early stopping conditioned on metric")


@contextmanager
def explain_misconfiguration() -> Iterator[None]:
    """Turn Lightning's errors about settings that do not work together or on this machine into `BadInput`.

    Raises:
        BadInput: for a MisconfigurationException, for an error with a message in `MISCONFIGURED`, or if a package that
            an option needs is not installed.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in MISCONFIGURED):
            raise
        raise BadInput(
            f"these settings do not work here: {'; '.join(' '.join(str(error).split()).rstrip('.').split('. '))}."
        ) from error
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise BadInput(f"these settings do not work here: {first_sentence(str(error))}") from error


@contextmanager
def explain_mismatched_weights(checkpoint: Path | None) -> Iterator[None]:
    """Turn torch's error about weights that do not match the model into `BadInput`.

    Args:
        checkpoint: the file that is loaded; None: do not change the error.

    Raises:
        BadInput: with the checkpoint and the first mismatch.
    """
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "Error(s) in loading state_dict" not in str(error):
            raise
        wrong, *others = (" ".join(problem.split()) for problem in str(error).split("\n\t")[1:])
        more = f" and {len(others)} more" if others else ""
        raise BadInput(
            f"{checkpoint} does not match the configured model: {wrong[:200].rstrip('. ')}{more}; use the model "
            "settings that it was trained with."
        ) from error


@contextmanager
def explain_unwritable_run(run: RunDirectory) -> Iterator[None]:
    """Turn write errors in the run directory into `BadInput`.

    Raises:
        BadInput: if the run directory was removed, is read-only or is on a full disk.
    """
    try:
        yield
    except OSError as error:
        if not run.path.is_dir():
            raise BadInput(
                f"the run directory {run.path} was removed or renamed during training: move it back and continue "
                "the run, or start a new run."
            ) from error
        if error.errno in UNWRITABLE or str(error.filename).startswith(str(run.path)):
            raise BadInput(
                f"{error.filename or run.path} cannot be written ({error.strerror}): make the disk writable, then "
                "continue the run."
            ) from error
        raise


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Turn the error about a killed dataloader worker into a printed message and exit status 75.

    Raises:
        SystemExit: with status 75, which means that the run can be continued.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        # torch raises this error in a signal handler; the interrupted code may raise a second error from it
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        found = [match for one in chain if (match := re.search(r"DataLoader worker \(pid.*?\) .*", str(one)))]
        if not found:
            raise
        print(f"litlab: a dataloader worker was killed, often because memory ran out: {found[0][0]}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error
