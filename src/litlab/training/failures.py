"""Errors of libraries during a training or an evaluation, turned into one sentence."""

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
# what Lightning says of settings with errors of other kinds
MISCONFIGURED = ("`val_check_interval`", "Early stopping conditioned on metric")


@contextmanager
def explain_misconfiguration() -> Iterator[None]:
    """Turn Lightning's errors about settings that fit neither each other nor this machine into bad input.

    Raises:
        BadInput: for a MisconfigurationException and what should be one, or a package that an option needs and that is not
            installed.
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
    """Turn torch's error about weights that do not fit the model into bad input.

    Raises:
        BadInput: with the names of the weights.
    """
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "Error(s) in loading state_dict" not in str(error):
            raise
        wrong, *others = (" ".join(problem.split()) for problem in str(error).split("\n\t")[1:])
        more = f" and {len(others)} more" if others else ""
        raise BadInput(
            f"{checkpoint} holds another model than the configuration describes: {wrong[:200].rstrip('. ')}{more}; use the model settings "
            "that it was trained with."
        ) from error


@contextmanager
def explain_unwritable_run(run: RunDirectory) -> Iterator[None]:
    """Turn errors of writing to the run directory into one sentence.

    Raises:
        BadInput: if it has vanished, became read-only or is on a full disk.
    """
    try:
        yield
    except OSError as error:
        if not run.path.is_dir():
            raise BadInput(
                f"the run directory {run.path} has vanished while the run was alive: nothing more can be saved."
            ) from error
        if error.errno in UNWRITABLE or str(error.filename).startswith(str(run.path)):
            raise BadInput(
                f"{error.filename or run.path} cannot be written ({error.strerror}): make the disk writable and continue the run."
            ) from error
        raise


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Explain that a worker process of a dataloader died.

    Raises:
        SystemExit: with status 75 if it has: the run can be continued.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        # torch reports it wherever the signal arrives: what it interrupts may raise an error of its own
        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        found = [match for one in chain if (match := re.search(r"DataLoader worker \(pid.*?\) .*", str(one)))]
        if not found:
            raise
        print(f"litlab: a process that loads data has died, often for lack of memory: {found[0][0]}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error
