"""Opens the run directory of a training, and writes the state and the end of the training to run.json."""

import hashlib
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from litlab.errors import BadInput, StoppedByGuard
from litlab.files import short_path
from litlab.runs.checkpoint import load
from litlab.runs.provenance import machine, now
from litlab.runs.start import describe_differences, differences
from litlab.training.build import Job
from litlab.training.interrupts import INTERRUPTED
from litlab.training.loggers import MetricsCsv, finish_wandb
from litlab.training.ranks import is_child


def open_run(job: Job) -> None:
    """Create the run directory, or prepare an existing one, which is locked, to continue its run.

    Raises:
        BadInput: if the data have changed since the run was started.
    """
    run, start = job.run, job.start
    if not run.is_locked:
        # a new run
        run.create(job.config, {**opening_record(job), "parent": start.parent}, job.project, start.copied)
        length = load(start.checkpoint)["litlab"]["metrics_csv"] if start.checkpoint else None
    else:
        # an existing run: compare the data before run.json is changed
        record = run.record()
        run.tidy()
        _refuse_other_data(job, record)
        _report_changes(record)
        content = load(start.checkpoint) if start.checkpoint else None
        step = content["global_step"] if content else 0
        length = content["litlab"]["metrics_csv"] if content else (0, 0)
        resumed = [*record.get("resumed", []), {"at": now(), "step": step, "command": command_line(job.arguments)}]
        run.update_record(status="running", ended=None, resumed=resumed)
        print(f"continuing {short_path(run.path)} from step {step:,}", file=sys.stderr)
    # remove the metrics that were logged after the checkpoint
    for logger in job.trainer.loggers:
        if isinstance(logger, MetricsCsv) and length:
            logger.truncate(*length)


def _refuse_other_data(job: Job, record: dict[str, Any]) -> None:
    """Raise an error if the data have changed since the run was started.

    Raises:
        BadInput: with the differences.
    """
    before, after = record.get("data_fingerprint"), getattr(job.datamodule, "fingerprint", None)
    if before is None or before == after:
        return
    changes = differences(record.get("data") or {}, getattr(job.datamodule, "facts", {}))
    raise BadInput(
        f"the data differ from those of {job.run.path} ({describe_differences(changes) or 'the fingerprint differs'}): "
        f"restore them, or continue with the new data in a new run with --fork={job.run.experiment}/{job.run.id}."
    )


def _report_changes(record: dict[str, Any]) -> None:
    """Print a warning if packages or hardware have changed since the run was started."""
    here = machine()
    before = {name: record.get(name, {}) for name in here}
    if changes := differences(before, here):
        print(
            f"warning: packages or hardware have changed since the run started: {describe_differences(changes)}; "
            "results may not be bit-identical",
            file=sys.stderr,
        )


@contextmanager
def record_outcome(job: Job, new: bool) -> Iterator[None]:
    """Write to run.json how a training ended: finished, failed, stopped or interrupted.

    If bad input ends a new run before its first step, the run directory is removed.

    Args:
        job: the training.
        new: whether this training has created the run directory.

    Raises:
        SystemExit: with status 75 if the training was interrupted.
    """
    status, exit_code, remove = "failed", 1, False
    try:
        yield
        status, exit_code = "finished", 0
    except BadInput as error:
        # a disk problem (OSError) does not remove the run: it can continue later
        first_step = (job.start.parent or {}).get("step", 0)
        remove = new and job.trainer.global_step <= first_step and not isinstance(error.__cause__, OSError)
        raise
    except (SystemExit, KeyboardInterrupt):  # raised on Ctrl-C and SIGTERM
        status, exit_code = "interrupted", INTERRUPTED
        raise SystemExit(0 if is_child() else INTERRUPTED) from None
    except StoppedByGuard:
        status, exit_code = "stopped", 3
        # rank 0 raises the same error; if this process failed first, Lightning would kill rank 0
        if is_child():
            raise SystemExit(0) from None
        raise
    finally:
        # also after other errors, which leave the status "failed"
        if job.trainer.is_global_zero:
            _close(job, status, exit_code, remove)


def _close(job: Job, status: str, exit_code: int, remove: bool) -> None:
    """Write the status to run.json, end the W&B run, unlock the run, and print how to continue it."""
    if status == "finished":
        finish_wandb(exit_code)  # before run.json: a run that is killed during the upload is not marked as finished
    with suppress(OSError):  # a full or missing disk was already reported by an earlier write
        job.run.update_record(status=status, ended=now(), **data_record(job))
    if status != "finished":
        finish_wandb(exit_code)
    if remove:
        job.run.discard()
    job.run.release()
    if status != "finished" and not remove:
        print(f"\nrun   {short_path(job.run.path)} ({status})", file=sys.stderr)
        print(f"next  make train RESUME={job.run.experiment}/{job.run.id}   continues it", file=sys.stderr)


def opening_record(job: Job) -> dict[str, Any]:
    """Return the initial content of run.json: command, settings, data, packages and hardware."""
    lock, words = job.project / "requirements" / "core.txt", job.arguments
    experiment = next((number for number, word in enumerate(words) if word in ("-c", "--config")), len(words))
    return {
        "status": "running",
        "started": now(),
        "ended": None,
        "command": command_line(words),
        "overrides": words[:experiment] + words[experiment + 2 :],
        "seed": job.seed,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        **data_record(job),
        **machine(),
        "wandb_id": job.run.id,
        "test_evaluations": 0,
    }


def data_record(job: Job) -> dict[str, Any]:
    """Return the data's entries in run.json: fingerprint, the facts that it is computed from, and class names."""
    names = {"data_fingerprint": "fingerprint", "data": "facts", "class_names": "class_names"}
    return {key: getattr(job.datamodule, name, None) for key, name in names.items()}


def command_line(arguments: list[str]) -> str:
    """Return the command of this training as a shell command line."""
    return shlex.join(["litlab", "fit", *arguments])
