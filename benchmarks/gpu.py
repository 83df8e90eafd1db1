"""On a GPU: MNIST that stays there, BERT-base without padding, T5-small decoding from a recording; without one, "not measured"."""

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import mnist
from benchmarks.race import ROOM, Row, apart, faster, race, report, say, serve, write_jsonl
from benchmarks.trainers import BEST, arguments
from litlab.cli.commands import fit_command
from litlab.nn.fast_transformers import speed_up
from project.data.mnist import DEVIATION, MEAN, MNIST
from project.models.t5_summarizer import T5Summarizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES = 55_000  # of MNIST's training split
ROUNDS, BATCH, STEPS, LONGEST = 3, 32, 100, 512
BERT: dict[str, Any] = {}  # BertConfig's own sizes are BERT-base's
T5: dict[str, Any] = {"decoder_start_token_id": 0}  # and T5Config's T5-small's
TEXTS, LIMIT = 8 * BATCH, 128  # to be summarized, and the tokens of each summary
WORKERS = min(8, os.cpu_count() or 1)  # processes of a peer's DataLoader
MNIST_ROW = "MNIST epoch on a GPU, batch 64, against Lightning's Trainer with a DataLoader"
BERT_ROW = "BERT-base training on a GPU, bf16, mixed lengths up to 512, against Trainer with best flags"
T5_ROWS = {
    "static": "T5-small decoding on a GPU, bf16, 128 tokens, against model.generate with a static cache",
    "dynamic": "T5-small decoding on a GPU, bf16, 128 tokens, against model.generate",
}


def moment() -> float:
    """Seconds, when the GPU has done what it was told to do so far."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class SecondEpoch(Callback):
    """Notes when the second epoch of a training begins and ends: in the first, kernels are chosen or compiled.

    Class attributes, because the command line makes the instance.
    """

    began = ended = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The last call counts."""
        SecondEpoch.began = moment()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """The last call counts."""
        if trainer.is_last_batch:
            SecondEpoch.ended = moment()


class TrainersSecondEpoch(TrainerCallback):
    """The same of a Trainer of transformers."""

    began = ended = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last call counts."""
        self.began = moment()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last call counts."""
        self.ended = moment()


def lengths(count: int, seed: int) -> list[int]:
    """Tokens of texts as they are: many short ones and a few long ones, of LONGEST at most, special tokens included."""
    draws = random.Random(seed)
    return [min(LONGEST, max(8, round(draws.lognormvariate(math.log(LONGEST / 5), 0.8)))) for _ in range(count)]


def write_bert(room: Path) -> None:
    """A BERT with random weights, a tokenizer with one token per word, and texts for it."""
    words = [f"w{number}" for number in range(BertConfig(**BERT).vocab_size - 5)]
    vocabulary = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizer(vocab=vocabulary, model_max_length=LONGEST).save_pretrained(room / "model")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**BERT)).save_pretrained(room / "model")
    draws = random.Random(0)

    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        texts = (" ".join(draws.choices(words, k=length - 2)) for length in lengths(count, seed))
        return [{"text": text, "label": row % 2} for row, text in enumerate(texts)]

    write_jsonl(room / "train.jsonl", rows(STEPS * BATCH, 0))
    for split in ("validation", "test"):
        write_jsonl(room / f"{split}.jsonl", rows(BATCH, 1))


