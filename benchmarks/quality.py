"""Do the optimizations lower the quality? python -m benchmarks.quality trains with each one alone, then with all.

The baseline, called "plain", is float32, the original transformers networks, and batches in random order, padded to
their longest text.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from benchmarks import bench
from benchmarks.race import RESULT, say
from litlab.cli.commands import fit_command
from litlab.data import batches
from litlab.nn import fast_transformers
from project.data import summarization, text_classification

SEEDS = (0, 1, 2)
OPTIONS = {
    "bert_cls": ["--trainer.max_epochs=1", "--trainer.limit_train_batches=90"],
    # with dropout, which its YAML does not use, so that the cheap dropout can be tried
    "t5_sum": [
        "--model.pretrained=null",
        "--model.risk_samples=0",
        "--model.learning_rate=2e-4",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=250",
        "--model.dropout=0.1",
    ],
}
METRICS = {"bert_cls": "val/accuracy", "t5_sum": "val/rouge1"}


@dataclass(frozen=True)
class Variant:
    """A way to train; the defaults are the baseline.

    Args:
        precision: precision of the trainer.
        change: changes the network in place.
        by_length: batch texts of similar length together.
    """

    precision: str = "32-true"
    change: Callable[[PreTrainedModel], None] = lambda network: None
    by_length: bool = False


def cheap_dropout(network: PreTrainedModel) -> None:
    """Use litlab's dropout; the rest of the network stays as it is."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, fast_transformers.Dropout(child.p))


def no_attention_dropout(network: PreTrainedModel) -> None:
    """Switch off attention dropout, as the padding-free attention on a GPU does."""
    for module in network.modules():
        if isinstance(module, BertSelfAttention):
            module.dropout.p = 0.0


ALL = "all of it, as shipped"
VARIANTS = {
    "plain": Variant(),
    "bf16": Variant("bf16-mixed"),
    "cheap dropout": Variant(change=cheap_dropout),
    "no attention dropout": Variant(change=no_attention_dropout),
    "length buckets": Variant(by_length=True),
    ALL: Variant("bf16-mixed", fast_transformers.speed_up, by_length=True),
}


def variants_of(experiment: str) -> list[str]:
    """The variants of an experiment; a T5 has no separate attention dropout."""
    return [name for name in VARIANTS if experiment == "bert_cls" or name != "no attention dropout"]


def train(experiment: str, name: str, seed: int) -> dict[str, Any]:
    """Train like `litlab fit`, with litlab's functions replaced in this process only.

    Returns:
        The loss curve, and the loss and the metric on the validation split.
    """
    # replace the functions that the variant changes
    variant = VARIANTS[name]
    fast_transformers.speed_up = variant.change  # type: ignore[assignment]
    if not variant.by_length:
        for module in (summarization, text_classification):
            module.by_length = lambda lengths, *rest: batches.shuffled(len(lengths), *rest[:2])  # type: ignore[attr-defined]
    # train
    room = Path(tempfile.mkdtemp())
    os.environ["LITLAB_RUNS"] = str(room)
    options = [*OPTIONS[experiment], f"--seed_everything={seed}", "--trainer.log_every_n_steps=10"]
    settings = ["-c", f"configs/experiment/{experiment}.yaml", f"--trainer.precision={variant.precision}", *options]
    fit_command(settings)
    # read the results from the run directory
    with (room / "latest" / "metrics.csv").open() as file:
        curve = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    metrics = json.loads((room / "latest" / "eval.json").read_text())["val"]["metrics"]
    return {"curve": curve, "loss": metrics["val/loss"], "score": metrics[METRICS[experiment]]}


def all_runs(experiments: Iterable[str]) -> None:
    """Train every variant with every seed; save the results and BENCHMARKS.md after each training."""
    bench.RESULTS.mkdir(exist_ok=True)
    content = json.loads(bench.QUALITY.read_text()) if bench.QUALITY.exists() else {"runs": {}}
    todo = [(one, name, seed) for one in experiments for name in variants_of(one) for seed in SEEDS]
    began = time.monotonic()
    for number, (experiment, name, seed) in enumerate(todo, 1):
        command = [sys.executable, "-m", "benchmarks.quality", experiment, name, str(seed)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            sys.exit(f"{' '.join(command)} ended with status {outcome.returncode}:\n{outcome.stderr[-2000:]}")
        found = json.loads(outcome.stdout.splitlines()[-1].removeprefix(RESULT))
        content["runs"].setdefault(experiment, {}).setdefault(name, {})[str(seed)] = found
        content |= bench.facts("make bench-quality") | {"table": table(content["runs"])}
        bench.QUALITY.write_text(json.dumps(content) + "\n")
        bench.FILE.write_text(bench.document())
        minutes = (time.monotonic() - began) / 60
        result = f"loss {found['loss']:.4f}  {METRICS[experiment]} {found['score']:.4f}"
        say(f"{number} of {len(todo)}, {minutes:.0f} minutes  {experiment}, {name}, seed {seed}: {result}")
    print(f"\n{content['table']}\nwritten to {bench.FILE}")


def table(runs_of: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| experiment | trained with | distance of the loss curves | validation loss | accuracy or ROUGE-1 | agrees |",
        "|---|---|---|---|---|---|",
    ]
    for experiment, variants in runs_of.items():
        plain = list(variants["plain"].values())
        for name, seeds in variants.items():
            runs = list(seeds.values())
            # distance between the mean loss curves, and the mean spread of the baseline's seeds
            curves, plain_curves = (np.array([run["curve"] for run in some]) for some in (runs, plain))
            distance = np.abs(curves.mean(axis=0) - plain_curves.mean(axis=0)).mean()
            allowed = np.ptp(plain_curves, axis=0).mean()
            cells = [f"{distance:.3f} of {allowed:.3f}" if name != "plain" else ""]
            agrees = distance <= allowed
            # means over seeds, which must differ by at most the spread of the baseline's seeds
            for key in ("loss", "score"):
                values, plain_values = (np.array([run[key] for run in some]) for some in (runs, plain))
                agrees &= abs(values.mean() - plain_values.mean()) <= np.ptp(plain_values)
                cells.append(f"{values.mean():.4f} ({values.min():.4f} to {values.max():.4f})")
            lines.append(f"| {experiment} | {name} | {' | '.join(cells)} | {'yes' if agrees else '**no**'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        found = train(sys.argv[1], sys.argv[2], int(sys.argv[3]))
        print(f"\n{RESULT}{json.dumps(found)}")
    else:
        all_runs(sys.argv[1:] or OPTIONS)
