import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from litlab.errors import BadInput
from litlab.files import build_once


def test_a_build_that_is_killed_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from litlab.files import build_once\n"
        "with build_once(Path(sys.argv[1]), 'testing') as scratch:\n"
        "    scratch.write_text('half'); print('begun', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "cache" / "file"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"begun\n"
    process.kill()
    process.wait()
    assert not target.exists()
    with build_once(target, "testing") as scratch:
        assert scratch
        scratch.write_text("whole")
    assert target.read_text() == "whole"


def test_of_many_builders_at_once_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    built: list[int] = []

    def build(number: int) -> None:
        with build_once(tmp_path / "file", "testing") as scratch:
            if scratch:
                time.sleep(0.05)
                scratch.write_text(str(number))
                built.append(number)
        assert (tmp_path / "file").exists()

    threads = [threading.Thread(target=build, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


@pytest.mark.parametrize(
    ("cache", "advice"), [("", "free some space, or set LITLAB_CACHE to another folder"), ("other", "free some space")]
)
def test_a_full_disk_while_caching_is_one_sentence(
    cache: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path / cache))
    with pytest.raises(BadInput, match=rf"no space left in .* while caching digits: {advice}\.$"):
        with build_once(tmp_path / "file", "caching digits") as scratch:
            assert scratch
            scratch.symlink_to("/dev/full")  # every write to it fails as on a full disk
            scratch.write_bytes(b"x" * 10_000)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("cache", "advice"),
    [("", "make it writable, or set LITLAB_CACHE to another folder"), ("other", "make it writable")],
)
def test_a_cache_that_cannot_be_made_is_one_sentence(
    cache: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path / cache))
    (tmp_path / "occupied").write_text("a file, not a folder")
    with pytest.raises(BadInput, match=rf"cannot write to the folder .*/occupied \(.*\): {advice}\.$"):
        with build_once(tmp_path / "occupied" / "file", "testing"):
            pass
