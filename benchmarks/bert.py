"""Training bert_cls (MiniLM, Rotten Tomatoes, batch size 32): litlab against transformers' Trainer and a bare loop."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.race import ROOM, apart, faster, race, report, seconds_of_fit, serve, write_jsonl
from benchmarks.trainers import BEST, arguments, seconds_of_trainer
from litlab.cli.process import keep_freed_memory
from litlab.data import splits
from litlab.nn.optimizer import decay_groups, rate_at
from litlab.sources import pretrained
from project.data import rotten_tomatoes
from project.data.text_classification import TextClassification
from project.models.bert_classifier import BertClassifier

BATCH, STEPS, ROUNDS, SLOW_ROUNDS = 32, 40, 5, 2
LEARNING_RATE = 1e-4
EXAMPLES = BATCH * STEPS  # one epoch; all contenders train on the same texts


def write_texts(folder: Path) -> None:
    """Write a sample of Rotten Tomatoes as data files for litlab."""
    source = rotten_tomatoes.source().open()
    rows = splits.read(next(iter(source.values())), {"data.text": "text"}, ("data.label", "label"))
    pairs = [{"text": text, "label": label} for text, label in zip(rows.texts[0].to_pylist(), rows.labels, strict=True)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [pairs[row] for row in order]
    write_jsonl(folder / "train.jsonl", shuffled[:EXAMPLES])
    for split in ("validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", shuffled[EXAMPLES : EXAMPLES + 64])


class Contest:
    """The contenders, which train on the same texts.

    Args:
        room: folder with the data files.
    """

    def __init__(self, room: Path) -> None:
        self.room = room
        self.folder = pretrained.folder_of("all-MiniLM-L6-v2")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.train = [json.loads(line) for line in (room / "train.jsonl").read_text().splitlines()]

    def litlab(self) -> float:
        """`litlab fit`."""
        files = ["-c", "configs/experiment/bert_cls.yaml", f"--data.source={self.room}", "--checkpoint.monitor=null"]
        epoch = [f"--data.batch_size={BATCH}", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
        return EXAMPLES / seconds_of_fit(*files, *epoch)

    def bare_loop(self) -> float:
        """A plain PyTorch loop with the same model and batches."""
        # model, data and optimizer, as litlab makes them
        keep_freed_memory()
        torch.manual_seed(0)
        module = BertClassifier()
        module.configure_model()
        data = TextClassification(str(self.room), max_length=128, batch_size=BATCH)
        data.prepare_data()
        optimizer = torch.optim.AdamW(decay_groups(module, 0.01), lr=LEARNING_RATE, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, STEPS, 4, "linear"))
        # the timed loop
        began = time.perf_counter()
        for batch in data.train_dataloader():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(module(batch), batch["target"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        return EXAMPLES / (time.perf_counter() - began)

    def default(self) -> float:
        """Trainer as run_glue calls it: every text is padded to the maximum length."""
        return self._trainer(self._tokenized("max_length"), None)

    def best(self) -> float:
        """Trainer with the flags that make it fast."""
        return self._trainer(self._tokenized(False), DataCollatorWithPadding(self.tokenizer), **BEST)

    def _tokenized(self, padding: Any) -> Dataset:
        classes = sorted({row["label"] for row in self.train})
        rows = []
        for row in self.train:
            tokens = self.tokenizer(row["text"], truncation=True, max_length=128, padding=padding)
            rows.append({**tokens, "label": classes.index(row["label"]), "length": len(tokens["input_ids"])})
        return Dataset.from_list(rows)

    def _trainer(self, dataset: Dataset, collator: Any, **flags: Any) -> float:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, num_labels=2, dtype=torch.float32)
        settings = arguments(per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE, **flags)
        peer = Trainer(
            model,
            TrainingArguments(**settings),
            data_collator=collator,
            train_dataset=dataset,
            processing_class=self.tokenizer,
        )
        return EXAMPLES / seconds_of_trainer(peer)


def main() -> None:
    """Run the race and report examples per second."""
    room = Path(tempfile.mkdtemp())
    os.environ["LITLAB_RUNS"] = os.environ[ROOM] = str(room)
    write_texts(room)
    names = ("litlab", "bare_loop", "best", "default")
    contenders = {name: apart("benchmarks.bert", name) for name in names}
    slow = {"litlab": contenders["litlab"], "default": contenders.pop("default")}
    medians, slow_medians = race(contenders, ROUNDS), race(slow, SLOW_ROUNDS)
    what, unit = "bert_cls training against", "examples/s"
    report(
        [
            faster(f"{what} a bare loop with the same optimizations", medians, "litlab", "bare_loop", unit, 0.95, 1),
            faster(f"{what} Trainer with default flags", slow_medians, "litlab", "default", unit, 10, 14),
            faster(f"{what} Trainer with best flags", medians, "litlab", "best", unit, 1.4, 1.8),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(getattr(Contest(Path(os.environ[ROOM])), sys.argv[1]))
    else:
        main()
