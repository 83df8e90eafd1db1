"""The locked requirements: complete, within pyproject.toml's ranges, and refused when a file was changed."""

import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
FILES = sorted((PROJECT / "requirements").glob("*.txt"))
PROJECT_TABLE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def blocks(file: Path) -> list[tuple[Requirement, list[str]]]:
    """The requirement and the sha256 hashes of each package in a file."""
    parts = re.split(r"^(?=[a-zA-Z0-9])", file.read_text(), flags=re.MULTILINE)[1:]
    return [(Requirement(part.split("\\")[0].strip()), re.findall("sha256:([0-9a-f]{64})", part)) for part in parts]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_package_has_one_exact_version_and_hashes(file: Path) -> None:
    content = blocks(file)
    for requirement, hashes in content:
        assert hashes, requirement.name
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]
        assert not re.match("torch$|triton$|nvidia-|cuda-", requirement.name), "its build differs by machine"
    assert content and "http://" not in file.read_text() and "https://" not in file.read_text()


@pytest.mark.parametrize("extra", [None, *PROJECT_TABLE["optional-dependencies"]])
def test_the_lock_of_an_extra_holds_all_that_pyproject_names_within_its_ranges(extra: str | None) -> None:
    wanted = PROJECT_TABLE["optional-dependencies"][extra] if extra else PROJECT_TABLE["dependencies"]
    files = [PROJECT / "requirements" / f"{name}.txt" for name in ("core", *filter(None, [extra]))]
    files.append(PROJECT / "constraints.txt")
    locked = {
        canonicalize_name(found.name): next(iter(found.specifier)).version
        for file in files
        for found, _ in blocks(file)
    }
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name != "litlab":  # names other extras
            assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)], prereleases=True), text


def test_torch_alone_is_pinned_without_a_hash() -> None:
    assert [found.name for found, _ in blocks(PROJECT / "constraints.txt")] == ["torch"]


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("example.py", "NUMBER = 1\n")
        archive.writestr("example-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
        archive.writestr(
            "example-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("example-1.0.dist-info/RECORD", "")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"example==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    command = [sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index", "--no-compile"]
    command += [f"--find-links={tmp_path}", f"--target={tmp_path / 'site'}", "--requirement", str(lock)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    wheel.write_bytes(wheel.read_bytes().replace(b"NUMBER = 1", b"NUMBER = 2"))
    changed = subprocess.run(command, capture_output=True, text=True)
    assert changed.returncode != 0 and "THESE PACKAGES DO NOT MATCH THE HASHES" in changed.stderr
