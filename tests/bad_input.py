"""Mistakes of a user, each with the words that must be in the answer, and the steps that make them."""

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
    """One mistake.

    Args:
        name: what was done wrong.
        command: what follows `litlab` on the command line.
        words: parts of the sentence, in this order: the place, and what would be right.
        files: files of the project that are written before.
        steps: what else is done before, in the project folder.
        environment: variables that are set.
    """

    name: str
    command: str
    words: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    steps: list[Callable[[], Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


# steps


def remove(name: str) -> Callable[[], Any]:
    """Remove a file or a folder."""
    return lambda: shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def copy(name: str, target: str) -> Callable[[], Any]:
    """Copy a file."""
    return lambda: shutil.copy(name, target)


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[], Any]:
    """Rewrite a file."""
    return lambda: Path(name).write_bytes(how(Path(name).read_bytes()))


def flip_a_bit(name: str) -> Callable[[], Any]:
    """Change one bit in the middle of a file: within the weights of a checkpoint, where torch does not notice it."""

    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    return change(name, flip)


def save(content: Any, checkpoint: str) -> Callable[[], Any]:
    """Write anything as torch does."""
    return lambda: torch.save(content, checkpoint)


def drop(part: str, checkpoint: str) -> Callable[[], Any]:
    """Remove a part of a checkpoint."""

    def step() -> None:
        content = torch.load(checkpoint, weights_only=True)
        del content[part]
        torch.save(content, checkpoint)

    return step


def interrupt(run: str) -> Callable[[], Any]:
    """Change the status of a run to that of one that was stopped."""
    return change(f"{run}/run.json", lambda content: content.replace(b'"finished"', b'"interrupted"'))


def use(run: str) -> Callable[[], Any]:
    """Lock a run: this process lives."""
    return lambda: RunDirectory(Path(run)).acquire()


class Code:
    """What a checkpoint must not hold: unpickling it runs a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("echo exploited",)


# checks


def assert_refused(case: Case, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Make the mistake in this process, in the current folder, and check the answer and that nothing was lost."""
    prepare(case, monkeypatch)
    before = listing(Path.cwd())
    status = run_main(case.command, monkeypatch)
    check_answer(case, status, *capfd.readouterr())
    assert listing(Path.cwd()) == before


def assert_refused_by_command(case: Case, monkeypatch: pytest.MonkeyPatch, litlab: Command) -> None:
    """The same with the real command in a process of its own."""
    prepare(case, monkeypatch)
    before = listing(Path.cwd())
    done = litlab(*shlex.split(case.command))
    check_answer(case, done.returncode, done.stdout, done.stderr)
    assert listing(Path.cwd()) == before


def prepare(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mistakes that are not on the command line; steps come first, as they make room for files."""
    for step in case.steps:
        step()
    for name, content in case.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)


def run_main(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command line in this process as the program does; its exit status."""
    monkeypatch.setattr(sys, "argv", ["litlab", *shlex.split(command)])
    return main()


def check_answer(case: Case, status: int, output: str, errors: str) -> None:
    """Check the exit status and the last line on stderr.

    Args:
        case: the mistake.
        status: exit status.
        output: what was written to stdout.
        errors: what was written to stderr.
    """
    assert status == 2, errors
    assert "Traceback" not in output + errors and "exploited" not in output + errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("litlab: ") and last.endswith(".") and len(last) < 700, errors
    place = 0
    for words in case.words:
        assert words in last[place:], f"{words!r} is not there, or too early: {last}"
        place = last.index(words, place)


def listing(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with its content; without locks."""

    def entries() -> Iterator[tuple[str, str]]:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                yield str(path), os.readlink(path)
            elif path.is_file():
                yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                yield str(path), "a folder"

    return {name: content for name, content in entries() if not name.endswith("/lock")}
