"""How the benchmarks measure: contenders take turns on the same work, and what counts is a ratio of medians."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from litlab.cli.commands import fit_command

ROOM = "LITLAB_BENCH_ROOM"  # tells contenders where the data files are
RESULT = "result of the turn: "
Contender = Callable[[], float]
"""Does the work once and returns its speed, or its seconds."""


@dataclass
class Row:
    """One line of the table.

    Args:
        what: the work, and against whom.
        ours: median of litlab's speed or seconds; None, as the two that follow from it, if it could not be measured.
        theirs: median of the peer's.
        unit: of both.
        ratio: how much better litlab is; above 1 is faster.
        must: the ratio that it must reach; None if there is no limit.
        reach: the ratio that it should reach.
    """

    what: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None
    must: float | None = None
    reach: float | None = None


def race(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Let contenders take turns, so that what else the machine does hits all of them.

    Args:
        contenders: by name.
        rounds: turns of each.

    Returns:
        The median of each.
    """
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            started = time.monotonic()
            results[name].append(contender())
            took = time.monotonic() - started
            say(f"round {number + 1} of {rounds}  {name:<40} {results[name][-1]:10,.2f}   took {took:.0f} s")
    return {name: statistics.median(values) for name, values in results.items()}


def apart(module: str, name: str) -> Contender:
    """A contender in a process of its own, so that it finds nothing that another has set, loaded or cached.

    Args:
        module: a module of this folder, which calls `serve`.
        name: of the contender there.
    """
    process: subprocess.Popen[str] | None = None

    def turn() -> float:
        nonlocal process
        if process is None:
            command = [sys.executable, "-m", module, name]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith(RESULT):
                return float(line.removeprefix(RESULT))
        sys.exit(f"{module} {name} ended with status {process.wait()}")

    return turn


def serve(contender: Contender) -> None:
    """Take a turn whenever `apart` asks for one."""
    for _ in sys.stdin:
        print(f"\n{RESULT}{contender()}", flush=True)


def faster(what: str, medians: dict[str, float], ours: str, theirs: str, unit: str, *goals: float | None) -> Row:
    """A line of two speeds: more is better."""
    return Row(what, medians[ours], medians[theirs], unit, medians[ours] / medians[theirs], *goals)


def sooner(what: str, medians: dict[str, float], ours: str, theirs: str, unit: str, *goals: float | None) -> Row:
    """A line of two times: less is better."""
    return Row(what, medians[ours], medians[theirs], unit, medians[theirs] / medians[ours], *goals)


def report(rows: Iterable[Row], notes: Iterable[str] = ()) -> None:
    """Hand the lines to `bench.py`, as the last line of the output."""
    print(json.dumps({"rows": [asdict(row) for row in rows], "notes": list(notes)}))


def say(text: str) -> None:
    """Show progress, beside the output that is read."""
    print(text, file=sys.stderr, flush=True)


class Clock(Callback):
    """Notes when a training of litlab begins and when its last step is done.

    Class attributes, because the command line makes the instance.
    """

    began = ended = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The first batch comes next."""
        Clock.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """The last call counts."""
        Clock.ended = time.perf_counter()


def seconds_of_fit(*options: str) -> float:
    """Seconds from the first to the last step of `litlab fit`, loggers and progress bar and all.

    Args:
        options: as on the command line.
    """
    fit_command([*options, "--trainer.callbacks+=benchmarks.race.Clock"])
    return Clock.ended - Clock.began


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write a data file that both litlab and its peers read."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
