"""Counts the inputs of all properties, and says at the very end what became of them."""

import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.outcomes import TALLY, watch_for_forbidden_deeds

MEMORY = 2 << 30  # bytes that the readers may ask for: a damaged size must be refused, not fill the machine


@pytest.fixture(scope="session", autouse=True)
def watched() -> None:
    watch_for_forbidden_deeds()


@pytest.fixture(scope="module")
def limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # other systems count what no process uses, or do not keep to the limit
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the inputs of one file of properties; scratch files would appear in it too."""
    folder = tmp_path_factory.mktemp("room")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if TALLY.inputs:  # behind pytest's own summary
        config.get_terminal_writer().line(str(TALLY))
