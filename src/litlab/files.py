"""Files on disk: replaced in one step, built once in a cache that all runs share."""

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
    """Open a file for writing that replaces `path` when the block ends without an error.

    A reader sees the old content or the new, never a part of it, even if the writer is killed.
    """
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file in one step."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cache_folder() -> Path:
    """The folder that all runs share for downloads and prepared data: `$LITLAB_CACHE`, or `litlab` in the user's cache."""
    if folder := os.environ.get("LITLAB_CACHE"):
        return Path(os.path.realpath(os.path.expanduser(folder)))  # pathlib's own methods raise for ~nobody
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "litlab"


@contextmanager
def build_once(target: Path, doing: str, is_complete: Callable[[Path], bool] = Path.exists) -> Iterator[Path | None]:
    """Let one process build `target` while others wait for it; a build that is killed leaves nothing behind.

    Args:
        target: the file to make.
        doing: what the build does, for the message when the disk is full.
        is_complete: whether an existing target can be used; a folder that cannot is deleted and built again.

    Yields:
        A path to write to, which becomes `target` when the block ends without an error; None if `target` exists.

    Raises:
        BadInput: if the disk is full or the folder cannot be written.
    """
    if is_complete(target):
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise BadInput(
            f"cannot write to the cache {target.parent} ({error.strerror}): make it writable or set LITLAB_CACHE to another folder."
        ) from error
    with lock, explain_full_disk(target.parent, doing, "LITLAB_CACHE"):
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system if this process dies
        if is_complete(target):
            yield None
            return
        for remains in target.parent.glob(f".{target.name}.{'?' * 8}/"):  # of a build that was killed
            shutil.rmtree(remains)
        if target.exists():
            print(f"{target} is damaged: making it again", file=sys.stderr)
            shutil.rmtree(target)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            scratch = Path(folder) / target.name
            yield scratch
            os.replace(scratch, target)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_path(path: Path) -> str:
    """A path as short as it can be typed from the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
