"""How a training keeps its run directory true: opened at its start, its end recorded whatever ends it."""

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
    """Make the run directory, or continue the one that is locked.

    Raises:
        BadInput: if the data are not those that the run began with.
    """
    run, start = job.run, job.start
    if not run.is_locked:
        run.create(job.config, {**opening_record(job), "parent": start.parent}, job.project, start.copied)
        length = load(start.checkpoint)["litlab"]["metrics_csv"] if start.checkpoint else None
    else:
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
    for logger in job.trainer.loggers:
        if isinstance(logger, MetricsCsv) and length:
            logger.truncate(*length)


def _refuse_other_data(job: Job, record: dict[str, Any]) -> None:
    """Compare the data with those that a run began with.

    Raises:
        BadInput: if they differ, with what differs.
    """
    before, after = record.get("data_fingerprint"), getattr(job.datamodule, "fingerprint", None)
    if before is None or before == after:
        return
    changes = differences(record.get("data") or {}, getattr(job.datamodule, "facts", {}))
    raise BadInput(
        f"the data are not those that {job.run.path} began with ({describe_differences(changes) or 'their fingerprint differs'}): bring "
        f"them back, or continue with these in a new run with --fork={job.run.experiment}/{job.run.id}."
    )


def _report_changes(record: dict[str, Any]) -> None:
    """Print what may keep a run from going on bit for bit: other packages, another machine."""
    here = machine()
    before = {name: record.get(name, {}) for name in here}
    if changes := differences(before, here):
        print(
            f"attention  since the run began: {describe_differences(changes)}; it may not go on bit for bit",
            file=sys.stderr,
        )


@contextmanager
def recorded(job: Job, new: bool) -> Iterator[None]:
    """Keep run.json true about how a training ends: finished, failed, stopped or interrupted.

    A new run that ends before its first step, because its settings do not fit, is removed again.

    Args:
        job: what is trained.
        new: whether the run begins with this training.

    Raises:
        SystemExit: with status 75 if the training was interrupted.
    """
    status, exit_code, useless = "failed", 1, False
    try:
        yield
        status, exit_code = "finished", 0
    except BadInput as error:
        begun_at = (job.start.parent or {}).get("step", 0)
        useless = new and job.trainer.global_step <= begun_at and not isinstance(error.__cause__, OSError)
        raise
    except (SystemExit, KeyboardInterrupt):  # Lightning ends with one of these on Ctrl-C and on SIGTERM
        status, exit_code = "interrupted", INTERRUPTED
        raise SystemExit(0 if is_child() else INTERRUPTED) from None
    except StoppedByGuard:
        status, exit_code = "stopped", 3
        if is_child():
            raise SystemExit(0) from None
        raise
    finally:
        if job.trainer.is_global_zero:
            _close(job, status, exit_code, useless)


def _close(job: Job, status: str, exit_code: int, useless: bool) -> None:
    """Record the end, end the W&B run, give the lock back, and print how to continue."""
    if status == "finished":
        finish_wandb(exit_code)  # first: a run that is killed while it waits is continued, and finished again
    with suppress(OSError):  # a full or vanished disk has been reported by what was to be written before
        job.run.update_record(status=status, ended=now(), **data_record(job))
    if status != "finished":
        finish_wandb(exit_code)
    if useless:
        job.run.discard()
    job.run.release()
    if status != "finished" and not useless:
        print(f"\nrun   {short_path(job.run.path)} ({status})", file=sys.stderr)
        print(f"next  make train RESUME={job.run.experiment}/{job.run.id}   continues it", file=sys.stderr)


def opening_record(job: Job) -> dict[str, Any]:
    """What run.json says from the first moment: how the run came about and on what it runs."""
    lock, words = job.project / "constraints.txt", job.arguments
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
    """What run.json says of the data: their fingerprint, what it is made of, and the names of the classes."""
    names = {"data_fingerprint": "fingerprint", "data": "facts", "class_names": "class_names"}
    return {key: getattr(job.datamodule, name, None) for key, name in names.items()}


def command_line(arguments: list[str]) -> str:
    """The command, as it can be typed again."""
    return shlex.join(["litlab", "fit", *arguments])
