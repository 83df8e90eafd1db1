"""Run the benchmarks, print a table of ratios and write BENCHMARKS.md: python -m benchmarks.bench [name ...]."""

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

SUITES = ("startup", "mnist", "bert", "t5", "generation", "rouge", "loading", "growth", "on_gpu")
FILE = Path("BENCHMARKS.md")
RESULTS = Path("benchmarks/results")  # the newest results, one file per suite; BENCHMARKS.md is generated from them
QUALITY = RESULTS / "quality.json"  # written by benchmarks/quality.py
QUALITY_HEAD = """Do the optimizations lower the quality? Each optimization that changes results is tried alone, then
all together. The baseline "plain" is float32, the original transformers networks, and batches in random order. Values
are means over three seeds, with minimum and maximum in brackets. "Distance" is the mean distance to the baseline's mean
loss curve, followed by the mean spread of the baseline's seeds. A variant "agrees" if its differences in all three
columns are within the spread of the baseline's seeds.
"""
HEAD = """# Benchmarks

How fast litlab is, compared with its peers. `make bench` runs all benchmarks and writes this file;
`make bench ONLY=bert` runs one. Each row comes from one run in which litlab and its peers take turns, on the same data
and with the same batch size, learning rate and number of steps. The table shows medians and their ratio; a ratio above
1 means that litlab is better. Absolute numbers hold for this machine and vary with its other load.
[benchmarks/LOG.md](benchmarks/LOG.md) lists what was tried, and what was kept or dropped.
"""
PACKAGES = ("torch", "lightning", "transformers", "accelerate", "torchmetrics", "datasets", "tokenizers")


def main() -> None:
    """Run the requested suites, then print the table of all results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="name", help=f"any of {', '.join(SUITES)}; default: all")
    wanted = parser.parse_args().suites
    if unknown := set(wanted) - set(SUITES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(SUITES)}.")
    RESULTS.mkdir(exist_ok=True)
    began = time.monotonic()
    for name in wanted or SUITES:
        say(f"== {name}, {(time.monotonic() - began) / 60:.0f} minutes so far")
        run(name)
    print(f"\n{table()}\nin {(time.monotonic() - began) / 60:.0f} minutes; written to {FILE}")


def run(name: str) -> None:
    """Run one suite in its own process, unaffected by the settings and imports of the others."""
    outcome = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
    )
    if outcome.returncode:
        sys.exit(f"benchmarks/{name}.py ended with status {outcome.returncode}")
    content = json.loads(outcome.stdout.splitlines()[-1])
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts(f"make bench ONLY={name}"), **content}, indent=1) + "\n")
    FILE.write_text(document())


def facts(command: str) -> dict[str, Any]:
    """The circumstances of a measurement: command, day, hardware and versions."""
    versions = {package: version(package) for package in PACKAGES}
    return {"command": command, "day": time.strftime("%Y-%m-%d"), "hardware": hardware(), "versions": versions}


def hardware() -> str:
    """Processor, cores, GPUs and Python version in one line."""
    cpus = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in cpus.read_text().splitlines() if "model name" in line] if cpus.exists() else []
    )
    features = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    gpus = "".join(f", {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count()))
    return f"{os.cpu_count()} cores, {(names or [platform.processor()])[0]} ({', '.join(features) or 'no bfloat16'}){gpus}, Python {platform.python_version()}"


def results() -> dict[str, dict[str, Any]]:
    """The newest results by suite."""
    files = {name: RESULTS / f"{name}.json" for name in SUITES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table() -> str:
    """All rows as a Markdown table."""
    lines = ["| measured | litlab | peer | ratio | required | goal |", "|---|---|---|---|---|---|"]
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
    """The text of BENCHMARKS.md, from the newest results."""
    lines = [HEAD, table()]
    for name, content in results().items():
        lines += ["", f"**{name}**: {measured_with(content)}", *(f"\n{note}" for note in content["notes"])]
    if QUALITY.exists():
        content = json.loads(QUALITY.read_text())
        lines += ["", "## Quality", "", QUALITY_HEAD, content["table"], "", measured_with(content)]
    return "\n".join(lines) + "\n"


def measured_with(facts: dict[str, Any]) -> str:
    """Command, day, hardware and versions in one line."""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return f"`{facts['command']}`, {facts['day']}, {facts['hardware']}; {versions}."


if __name__ == "__main__":
    main()
