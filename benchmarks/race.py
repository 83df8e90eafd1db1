"""How the benchmarks measure: contenders take turns at the same work, and the result is a ratio of medians."""

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

ROOM = "LITLAB_BENCH_ROOM"  # environment variable: the folder of the data files that contenders read
RESULT = "result of the turn: "
Contender = Callable[[], float]
"""Does the work once and returns its speed or its seconds."""


@dataclass
class Row:
    """One row of the table.

    Args:
        what: the work and the peer.
        ours: median speed or seconds of litlab; None if not measured, and so are theirs and ratio.
        theirs: median speed or seconds of the peer.
        unit: unit of ours and theirs.
        ratio: above 1 if litlab is better.
        must: required ratio; None without a requirement.
        reach: goal for the ratio; None without a goal.
    """

    what: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None
    must: float | None = None
    reach: float | None = None


def race(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Let contenders take turns, so that other load on the machine affects all of them.

    Args:
        contenders: contenders by name.
        rounds: number of turns per contender.

    Returns:
        The median result of each contender.
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
    """A contender in its own process, unaffected by the settings, imports and caches of the others.

    Args:
        module: a module in this folder that calls `serve`.
        name: name of the contender in that module.
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
    """Take a turn for each request of `apart`."""
    for _ in sys.stdin:
        print(f"\n{RESULT}{contender()}", flush=True)


def faster(what: str, medians: dict[str, float], ours: str, theirs: str, unit: str, *goals: float | None) -> Row:
    """A row that compares two speeds: higher is better."""
    return Row(what, medians[ours], medians[theirs], unit, medians[ours] / medians[theirs], *goals)


def shorter(what: str, medians: dict[str, float], ours: str, theirs: str, unit: str, *goals: float | None) -> Row:
    """A row that compares two durations: lower is better."""
    return Row(what, medians[ours], medians[theirs], unit, medians[theirs] / medians[ours], *goals)


def report(rows: Iterable[Row], notes: Iterable[str] = ()) -> None:
    """Print rows and notes as the last line of stdout, which `bench.py` reads."""
    print(json.dumps({"rows": [asdict(row) for row in rows], "notes": list(notes)}))


def say(text: str) -> None:
    """Show progress on stderr; `bench.py` reads stdout."""
    print(text, file=sys.stderr, flush=True)


class Clock(Callback):
    """Records the times of the start and the last step of a training with litlab.

    The times are class attributes, because the command line creates the instance.
    """

    began = ended = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the time before the first batch."""
        Clock.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Record the time after each step; the last one remains."""
        Clock.ended = time.perf_counter()


def seconds_of_fit(*options: str) -> float:
    """Seconds from the first to the last step of `litlab fit`, including loggers and progress bar.

    Args:
        options: command-line options of `litlab fit`.
    """
    fit_command([*options, "--trainer.callbacks+=benchmarks.race.Clock"])
    return Clock.ended - Clock.began


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write a data file for litlab and its peers."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
