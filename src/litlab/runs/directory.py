"""The run directory: all files needed to read, repeat and continue a run.

    runs/<experiment>/<run id>/
      config.yaml   run.json   code.patch   metrics.csv   eval.json   predictions/   checkpoints/   wandb/   lock

Reading it needs neither torch nor Lightning. All files except metrics.csv, which grows, are replaced atomically, so the
files of a killed run are readable.
"""

import contextlib
import csv
import fcntl
import functools
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from litlab.errors import BadInput
from litlab.files import write_atomically
from litlab.runs.provenance import code_state, redact

HEARTBEAT_SECONDS = 10
DEAD_AFTER_SECONDS = 60  # without a heartbeat for this time, a run on another host counts as dead

_held: set[int] = set()  # file descriptors of the locks that this process holds


@functools.cache  # once per process
def _release_in_forks() -> None:
    """Make forked processes, such as dataloader workers, close the locks: they may outlive their parent."""
    os.register_at_fork(after_in_child=_close_locks)


def _close_locks() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


def new_run_id() -> str:
    """Return a unique id that sorts by creation time (UTC, milliseconds): 20261122-093015-123-9f3a61c2."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(4)}"


class RunDirectory:
    """One run on disk.

    Args:
        path: the directory, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._released = threading.Event()

    @classmethod
    def plan(cls, runs: Path, experiment: str) -> "RunDirectory":
        """Return a run directory with a new id. Nothing is written before `create`."""
        return cls(runs / experiment / new_run_id())

    @property
    def id(self) -> str:
        """The run id, which is the name of the directory."""
        return self.path.name

    @property
    def experiment(self) -> str:
        """The experiment, which is the name of the parent directory."""
        return self.path.parent.name

    def create(self, config: str, record: dict[str, Any], project: Path, copied: dict[str, Path] | None = None) -> None:
        """Create the directory with its first files, lock it, and point the `latest` links to it.

        Args:
            config: content of config.yaml, redacted.
            record: content of run.json; the git commit is added.
            project: the folder whose git commit and changes are recorded.
            copied: files of another run to copy, by their names in this run.

        Raises:
            BadInput: if the directory cannot be created.
        """
        # write the files in a hidden directory, so that a run that is killed here does not exist
        final = self.path
        scratch = final.with_name(f".{final.name}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir()
        except OSError as error:
            raise BadInput(
                f"cannot create the run directory {final} ({error.strerror}): set LITLAB_RUNS to a writable folder."
            ) from error
        self.path = scratch
        self.acquire()
        write_atomically(self.path / "config.yaml", config)
        code, patch = code_state(project)
        self.update_record(**record, git=code)
        if patch:
            write_atomically(self.path / "code.patch", patch)
        for name, source in (copied or {}).items():
            (self.path / name).parent.mkdir(exist_ok=True)
            shutil.copy2(source, self.path / name)
        # rename it; the lock is on the open file and stays valid
        os.rename(scratch, final)
        self.path = final
        _remove_incomplete(final.parent)
        for link, target in (
            (self.path.parent / "latest", self.id),
            (self.path.parent.parent / "latest", f"{self.experiment}/{self.id}"),
        ):
            _replace_link(link, target)

    def discard(self) -> None:
        """Remove a run that has not trained; the `latest` links point to the newest remaining run again."""
        shutil.rmtree(self.path, ignore_errors=True)
        runs = self.path.parent.parent
        for folder, others in ((self.path.parent, all_runs(runs, self.experiment)), (runs, all_runs(runs))):
            if others:
                _replace_link(folder / "latest", others[-1].relative_to(folder).as_posix())
            else:
                (folder / "latest").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the experiment has other runs
            self.path.parent.rmdir()

    def config(self) -> Path:
        """Return the path of config.yaml.

        Raises:
            BadInput: if it is missing.
        """
        path = self.path / "config.yaml"
        if not path.is_file():
            raise BadInput(
                f"{path} is missing: the folder is not a run directory or is damaged; restore the file, or choose another run."
            )
        return path

    def record(self) -> dict[str, Any]:
        """Return the content of run.json.

        Raises:
            BadInput: if it is missing or cannot be read.
        """
        return self._read("run.json")

    def evaluations(self) -> dict[str, Any]:
        """Return the content of eval.json; an empty dict before the first evaluation.

        Raises:
            BadInput: if it cannot be read.
        """
        return self._read("eval.json") if (self.path / "eval.json").exists() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text())
            if not isinstance(content, dict):
                raise ValueError(f"it holds {content!r:.50}")
        except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise BadInput(
                f"{self.path / name} cannot be read ({error}): the folder is not a run directory or is damaged; restore the file, or "
                "choose another run."
            ) from error
        return content

    def update_record(self, **changes: Any) -> None:
        """Add or replace values in run.json."""
        file = self.path / "run.json"
        content = {**(self.record() if file.exists() else {}), **changes}
        write_atomically(file, redact(json.dumps(content, indent=2, default=str)) + "\n")

    def write_evaluation(self, split: str, result: dict[str, Any]) -> None:
        """Add or replace the evaluation of a split in eval.json."""
        content = {**self.evaluations(), split: result}
        write_atomically(self.path / "eval.json", json.dumps(content, indent=2) + "\n")

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint, "best" or "last".

        Raises:
            BadInput: if there is no such checkpoint.
        """
        path = self.path / "checkpoints" / f"{name}.ckpt"
        if not path.exists():
            existing = sorted(file.stem for file in path.parent.glob("*.ckpt"))
            raise BadInput(
                f"{path} does not exist; this run has {', '.join(existing) if existing else 'no checkpoints: it was stopped before the first one'}."
            )
        return path

    def acquire(self) -> None:
        """Lock the run: until `release` or the end of this process, no other process can write to it.

        Raises:
            BadInput: if another running process holds the lock, or the directory is not writable.
        """
        # flock covers the processes of this host; on a network disk, heartbeats cover other hosts
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(
                f"{self.path / 'lock'} cannot be written ({error.strerror}): make the run directory writable, or copy it."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = not self._beats_elsewhere()
        except OSError:
            free = False
        if not free:
            os.close(handle)
            holder = self._holder()
            raise BadInput(
                f"{self.path} is in use by process {holder.get('pid')} on {holder.get('host')}: wait for it or stop it."
            )
        # the run is locked; write heartbeats
        _release_in_forks()
        self._lock = handle
        _held.add(handle)
        self._released.clear()
        self._beat()
        self._heart = threading.Thread(target=self._keep_beating, name="litlab-heartbeat", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Unlock the run."""
        if self._lock is not None:
            self._released.set()
            self._heart.join()
            os.ftruncate(self._lock, 0)  # the file stays: another process may have opened it already
            _held.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def tidy(self) -> None:
        """Remove incomplete files of a killed process. Only the process that holds the lock may call this."""
        for leftover in [*self.path.glob(".*"), *self.path.glob("*/.*")]:
            if leftover.is_file():
                leftover.unlink()

    @property
    def is_locked(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def is_alive(self) -> bool:
        """Whether any process holds the lock."""
        if self.is_locked:
            return True
        try:
            handle = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._beats_elsewhere()
        except OSError:
            return True
        finally:
            os.close(handle)

    def _beat(self) -> None:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()}
        assert self._lock is not None
        os.pwrite(self._lock, json.dumps(holder).ljust(200).encode(), 0)

    def _keep_beating(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full or missing disk is reported when results are written
                self._beat()

    def _holder(self) -> dict[str, Any]:
        try:
            holder = json.loads((self.path / "lock").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _beats_elsewhere(self) -> bool:
        """Whether a process on another host has written a heartbeat lately; a network disk may not share its lock."""
        holder = self._holder()
        beat = holder.get("heartbeat")
        return (
            holder.get("host") not in (None, socket.gethostname())
            and isinstance(beat, int | float)
            and time.time() - beat < DEAD_AFTER_SECONDS
        )


def _remove_incomplete(folder: Path) -> None:
    """Remove the directories of runs that were killed in `create`."""
    for scratch in folder.glob(".2*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > DEAD_AFTER_SECONDS and not RunDirectory(scratch).is_alive():
                shutil.rmtree(scratch)


def _replace_link(link: Path, target: str) -> None:
    scratch = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    scratch.symlink_to(target)
    os.replace(scratch, link)


def find(runs: Path, reference: str) -> RunDirectory:
    """Return the run that a reference names.

    Args:
        runs: the folder of all runs.
        reference: "latest", an experiment (its newest run), a run id, or a path.

    Raises:
        BadInput: if there is no such run.
    """
    existing = all_runs(runs)
    named = [path for path in existing if path.name == reference]
    for path in (Path(reference), runs / reference, runs / reference / "latest", *named):
        if os.path.isfile(path / "run.json"):  # Path.is_file raises for a name that is too long
            return RunDirectory(path.resolve())
    known = [path.relative_to(runs).as_posix() for path in existing]
    hint = (
        f"the newest are {', '.join(known[-3:])}" if known else "there are none yet: make train EXP=<name> starts one"
    )
    raise BadInput(f"no run {reference!r:.200} in {runs}; {hint}.")


def all_runs(runs: Path, experiment: str = "*") -> list[Path]:
    """Return the directories of all runs, or of the runs of one experiment, oldest first."""
    found = [file.parent for file in runs.glob(f"{experiment}/*/run.json")]
    real = [path for path in found if not path.is_symlink() and not path.name.startswith(".")]
    return sorted(real, key=lambda path: path.name)


def rows(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rows of a run's metrics.csv, each with the values that were logged together.

    Raises:
        BadInput: if the file is missing or damaged.
    """
    file = path / "metrics.csv"
    try:
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                yield {name: float(value) for name, value in row.items() if value not in ("", None)}
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: more values than columns
        raise BadInput(
            f"{file} cannot be read ({error!s:.100}): it is damaged or not a metrics.csv; restore it, or choose another run."
        ) from error
