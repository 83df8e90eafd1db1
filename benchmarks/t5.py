"""Training t5_sum (T5, 3+3 layers of width 256, docstrings, batch size 32): litlab against Seq2SeqTrainer."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.race import ROOM, apart, faster, race, report, say, seconds_of_fit, serve, write_jsonl
from benchmarks.trainers import BEST, arguments, seconds_of_trainer
from project.data import docstrings
from project.data.summarization import Summarization

BATCH, STEPS, ROUNDS, SLOW_ROUNDS = 32, 40, 5, 2
EXAMPLES = BATCH * STEPS  # one epoch; all contenders train on the same texts
LEARNING_RATE = 1e-3


def write_pairs(folder: Path) -> None:
    """Write a sample of docstrings as data files for litlab."""
    table = docstrings.table()
    for split, count in {"train": EXAMPLES, "validation": 64, "test": 64}.items():
        rows = [row for row in table.select(["split", "source", "target"]).to_pylist() if row["split"] == split]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count].tolist()
        write_jsonl(
            folder / f"{split}.jsonl", ({"text": rows[row]["source"], "summary": rows[row]["target"]} for row in order)
        )


class Contest:
    """The contenders, which train on the same pairs.

    Args:
        room: folder with the data files.
        dropout: dropout rate of the model.
    """

    def __init__(self, room: Path, dropout: float) -> None:
        self.room, self.dropout = room, dropout
        self.data = Summarization(str(room), tokenizer_size=4096, max_length=128, max_summary_length=32)
        self.data.prepare_data()

    def litlab(self) -> float:
        """`litlab fit`."""
        files = ["-c", "configs/experiment/t5_sum.yaml", f"--data.source={self.room}", "--checkpoint.monitor=null"]
        # like the peer: random weights, and the targets' likelihood as the loss
        files += ["--model.pretrained=null", "--model.risk_samples=0"]
        epoch = [f"--data.batch_size={BATCH}", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
        return EXAMPLES / seconds_of_fit(*files, *epoch, f"--model.dropout={self.dropout}")

    def default(self) -> float:
        """Seq2SeqTrainer as run_summarization calls it."""
        return self._trainer()

    def best(self) -> float:
        """Seq2SeqTrainer with the flags that make it fast."""
        return self._trainer(**BEST)

    def _trainer(self, **flags: Any) -> float:
        # the tokens in litlab's cache, as a data set of the datasets library
        columns = {name: self.data.splits["train"].ragged(name) for name in ("text", "summary")}
        rows = range(EXAMPLES)
        texts, labels = (
            [column.values[column.starts[row] :][: column.lengths[row]].tolist() for row in rows]
            for column in columns.values()
        )
        masks, lengths = [[1] * len(text) for text in texts], list(map(len, texts))
        dataset = Dataset.from_dict({"input_ids": texts, "attention_mask": masks, "labels": labels, "length": lengths})
        # the model of the experiment as transformers makes it
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=self.data.vocab_size,
            d_model=256,
            d_kv=64,
            d_ff=1024,
            num_layers=3,
            num_heads=4,
            dropout_rate=self.dropout,
            feed_forward_proj="gated-silu",
            decoder_start_token_id=0,
        )
        model, tokenizer = T5ForConditionalGeneration(config), self.data.tokenizer
        settings = arguments(per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE, **flags)
        peer = Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(**settings),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        return EXAMPLES / seconds_of_trainer(peer)


def main() -> None:
    """Run the race and report examples per second."""
    room = Path(tempfile.mkdtemp())
    os.environ["LITLAB_RUNS"] = os.environ[ROOM] = str(room)
    write_pairs(room)
    rows, unit = [], "examples/s"
    for dropout in ("0.1", "0.0"):
        say(f"dropout {dropout}")
        names = ("litlab", "best", "default")
        contenders = {name: apart("benchmarks.t5", f"{name} {dropout}") for name in names}
        slow = {"litlab": contenders["litlab"], "default": contenders.pop("default")}
        medians, slow_medians = race(contenders, ROUNDS), race(slow, SLOW_ROUNDS)
        what = f"t5_sum training, dropout {dropout}, against Seq2SeqTrainer with"
        rows += [
            faster(f"{what} default flags", slow_medians, "litlab", "default", unit, 4, 6),
            faster(f"{what} best flags", medians, "litlab", "best", unit, 1.7, 2.5),
        ]
    report(rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        who, rate = sys.argv[1].split()
        serve(getattr(Contest(Path(os.environ[ROOM]), float(rate)), who))
    else:
        main()
