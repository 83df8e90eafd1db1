"""User mistakes as test cases, the steps that prepare them, and checks of the error message."""

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command

from litlab.cli.main import main
from litlab.runs.directory import RunDirectory


@dataclass
class Case:
    """One mistake of a user.

    Args:
        name: name of the mistake.
        command: command line after `litlab`.
        words: parts of the expected message, in this order: where the mistake is, and what would be right.
        files: files to write into the project first.
        steps: functions to call first, in the project folder.
        environment: environment variables to set first.
    """

    name: str
    command: str
    words: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    steps: list[Callable[[], Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


# steps


def remove(name: str) -> Callable[[], Any]:
    """Delete a file or a folder."""
    return lambda: shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def copy(name: str, target: str) -> Callable[[], Any]:
    """Copy a file."""
    return lambda: shutil.copy(name, target)


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[], Any]:
    """Rewrite a file."""
    return lambda: Path(name).write_bytes(how(Path(name).read_bytes()))


def flip_a_bit(name: str) -> Callable[[], Any]:
    """Flip one bit in the middle of a file; in a checkpoint this changes a weight, and torch does not detect it."""

    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    return change(name, flip)


def save(content: Any, checkpoint: str) -> Callable[[], Any]:
    """Save any object with `torch.save`."""
    return lambda: torch.save(content, checkpoint)


def drop(part: str, checkpoint: str) -> Callable[[], Any]:
    """Remove a part of a checkpoint."""

    def step() -> None:
        content = torch.load(checkpoint, weights_only=True)
        del content[part]
        torch.save(content, checkpoint)

    return step


def interrupt(run: str) -> Callable[[], Any]:
    """Set the status of a finished run to interrupted."""
    return change(f"{run}/run.json", lambda content: content.replace(b'"finished"', b'"interrupted"'))


def use(run: str) -> Callable[[], Any]:
    """Lock a run by this process, which is alive."""
    return lambda: RunDirectory(Path(run)).acquire()


class Code:
    """An object that runs a command when it is unpickled; litlab must refuse a checkpoint that contains it."""

    def __reduce__(self) -> tuple:
        return os.system, ("echo exploited",)


# checks


def assert_refused(case: Case, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Make the mistake in this process, check the message, and check that no file changed in the current folder."""
    prepare(case, monkeypatch)
    before = listing(Path.cwd())
    status = run_main(case.command, monkeypatch)
    check_answer(case, status, *capfd.readouterr())
    assert listing(Path.cwd()) == before


def assert_refused_by_command(
    case: Case, monkeypatch: pytest.MonkeyPatch, litlab: Command, fresh: bool = False
) -> None:
    """Like `assert_refused`, with the litlab command in its own process; `fresh` as in `conftest.run_litlab`."""
    prepare(case, monkeypatch)
    before = listing(Path.cwd())
    done = litlab(*shlex.split(case.command), fresh=fresh)
    check_answer(case, done.returncode, done.stdout, done.stderr)
    assert listing(Path.cwd()) == before


def prepare(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare steps, files and environment of a case; steps come first, because they can delete existing files."""
    for step in case.steps:
        step()
    for name, content in case.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)


def run_main(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command line through `main` in this process and return the exit status."""
    monkeypatch.setattr(sys, "argv", ["litlab", *shlex.split(command)])
    return main()


def check_answer(case: Case, status: int, output: str, errors: str) -> None:
    """Check the exit status and the last line on stderr.

    Args:
        case: the mistake.
        status: exit status.
        output: text on stdout.
        errors: text on stderr.
    """
    assert status == 2, errors
    assert "Traceback" not in output + errors and "exploited" not in output + errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("litlab: ") and last.endswith(".") and len(last) < 700, errors
    position = 0
    for words in case.words:
        assert words in last[position:], f"{words!r} is missing, or comes too early: {last}"
        position = last.index(words, position)


def listing(folder: Path) -> dict[str, str]:
    """All files, folders and links below a folder with their contents, except lock files."""

    def entries() -> Iterator[tuple[str, str]]:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                yield str(path), os.readlink(path)
            elif path.is_file():
                yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                yield str(path), "a folder"

    return {name: content for name, content in entries() if not name.endswith("/lock")}
