"""The record of a run: a directory that holds everything needed to read, repeat and continue it.

    runs/<experiment>/<run id>/
      config.yaml   run.json   code.patch   metrics.csv   eval.json   predictions/   checkpoints/   wandb/   lock

Reading one needs neither torch nor Lightning. Every file but the growing metrics.csv is replaced in one step, so a run
that is killed leaves files that can be read.
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
DEAD_AFTER_SECONDS = 60  # without a heartbeat, a run on another host counts as dead


_held: set[int] = set()  # the locks of this process


@functools.cache  # once per process
def _release_in_forks() -> None:
    """Let forked children, as dataloaders make them, give up the locks: they may outlive their parent."""
    os.register_at_fork(after_in_child=_close_locks)


def _close_locks() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


def new_run_id() -> str:
    """An id that sorts by the time it was made (UTC, milliseconds) and does not collide: 20261122-093015-123-9f3a61c2."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(4)}"


class RunDirectory:
    """One run on disk.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._released = threading.Event()

    @classmethod
    def plan(cls, runs: Path, experiment: str) -> "RunDirectory":
        """A run directory with a new id; nothing is written before `create`."""
        return cls(runs / experiment / new_run_id())

    @property
    def id(self) -> str:
        """The run id: the name of the directory."""
        return self.path.name

    @property
    def experiment(self) -> str:
        """The experiment: the name of the directory above."""
        return self.path.parent.name

    def create(self, config: str, record: dict[str, Any], project: Path, copied: dict[str, Path] | None = None) -> None:
        """Make the directory with its first files, in one step, take its lock, and let the `latest` links point to it.

        Args:
            config: the content of config.yaml, redacted.
            record: the content of run.json; the state of the code is added.
            project: the folder whose code is recorded.
            copied: files of another run to begin with, by their names in this one.

        Raises:
            BadInput: if the directory cannot be made.
        """
        final = self.path
        scratch = final.with_name(f".{final.name}")  # a run that is killed here has not begun
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir()
        except OSError as error:
            raise BadInput(
                f"cannot make the run directory {final} ({error.strerror}): set LITLAB_RUNS to a folder you can write to."
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
        os.rename(scratch, final)  # the lock goes along
        self.path = final
        _remove_stillborn(final.parent)
        for link, target in (
            (self.path.parent / "latest", self.id),
            (self.path.parent.parent / "latest", f"{self.experiment}/{self.id}"),
        ):
            _point(link, target)

    def discard(self) -> None:
        """Remove a run in which nothing was trained; the `latest` links point to the newest of the others again."""
        shutil.rmtree(self.path, ignore_errors=True)
        runs = self.path.parent.parent
        for folder, others in ((self.path.parent, all_runs(runs, self.experiment)), (runs, all_runs(runs))):
            if others:
                _point(folder / "latest", others[-1].relative_to(folder).as_posix())
            else:
                (folder / "latest").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the experiment has other runs
            self.path.parent.rmdir()

    def config(self) -> Path:
        """The path of config.yaml.

        Raises:
            BadInput: if there is none.
        """
        path = self.path / "config.yaml"
        if not path.is_file():
            raise BadInput(
                f"{path} is missing: the folder is not a run directory or is damaged; bring the file back, or choose another run."
            )
        return path

    def record(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            BadInput: if there is none, or it cannot be read.
        """
        return self._read("run.json")

    def evaluations(self) -> dict[str, Any]:
        """The content of eval.json; nothing if nothing was evaluated yet.

        Raises:
            BadInput: if it cannot be read.
        """
        return self._read("eval.json") if (self.path / "eval.json").exists() else {}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text())
            if not isinstance(content, dict):
                raise ValueError(f"it holds {content!r:.50}")
        except (OSError, ValueError, RecursionError) as error:  # the last for a thousand brackets
            raise BadInput(
                f"{self.path / name} cannot be read ({error}): the folder is not a run directory or is damaged; bring the file back, or "
                "choose another run."
            ) from error
        return content

    def update_record(self, **changes: Any) -> None:
        """Add to or change run.json."""
        file = self.path / "run.json"
        content = {**(self.record() if file.exists() else {}), **changes}
        write_atomically(file, redact(json.dumps(content, indent=2, default=str)) + "\n")

    def write_evaluation(self, split: str, result: dict[str, Any]) -> None:
        """Add the scores of a split to eval.json."""
        content = {**self.evaluations(), split: result}
        write_atomically(self.path / "eval.json", json.dumps(content, indent=2) + "\n")

    def checkpoint(self, name: str) -> Path:
        """The path of a checkpoint, "best" or "last".

        Raises:
            BadInput: if there is no such checkpoint.
        """
        path = self.path / "checkpoints" / f"{name}.ckpt"
        if not path.exists():
            there = sorted(file.stem for file in path.parent.glob("*.ckpt"))
            raise BadInput(
                f"{path} does not exist; this run has {', '.join(there) if there else 'no checkpoints: it was stopped before the first one'}."
            )
        return path

    def acquire(self) -> None:
        """Take the lock: this process is now the only one that may write here, until `release` or its death.

        Raises:
            BadInput: if another process that is alive holds it, or the directory cannot be written.
        """
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
        _release_in_forks()
        self._lock = handle
        _held.add(handle)
        self._released.clear()
        self._beat()
        self._heart = threading.Thread(target=self._keep_beating, name="litlab-heartbeat", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._released.set()
            self._heart.join()
            os.ftruncate(self._lock, 0)  # not removed: another process may have it open already
            _held.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def tidy(self) -> None:
        """Remove the half-written files of a process that was killed; only for the holder of the lock."""
        for remains in [*self.path.glob(".*"), *self.path.glob("*/.*")]:
            if remains.is_file():
                remains.unlink()

    @property
    def is_locked(self) -> bool:
        """Whether this process works on the run."""
        return self._lock is not None

    def is_alive(self) -> bool:
        """Whether a process is working on this run."""
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
            with contextlib.suppress(OSError):  # a full or vanished disk is reported by whoever writes results
                self._beat()

    def _holder(self) -> dict[str, Any]:
        try:
            holder = json.loads((self.path / "lock").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _beats_elsewhere(self) -> bool:
        """Whether another host, whose lock a network disk may not show us, has written a heartbeat lately."""
        holder = self._holder()
        beat = holder.get("heartbeat")
        return (
            holder.get("host") not in (None, socket.gethostname())
            and isinstance(beat, int | float)
            and time.time() - beat < DEAD_AFTER_SECONDS
        )


def _remove_stillborn(folder: Path) -> None:
    """Remove what runs have left that were killed while their directory was made."""
    for scratch in folder.glob(".2*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > DEAD_AFTER_SECONDS and not RunDirectory(scratch).is_alive():
                shutil.rmtree(scratch)


def _point(link: Path, target: str) -> None:
    scratch = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    scratch.symlink_to(target)
    os.replace(scratch, link)


def find(runs: Path, reference: str) -> RunDirectory:
    """The run that a reference names.

    Args:
        runs: the folder of all runs.
        reference: "latest", an experiment (its newest run), a run id, or a path.

    Raises:
        BadInput: if there is no such run.
    """
    runs_there = all_runs(runs)
    named = [path for path in runs_there if path.name == reference]
    for path in (Path(reference), runs / reference, runs / reference / "latest", *named):
        if os.path.isfile(path / "run.json"):  # pathlib's own method raises for a name that is too long
            return RunDirectory(path.resolve())
    known = [path.relative_to(runs).as_posix() for path in runs_there]
    hint = (
        f"the newest are {', '.join(known[-3:])}" if known else "there are none yet: make train EXP=mnist_mlp makes one"
    )
    raise BadInput(f"no run {reference!r:.200} in {runs}; {hint}.")


def all_runs(runs: Path, experiment: str = "*") -> list[Path]:
    """The directories of all runs, or of one experiment's, oldest first."""
    found = [file.parent for file in runs.glob(f"{experiment}/*/run.json")]
    real = [path for path in found if not path.is_symlink() and not path.name.startswith(".")]
    return sorted(real, key=lambda path: path.name)


def rows(path: Path) -> Iterator[dict[str, float]]:
    """The rows of a run's metrics.csv, each with the numbers that were logged at that step.

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
            f"{file} cannot be read ({error!s:.100}): it is damaged or no metrics.csv; bring it back, or choose another run."
        ) from error
