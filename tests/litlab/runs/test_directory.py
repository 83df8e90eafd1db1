import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from litlab.errors import BadInput
from litlab.files import write_atomically
from litlab.runs.directory import RunDirectory, find, new_run_id, rows


def create(runs: Path, project: Path) -> RunDirectory:
    run = RunDirectory.plan(runs, "small")
    run.create("seed_everything: 0\n", {"status": "running"}, project)
    return run


def test_fifty_runs_started_at_once_have_fifty_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(50) as pool:
        made = list(pool.map(lambda _: create(tmp_path / "runs", tmp_path), range(50)))
    assert len({run.path for run in made}) == 50
    assert sum(path.is_dir() and not path.is_symlink() for path in (tmp_path / "runs/small").iterdir()) == 50
    assert (tmp_path / "runs/latest/run.json").is_file()
    for run in made:
        run.release()


def test_ids_sort_by_time() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_run_id())
        time.sleep(0.002)
    assert ids == sorted(ids)


def test_a_run_in_use_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from litlab.runs.directory import RunDirectory\n"
        "RunDirectory(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    run = RunDirectory(tmp_path)
    assert run.is_alive()
    with pytest.raises(BadInput, match=f"in use by process {holder.pid} on "):
        run.acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.is_alive()
    run.acquire()
    run.release()
    assert not run.is_alive()


def test_a_run_on_another_host_is_alive_until_its_heartbeat_stops(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for age, alive in ((1, True), (3600, False)):
        (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "heartbeat": time.time() - age}))
        assert run.is_alive() is alive


def overwrite_forever(path: Path) -> None:
    while True:
        for letter in "ab":
            write_atomically(path, letter * 300_000)


def test_a_file_whose_writer_is_killed_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(5):
        writer = multiprocessing.get_context("spawn").Process(target=overwrite_forever, args=(path,))
        writer.start()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        assert path.read_text() in ("a" * 300_000, "b" * 300_000)


def test_find_accepts_latest_experiments_ids_and_paths(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = create(runs, tmp_path), create(runs, tmp_path)
    for reference, expected in (
        ("latest", second),
        ("small", second),
        ("small/latest", second),
        (first.id, first),
        (str(first.path), first),
    ):
        assert find(runs, reference).path == expected.path
    with pytest.raises(BadInput, match=rf"no run 'nothing' in .*the newest are .*{second.id}"):
        find(runs, "nothing")
    with pytest.raises(BadInput, match="there are none yet"):
        find(tmp_path / "empty", "latest")
    first.release(), second.release()


def test_a_discarded_run_leaves_no_files_and_latest_is_the_run_before(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = create(runs, tmp_path), create(runs, tmp_path)
    for run, before in ((second, [first.path]), (first, [])):
        run.discard()
        run.release()
        assert [path for path in runs.glob("small/2*")] == before
        assert [
            link.resolve() for link in (*runs.glob("latest"), *runs.glob("*/latest")) if link.is_symlink()
        ] == 2 * before
    assert list(runs.iterdir()) == []


def test_a_damaged_record_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "runn')
    with pytest.raises(BadInput, match=r"run.json cannot be read .*: the folder is not a run directory or is damaged"):
        RunDirectory(tmp_path).record()


def test_a_runs_folder_that_cannot_be_written_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(BadInput, match=r"cannot create the run directory .* set LITLAB_RUNS"):
        create(tmp_path / "runs", tmp_path)


def test_rows_reads_numbers_and_skips_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n9,0.5,\n9,,0.25\n")
    assert list(rows(tmp_path)) == [{"step": 9, "train/loss": 0.5}, {"step": 9, "val/loss": 0.25}]
