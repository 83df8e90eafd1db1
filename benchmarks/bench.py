"""Runs the benchmarks, prints a table of ratios and writes BENCHMARKS.md: python -m benchmarks.bench [name ...]."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.race import Row, say

SUITES = ("startup", "mnist", "bert", "t5", "generation", "rouge", "loading", "growth", "gpu")
FILE = Path("BENCHMARKS.md")
RESULTS = Path("benchmarks/results")  # what was measured last, by suite; BENCHMARKS.md is made of them
QUALITY = RESULTS / "quality.json"  # benchmarks/quality.py writes it
QUALITY_HEAD = """Whether speed costs quality: each trick that changes numbers, alone and together, against the plain path: float32, transformers' own
networks, batches in random order. Means of three seeds, in brackets the smallest and the largest. "Distance" is between the mean loss
curves, beside the mean spread of the plain path's seeds. A way agrees if all three
differences are within the spread of the plain path's seeds.
"""
HEAD = """# Benchmarks

What litlab's speed is, against whom. `make bench` runs all of it and writes this file, `make bench ONLY=bert` one part. Each
line comes from one run, in which litlab and its peers take turns on the same data with the same batch size, learning rate and
number of steps; what is shown are medians, and their ratio, above 1 if litlab is better. Absolute numbers are this machine's
and vary with what else it does. What was tried, kept and dropped is in [benchmarks/LOG.md](benchmarks/LOG.md).
"""
PACKAGES = ("torch", "lightning", "transformers", "accelerate", "torchmetrics", "datasets", "tokenizers")


def main() -> None:
    """Run what is asked for, then write the table of all that was ever measured here."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="name", help=f"any of {', '.join(SUITES)}; none: all")
    wanted = parser.parse_args().suites
    if unknown := set(wanted) - set(SUITES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(SUITES)}.")
    RESULTS.mkdir(exist_ok=True)
    began = time.monotonic()
    for name in wanted or SUITES:
        say(f"== {name}, {(time.monotonic() - began) / 60:.0f} minutes so far")
        run(name)
    print(f"\n{table()}\nin {(time.monotonic() - began) / 60:.0f} minutes; written to {FILE}")


def run(name: str) -> None:
    """Run one suite in a process of its own, so that none finds what another has set or loaded."""
    outcome = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
    )
    if outcome.returncode:
        sys.exit(f"benchmarks/{name}.py ended with status {outcome.returncode}")
    content = json.loads(outcome.stdout.splitlines()[-1])
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts(f"make bench ONLY={name}"), **content}, indent=1) + "\n")
    FILE.write_text(document())


def facts(command: str) -> dict[str, Any]:
    """What a figure comes with."""
    versions = {package: version(package) for package in PACKAGES}
    return {"command": command, "day": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": versions}


def hardware() -> str:
    """The processor and its cores, in a line."""
    cpus = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in cpus.read_text().splitlines() if "model name" in line] if cpus.exists() else []
    )
    features = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    gpus = "".join(f", {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count()))
    return f"{os.cpu_count()} cores, {(names or [platform.processor()])[0]} ({', '.join(features) or 'no bfloat16'}){gpus}, Python {platform.python_version()}"


def results() -> dict[str, dict[str, Any]]:
    """What was measured last, by suite."""
    files = {name: RESULTS / f"{name}.json" for name in SUITES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table() -> str:
    """All ratios, as Markdown."""
    lines = ["| measured | litlab | peer | ratio | must | reach for |", "|---|---|---|---|---|---|"]
    for content in results().values():
        for row in (Row(**row) for row in content["rows"]):
            if row.ratio is None:
                cells = ["", "", "not measured"]
            else:
                reached = "" if row.must is None or row.ratio >= row.must else " **missed**"
                cells = [
                    f"{value:,.3g} {row.unit}" if value < 1000 else f"{value:,.0f} {row.unit}"
                    for value in (row.ours, row.theirs)
                ]
                cells.append(f"**{row.ratio:.2f} x**{reached}")
            goals = ["" if goal is None else f"{goal:.2g} x" for goal in (row.must, row.reach)]
            lines.append(f"| {' | '.join([row.what, *cells, *goals])} |")
    return "\n".join(lines)


def document() -> str:
    """BENCHMARKS.md."""
    lines = [HEAD, table()]
    for name, content in results().items():
        lines += ["", f"**{name}**: {told(content)}", *(f"\n{note}" for note in content["notes"])]
    if QUALITY.exists():
        content = json.loads(QUALITY.read_text())
        lines += ["", "## Quality", "", QUALITY_HEAD, content["table"], "", told(content)]
    return "\n".join(lines) + "\n"


def told(facts: dict[str, Any]) -> str:
    """Command, day, hardware and versions in a sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return f"`{facts['command']}`, {facts['day']}, {facts['hardware']}; {versions}."


if __name__ == "__main__":
    main()