class Contest:
    """The contenders; those that train BERT note their peak of memory.

    Args:
        room: folder of the data files.
    """

    def __init__(self, room: Path) -> None:
        self.room = room

    def mnist_litlab(self) -> float:
        """`litlab fit`: images/s."""
        self._fit(*mnist.SETTINGS)
        return IMAGES / (SecondEpoch.ended - SecondEpoch.began)

    def mnist_lightning(self) -> float:
        """Lightning's Trainer, with images that are normalised already and workers that fetch them: images/s."""
        data = MNIST()
        data.setup()
        images = (data.images["train"][: data.train_size].float() / 255 - MEAN) / DEVIATION
        digits = TensorDataset(images, data.labels["train"][: data.train_size])
        loader: DataLoader[Any] = DataLoader(
            digits, mnist.BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, pin_memory=True
        )
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = LightningTrainer(
            devices=1, max_epochs=2, callbacks=[SecondEpoch()], enable_model_summary=False, **quiet
        )
        trainer.fit(mnist.Plain(), loader)
        return IMAGES / (SecondEpoch.ended - SecondEpoch.began)

    def bert_litlab(self) -> float:
        """`litlab fit`: tokens/s."""
        return self._bert("bert_litlab")

    def bert_litlab_compiled(self) -> float:
        """`litlab fit` with torch.compile: tokens/s."""
        return self._bert("bert_litlab_compiled", "--model.compile=true")

    def bert_best(self) -> float:
        """Trainer as a careful user calls it: tokens/s."""
        return self._trainer("bert_best")

    def bert_best_compiled(self) -> float:
        """The same with torch.compile: tokens/s."""
        return self._trainer("bert_best_compiled", torch_compile=True)

    def t5_litlab(self) -> float:
        """As `litlab eval` does it: tokens/s."""
        module = T5Summarizer(max_new_tokens=LIMIT)
        module.network = t5()
        speed_up(module.network)
        return self._summaries(module.eval().generate, mixed=True)

    def t5_static(self) -> float:
        """`generate` with a static cache, which it compiles: tokens/s."""
        return self._generate(cache_implementation="static")

    def t5_dynamic(self) -> float:
        """`generate`: tokens/s."""
        return self._generate()

    def _fit(self, *options: str) -> None:
        options = (*options, "--trainer.devices=1", "--trainer.callbacks+=benchmarks.gpu.SecondEpoch")
        fit_command([*options])

    def _bert(self, name: str, *more: str) -> float:
        model = f"--model.pretrained={self.room / 'model'}"
        files = ["-c", "configs/experiment/bert_cls.yaml", f"--data.source={self.room}", "--checkpoint.monitor=null"]
        sizes = [f"--data.batch_size={BATCH}", f"--data.max_length={LONGEST}", "--trainer.max_epochs=2"]
        precision = ["--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=0"]
        return self._tokens_per_second(name, lambda: self._fit(*files, model, *sizes, *precision, *more), SecondEpoch)

    def _trainer(self, name: str, **flags: Any) -> float:
        tokenizer = AutoTokenizer.from_pretrained(self.room / "model")
        rows = [json.loads(line) for line in (self.room / "train.jsonl").read_text().splitlines()]
        tokens = [tokenizer(row["text"], truncation=True, max_length=LONGEST) for row in rows]
        dataset = Dataset.from_list(
            [
                {**made, "label": row["label"], "length": len(made["input_ids"])}
                for row, made in zip(rows, tokens, strict=True)
            ]
        )
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(self.room / "model", dtype=torch.float32)
        loading = {"dataloader_num_workers": WORKERS, "dataloader_persistent_workers": True}
        settings = {**BEST, **loading, "num_train_epochs": 2, "use_cpu": DEVICE.type == "cpu", **flags}
        peer = Trainer(
            model,
            TrainingArguments(**arguments(per_device_train_batch_size=BATCH, learning_rate=1e-4, **settings)),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        clock = TrainersSecondEpoch()
        peer.add_callback(clock)
        return self._tokens_per_second(name, peer.train, clock)

    def _tokens_per_second(self, name: str, train: Callable[[], Any], clock: Any) -> float:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        train()
        peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
        (self.room / f"{name}.memory").write_text(str(peak))
        return sum(lengths(STEPS * BATCH, 0)) / (clock.ended - clock.began)

    def _generate(self, **settings: Any) -> float:
        network = t5().to(torch.bfloat16)
        settings |= {"max_new_tokens": LIMIT, "do_sample": False, "num_beams": 1}
        return self._summaries(lambda batch: network.generate(**batch, **settings)[:, 1:], mixed=False)

    def _summaries(self, generate: Callable[[dict[str, Any]], Tensor], mixed: bool) -> float:
        """Tokens/s of the second pass over the texts; their lengths are rounded up to 64, as a static cache wants it."""
        tokens, seconds = 0, 0.0
        for _ in range(2):
            tokens, began = 0, moment()
            with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                for batch in t5_batches():
                    tokens += generate(batch).numel()
            seconds = moment() - began
        return tokens / seconds


def t5() -> T5ForConditionalGeneration:
    """A T5-small with random weights that never ends a summary: all contenders write as many tokens."""
    torch.manual_seed(0)
    network = T5ForConditionalGeneration(T5Config(**T5)).eval().to(DEVICE)
    network.shared.weight.data[network.config.eos_token_id] = 0  # of other tokens, some are more probable
    return network


def t5_batches() -> list[dict[str, Tensor]]:
    """Texts of mixed lengths as tokens, longest first as in an evaluation, (batch, a multiple of 64)."""
    counts = torch.tensor(sorted(lengths(TEXTS, 2), reverse=True))
    batches = []
    for part in counts.split(BATCH):
        real = torch.arange(-(-int(part.max()) // 64) * 64) < part[:, None]
        tokens = torch.randint(2, T5Config(**T5).vocab_size - 1, real.shape, generator=torch.Generator().manual_seed(0))
        batches.append({"input_ids": (tokens * real).to(DEVICE), "attention_mask": real.long().to(DEVICE)})
    return batches


def flops_per_epoch() -> float:
    """What BERT has to compute for the real tokens, forward and backward (Chowdhery et al., 2022, appendix B)."""
    config, counts = BertConfig(**BERT), lengths(STEPS * BATCH, 0)
    weights = config.num_hidden_layers * config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    attention = 12 * config.num_hidden_layers * config.hidden_size * sum(length**2 for length in counts)
    return 6.0 * weights * sum(counts) + attention


def main() -> None:
    """Race, and report images or tokens per second, memory and utilization."""
    if DEVICE.type != "cuda":
        rows = [
            (MNIST_ROW, "images/s", None),
            (BERT_ROW, "tokens/s", 1.3),
            *((row, "tokens/s", 2) for row in T5_ROWS.values()),
        ]
        report([Row(what, None, None, unit, None, must) for what, unit, must in rows], ["gpu: this machine has none."])
        return
    room = Path(tempfile.mkdtemp())
    os.environ["LITLAB_RUNS"] = os.environ[ROOM] = str(room)
    write_bert(room)
    names = [name for name in vars(Contest) if not name.startswith("_")]
    medians = race({name: apart("benchmarks.gpu", name) for name in names}, ROUNDS)
    berts = [name for name in names if name.startswith("bert_")]
    peak = get_available_flops(DEVICE, torch.bfloat16)
    epoch_tokens = sum(lengths(STEPS * BATCH, 0))
    notes = []
    for name in berts:
        memory = int((room / f"{name}.memory").read_text()) / 1e9
        flops = flops_per_epoch() / epoch_tokens * medians[name]
        share = f"{flops / peak:.0%} of its peak" if peak else "peak unknown"
        notes.append(
            f"gpu: {name} {medians[name]:,.0f} tokens/s, {memory:.1f} GB at most, {flops / 1e12:.0f} TFLOP/s, {share}."
        )
    say("\n".join(notes))
    ours, theirs = (
        max((name for name in berts if part in name), key=medians.__getitem__) for part in ("litlab", "best")
    )
    report(
        [
            faster(MNIST_ROW, medians, "mnist_litlab", "mnist_lightning", "images/s"),
            faster(f"{BERT_ROW} ({ours}, {theirs})", medians, ours, theirs, "tokens/s", 1.3),
            *(faster(row, medians, "t5_litlab", f"t5_{peer}", "tokens/s", 2) for peer, row in T5_ROWS.items()),
        ],
        notes,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(getattr(Contest(Path(os.environ[ROOM])), sys.argv[1]))
    else:
        main()
