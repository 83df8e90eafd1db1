"""The kill drill: kill a training, resume it until it is finished, and compare it with an uninterrupted training.

    python tests/drill.py --kills 100

Each training is the litlab command on the experiment's own data, with few steps. Each kill is a SIGKILL to the process
or to its process group, at a random moment of a stage of the training. At the end, each training must have exactly one
run directory, which must equal the uninterrupted one bit for bit.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exactness import differing
from forked import Forked

Process = subprocess.Popen[bytes] | Forked
PROJECT = Path(__file__).resolve().parents[1]
KILLS_PER_RUN = 11
TIMEOUT = 600  # seconds for a training that is not killed
COMMON = ("--trainer.log_every_n_steps=1", "--last_checkpoint.every_minutes=0.02")
OPTIONS = {
    "mnist_mlp": ("--trainer.max_epochs=3", "--trainer.limit_train_batches=200", "--trainer.limit_val_batches=3"),
    "bert_cls": (
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=12",
        "--trainer.limit_val_batches=2",
        "--data.evaluation_batch_size=32",
    ),
    "t5_sum": (
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=16",
        "--trainer.limit_val_batches=2",
        "--data.evaluation_batch_size=16",
    ),
}
STAGES = ("start-up", "download", "preparation", "training", "validation", "checkpoint", "evaluation", "end")


@dataclass
class Drill:
    """The drill for one experiment.

    Args:
        experiment: name of the experiment.
        room: folder for caches and runs.
        generator: random numbers that choose when to kill.
        counts: number of kills by stage.
        forked: copy one interpreter instead of starting a new one for each training.
    """

    experiment: str
    room: Path
    generator: random.Random
    counts: Counter[str]
    forked: bool = False

    @property
    def runs(self) -> list[Path]:
        """The run directories, oldest first."""
        return sorted(file.parent for file in (self.room / "runs" / self.experiment).glob("2*/run.json"))

    def reference(self) -> Path:
        """Run the training without kills and return its run directory."""
        done = self.start(self.room / "unkilled").wait(TIMEOUT)
        assert done == 0, (self.room / "output").read_text()
        return (self.room / "unkilled" / self.experiment / "latest").resolve()

    def start(self, runs: Path) -> Process:
        """Start the command; the options are always the same."""
        command = ["-m", "litlab", "fit", "-c", f"configs/experiment/{self.experiment}.yaml"]
        command += [*COMMON, *OPTIONS[self.experiment], "--resume=auto"]
        settings = {"LITLAB_RUNS": str(runs), "LITLAB_CACHE": str(self.room / "cache"), "WANDB_MODE": "offline"}
        environment = {**os.environ, **settings}
        with (self.room / "output").open("wb") as output, open(os.devnull) as nothing:
            files = {"stdin": nothing.fileno(), "stdout": output.fileno(), "stderr": output.fileno()}
            if self.forked:
                return Forked(command, PROJECT, environment, **files, start_new_session=True)
            command.insert(0, sys.executable)
            return subprocess.Popen(command, cwd=PROJECT, env=environment, **files, start_new_session=True)

    def survive(self, kills: int) -> list[str]:
        """Kill and restart the training until it is finished; returns the problems."""
        # choose the stages of the kills, roughly in the order of a training
        first = self.generator.randrange(len(STAGES))
        stages = [STAGES[(first + i) % len(STAGES)] for i in range(kills)]
        stages.sort(key=lambda stage: -STAGES.index(stage) + self.generator.uniform(-2, 2))
        # start the command again until its run is finished
        before = len(self.runs)
        while True:
            stage = stages.pop() if stages else ""
            self.empty_cache(stage)
            process = self.start(self.room / "runs")
            if stage and self.kill_at(stage, process):
                self.counts[stage] += 1
                print(f"  kill {self.counts.total():>3}  {self.experiment}  {stage}{self.progress()}", flush=True)
            elif (status := process.wait(TIMEOUT)) != 0:
                return [f"{self.experiment}: exit status {status}\n{(self.room / 'output').read_text()}"]
            if len(self.runs) > before and json.loads((self.runs[-1] / "run.json").read_text())["status"] == "finished":
                break
        lost = len(self.runs) - before - 1
        return [f"{self.experiment}: {lost} runs were lost"] * bool(lost)

    def empty_cache(self, stage: str) -> None:
        """Delete the part of the cache that the stage fills."""
        if stage == "download":
            shutil.rmtree(self.room / "cache", ignore_errors=True)
        if stage == "preparation":
            for name in ("tokens", "mnist"):
                shutil.rmtree(self.room / "cache" / name, ignore_errors=True)

    def kill_at(self, stage: str, process: Process) -> bool:
        """Kill at a random moment of a stage; False if the training ends before."""
        started, rows = time.time(), len(self.rows())
        cache = self.room / "cache"
        # stage -> condition that shows its start, maximum delay of the kill after that in seconds
        signs: dict[str, tuple[Callable[[], bool], float]] = {
            "start-up": (lambda: True, 9),
            "download": (lambda: any(cache.glob("packages/.*.????????/*")), 0.5),
            "preparation": (lambda: any(cache.glob("[!p]*/.*.????????/*")), 2),
            "training": (lambda: len(self.rows()) > rows + 2, 3),
            "validation": (lambda: len(self.rows()) > rows and self.is_validating(), 0.3),
            "checkpoint": (lambda: self.newest("checkpoints/.*.ckpt.*") > started, 0.2),
            "evaluation": (lambda: len(self.rows()) > rows and self.is_trained(), 1),
            "end": (lambda: self.newest("eval.json") > started, 0.5),
        }
        # wait for the start of the stage, then for a random time
        has_begun, longest = signs[stage]
        while process.poll() is None and not has_begun():
            time.sleep(0.002)
        until = time.monotonic() + self.generator.uniform(0, longest) * self.generator.choice([1, 1, 0.1])
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        if process.poll() is not None:
            return False
        if self.generator.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)  # like a cluster
        else:
            process.kill()  # like the kernel when memory runs out
        process.wait()
        return True

    def newest(self, pattern: str) -> float:
        """Modification time of the newest file that matches; 0 if there is none."""
        times = [0.0]
        for file in self.runs[-1].glob(pattern) if self.runs else ():
            with contextlib.suppress(OSError):
                times.append(file.stat().st_mtime)
        return max(times)

    def rows(self) -> list[dict[str, str]]:
        """The rows that the newest run has logged."""
        try:
            with (self.runs[-1] / "metrics.csv").open(newline="") as file:
                return list(csv.DictReader(file))
        except (OSError, IndexError):
            return []

    def is_validating(self) -> bool:
        """Whether the last row is the loss of the step before a validation."""
        last = self.rows()[-1]
        steps = int(OPTIONS[self.experiment][1].partition("=")[2])
        return bool(last.get("train/loss")) and (int(last["step"]) + 1) % steps == 0

    def is_trained(self) -> bool:
        """Whether the last epoch is finished."""
        last = self.rows()[-1]
        epochs = int(OPTIONS[self.experiment][0].partition("=")[2])
        return bool(last.get("train/loss_epoch")) and last["epoch"] == str(epochs - 1)

    def progress(self) -> str:
        """The last step of the newest run as text."""
        rows = self.rows()
        return f", step {rows[-1]['step']}" if rows else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill and print the result; the exit status is 0 if no run was lost and no run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="number of kills, divided among the experiments")
    parser.add_argument("--experiments", nargs="+", choices=sorted(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--forked", action="store_true", help="start each training in milliseconds; see forked.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of the stages and delays of the kills")
    options = parser.parse_args(arguments)
    # for each experiment: an uninterrupted run, then killed runs, which are compared with it
    began, wrong, compared = time.monotonic(), [], 0
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="litlab-drill-") as folder:
        counts: Counter[str] = Counter()
        for i, experiment in enumerate(options.experiments):
            room = Path(folder, experiment)
            room.mkdir()
            kills = options.kills // len(options.experiments) + (i < options.kills % len(options.experiments))
            drill = Drill(experiment, room, generator, counts, options.forked)
            print(f"{experiment}: {kills} kills, and one run without kills", flush=True)
            whole, without_kill = drill.reference(), 0
            while kills > 0 and without_kill < 5:  # a training can end before the planned kill
                of_this_run = min(kills, KILLS_PER_RUN)
                before = counts.total()
                problems = drill.survive(of_this_run) or differing(whole, drill.runs[-1])
                print(f"  {'DIFFERENT' if problems else 'identical'} after {of_this_run} kills", *problems, sep="\n  ")
                wrong += problems
                compared += 1
                kills -= counts.total() - before
                without_kill += counts.total() == before
    # the summary
    minutes = (time.monotonic() - began) / 60
    stages = ", ".join(f"{stage} {counts[stage]}" for stage in STAGES if counts[stage])
    lost = sum("lost" in problem for problem in wrong)
    print(
        f"drill: {counts.total()} kills ({stages}) in {compared} runs in {minutes:.1f} minutes: {lost} lost runs, "
        f"{len(wrong) - lost} differences"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
