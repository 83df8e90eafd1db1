"""Time to the first optimizer step with a warm cache, `litlab fit` against a script; time of two --help commands."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from benchmarks.race import Row, race, report, shorter
from litlab.sources import pretrained
from project.data.text_classification import TextClassification

ROUNDS = 5
LITLAB = str(Path(sys.executable).with_name("litlab"))
SCRIPT = """
import lightning, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForSequenceClassification.from_pretrained({folder!r}, num_labels=2).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
batch = tokenizer(["a fine film , and a long one at that ."] * 32, return_tensors="pt")
with torch.autocast("cpu", torch.bfloat16):
    loss = model(**batch, labels=torch.zeros(32, dtype=torch.long)).loss
loss.backward()
optimizer.step()
"""


class ExitAfterFirstStep(Callback):
    """Ends the process after the first optimizer step, because the rest of the training is not measured."""

    def on_train_batch_end(self, *args: Any) -> None:
        """End the process."""
        os._exit(0)


def seconds_of(*command: str) -> float:
    """Wall time of a command in seconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Run the race and report seconds."""
    os.environ["LITLAB_RUNS"] = tempfile.mkdtemp()
    os.environ["PYTHONPATH"] = "."
    TextClassification(max_length=128).prepare_data()  # warm up the cache
    script = SCRIPT.format(folder=str(pretrained.folder_of("all-MiniLM-L6-v2")))
    fit = [LITLAB, "fit", "-c", "configs/experiment/bert_cls.yaml"]
    medians = race(
        {
            "litlab": lambda: seconds_of(*fit, "--trainer.callbacks+=benchmarks.startup.ExitAfterFirstStep"),
            "script": lambda: seconds_of(sys.executable, "-c", script),
            "help": lambda: seconds_of(LITLAB, "--help"),
            "fit help": lambda: seconds_of(*fit, "--help"),
        },
        ROUNDS,
    )
    step = shorter("time to the first optimizer step against a script", medians, "litlab", "script", "s", 1 / 1.5, 1)
    helps = [
        Row(f"`litlab {name}` against its limit", medians[key], limit, "s", limit / medians[key], 1)
        for name, key, limit in (("--help", "help", 1.0), ("fit --help", "fit help", 8.0))
    ]
    report([step, *helps])


if __name__ == "__main__":
    main()
