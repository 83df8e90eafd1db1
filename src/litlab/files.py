"""Atomic file writes, and the cache that all runs share."""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from litlab.errors import BadInput, explain_full_disk


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing that replaces `path` when the block ends without an error.

    A reader sees the complete old or new content, even if the writer is killed.
    """
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)  # mkstemp creates files that only their owner can read
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file atomically."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cache_folder() -> Path:
    """Return the folder for downloads and prepared data: `$LITLAB_CACHE`, or `litlab` in the user's cache."""
    if folder := os.environ.get("LITLAB_CACHE"):
        return Path(os.path.realpath(os.path.expanduser(folder)))  # Path.expanduser raises for an unknown user
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "litlab"


@contextmanager
def build_once(target: Path, doing: str, is_complete: Callable[[Path], bool] = Path.exists) -> Iterator[Path | None]:
    """Let one process build `target` while others wait for it. A killed build leaves no incomplete `target`.

    Args:
        target: the file or folder to build.
        doing: what the build does, for the message if the disk is full.
        is_complete: whether an existing target is usable; a folder that is not is deleted and built again.

    Yields:
        A path to write to, which becomes `target` when the block ends without an error; None if `target` is usable.

    Raises:
        BadInput: if the disk is full or the folder cannot be written.
    """
    # the usual case needs no lock
    if is_complete(target):
        yield None
        return
    # wait for the lock
    setting = "LITLAB_CACHE" if target.is_relative_to(cache_folder()) else None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        advice = f", or set {setting} to another folder" if setting else ""
        raise BadInput(
            f"cannot write to the folder {target.parent} ({error.strerror}): make it writable{advice}."
        ) from error
    with lock, explain_full_disk(target.parent, doing, setting):
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if this process dies
        # another process may have built it meanwhile
        if is_complete(target):
            yield None
            return
        # remove what killed builds left, and a damaged target
        for leftover in target.parent.glob(f".{target.name}.{'?' * 8}/"):
            shutil.rmtree(leftover)
        if target.exists():
            print(f"{target} is damaged: building it again", file=sys.stderr)
            shutil.rmtree(target)
        # build beside the target, then rename: a rename is atomic only on the same disk
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            scratch = Path(folder) / target.name
            yield scratch
            os.replace(scratch, target)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_path(path: Path) -> str:
    """Return a path as text, relative to the current folder if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
