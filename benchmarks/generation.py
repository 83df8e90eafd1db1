"""Summaries of the validation split of docstrings: litlab against transformers' generate in Lightning's autocast."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from transformers import T5ForConditionalGeneration

from benchmarks.race import ROOM, Row, apart, race, report, say, serve, shorter
from litlab.cli.process import keep_freed_memory
from litlab.data.batches import TrainingBatches
from litlab.nn.metrics import SummarizationMetrics
from litlab.nn.optimizer import rate_at
from litlab.training.precision import Bf16Mixed
from project.data.summarization import Summarization
from project.models.t5_summarizer import T5Summarizer

ROUNDS, STEPS = 5, 1500
SETTINGS: dict[str, Any] = {"d_model": 256, "d_ff": 1024, "num_layers": 3, "num_heads": 4, "dropout": 0.0}


def load_data() -> Summarization:
    """The data of the experiment."""
    data = Summarization(tokenizer_size=4096, max_length=128, max_summary_length=32, batch_size=16)
    data.prepare_data()
    return data


def new_model(data: Summarization) -> T5Summarizer:
    """The model of the experiment with random weights."""
    torch.manual_seed(0)
    module = T5Summarizer(vocab_size=data.vocab_size, max_new_tokens=32, no_repeat_ngram_size=3, **SETTINGS)
    module.configure_model()
    return module


def train_model(data: Summarization) -> T5Summarizer:
    """Train a model for a few minutes, so that its summaries differ between texts and end with an end token."""
    keep_freed_memory()
    module = new_model(data)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, STEPS, STEPS // 10, "linear"))
    for step, batch in zip(range(STEPS), epochs(data.train_dataloader()), strict=False):
        if step % 100 == 0:
            say(f"training a model, step {step} of {STEPS}")
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return module.eval()


def epochs(batches: TrainingBatches) -> Iterator[dict[str, Any]]:
    """The batches of one epoch after another, without end."""
    for epoch in count():
        batches.set_epoch(epoch)
        yield from batches


class Contest:
    """The contenders, with the same model and texts; each saves its summaries.

    Args:
        room: folder with the weights, and for the summaries.
    """

    def __init__(self, room: Path) -> None:
        self.room = room
        self.data = load_data()
        self.module = new_model(self.data)
        self.module.load_state_dict(torch.load(room / "weights.pt", weights_only=True))
        self.module.eval()

    def litlab(self) -> float:
        """Decode like `litlab eval`."""
        keep_freed_memory()
        return self._all("litlab", Bf16Mixed("cpu").forward_context, self.module.generate)

    def generate(self) -> float:
        """Decode with `generate` and the original network of transformers, in Lightning's autocast."""
        plain = T5ForConditionalGeneration(self.module.network.config).eval()
        plain.load_state_dict(self.module.network.state_dict())
        plain.set_attn_implementation("sdpa")

        def summaries(batch: dict[str, Any]) -> torch.Tensor:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return plain.generate(**inputs, **self.module.generation)[:, 1:]

        return self._all("generate", MixedPrecision("bf16-mixed", "cpu").forward_context, summaries)

    def _all(self, name: str, context: Any, generate: Any) -> float:
        written = {}
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in self.data.val_dataloader():
                with context():
                    texts = self.data._decode(generate(batch))
                written |= dict(zip(batch["id"].tolist(), zip(texts, batch["target"], strict=True), strict=True))
        seconds = time.perf_counter() - began
        (self.room / f"{name}.json").write_text(json.dumps(written))
        return seconds


def main() -> None:
    """Run the race, report seconds, and compare the summaries."""
    # train once, then let both contenders decode with the same weights
    room = Path(tempfile.mkdtemp())
    os.environ[ROOM] = str(room)
    torch.save(train_model(load_data()).state_dict(), room / "weights.pt")
    medians = race({name: apart("benchmarks.generation", name) for name in ("litlab", "generate")}, ROUNDS)
    # how many summaries are identical, and how far the metrics differ
    written = {name: json.loads((room / f"{name}.json").read_text()) for name in ("litlab", "generate")}
    pairs = list(zip(*(written[name].values() for name in written), strict=True))
    same = sum(one == other for one, other in pairs) / len(pairs)
    distinct = len({text for text, _ in written["litlab"].values()})
    rouge = []
    for texts in written.values():
        metrics = SummarizationMetrics("")
        zeros = torch.zeros(len(texts))  # for the lengths and the cut summaries, which are not compared
        metrics.update(*map(list, zip(*texts.values(), strict=True)), zeros, zeros)
        rouge.append([float(metrics.compute()[name]) for name in SummarizationMetrics.NAMES])
    difference = max(abs(one - other) for one, other in zip(*rouge, strict=True))
    note = (
        f"generation: {same:.2%} of {len(pairs):,} summaries are identical; litlab writes {distinct:,} distinct summaries. The four "
        f"ROUGE metrics differ by at most {difference:.4f}; ROUGE-1 is {rouge[0][0]:.4f}."
    )
    say(note)
    what = "T5 generation of the validation split against model.generate in Lightning's autocast"
    identical = Row("T5 generation: identical summaries", same * 100, 100, "%", same, 0.99)
    report([shorter(what, medians, "litlab", "generate", "s", 2, 4), identical], [note])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(getattr(Contest(Path(os.environ[ROOM])), sys.argv[1]))
    else:
        main()
