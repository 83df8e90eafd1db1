"""Fixtures of the fuzz tests, and a summary line that counts the inputs of all properties by outcome."""

import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.outcomes import TALLY, watch_forbidden_events

MEMORY = 2 << 30  # bytes that a reader may allocate; it must refuse a damaged size instead of filling the memory


@pytest.fixture(scope="session", autouse=True)
def watched() -> None:
    watch_forbidden_events()


@pytest.fixture(scope="module")
def limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # other systems also count unused memory, or ignore the limit
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for the inputs of one test module; temporary files are created in it too."""
    folder = tmp_path_factory.mktemp("room")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if TALLY.inputs:  # after pytest's own summary
        config.get_terminal_writer().line(str(TALLY))
