"""Tests and measures what only a GPU can show, and prints one table: python -m benchmarks.on_gpu [--smallest] [--out FILE].

Needs one GPU, no network and no Hub: models have random weights, texts are random words of the lengths of real ones. The tests
(tests/project/test_gpu.py) run while the contenders start; then the contenders take turns, each in a process of its own. A part
that fails is named in the table and does not stop the others.
"""

import argparse
import gc
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import mnist
from benchmarks.bench import facts
from benchmarks.race import ROOM, Row, apart, report, say, serve, write_jsonl
from benchmarks.trainers import BEST, arguments
from litlab.cli.commands import fit_command
from litlab.nn.fast_transformers import speed_up
from project.data.mnist import DEVIATION, MEAN, MNIST
from project.models.t5_summarizer import T5Summarizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALLEST = "LITLAB_BENCH_SMALLEST"  # tells contenders that --smallest was given
SMALL = bool(os.environ.get(SMALLEST))
STEPS = 5 if SMALL else 20  # optimizer steps that are timed, after as many that warm up
ROUNDS = 1 if SMALL else 3  # turns of each contender, after one that warms up
SECONDS = 120 if SMALL else 340  # after which no turn begins any more, so that all of it ends in three or seven minutes
AT_ONCE = 6  # contenders that warm up at the same time, as far as the GPU's memory reaches
IMAGES = 6_000 if SMALL else 60_000  # of the synthetic MNIST
STARTED = time.monotonic()
WORKERS = min(8, os.cpu_count() or 1)  # processes of a peer's DataLoader
LIMIT = 32 if SMALL else 128  # tokens of each summary in the decoding contest
TEXTS = 64 if SMALL else 256  # texts in the decoding contest
BERT: dict[str, Any] = {}  # BertConfig's own sizes are those of BERT-base
T5: dict[str, Any] = {"decoder_start_token_id": 0}  # T5Config's own sizes are those of T5-small
SETS = {  # batch size, tokens of a text: median, spread of the logarithm, at most (special tokens included)
    "mixed": (32, 100, 0.8, 512),
    "mrpc": (32, 53, 0.3, 128),  # of both sentences
    "imdb": (16, 230, 0.6, 512),
    "cnn": (32, 800, 0.5, 512),
}
SUMMARY = (65, 0.4, 128)  # tokens of a CNN/DailyMail summary: median, spread of the logarithm, at most
# what is compared: the work, ours, the peer, the unit, the ratio below which ours is not worth its code
RATIOS: tuple[tuple[str, str, str, str, float | None], ...] = (
    ("MNIST training, batch 64, against Lightning's Trainer", "mnist", "mnist_lightning", "images/s", None),
    ("BERT-base, mixed lengths up to 512, against Trainer with best flags", "bert", "bert_trainer", "tokens/s", 1.3),
    ("... without padding against litlab with padding", "bert", "bert_padded", "tokens/s", 1.3),
    ("bert_mrpc without padding against litlab with padding", "mrpc", "mrpc_padded", "tokens/s", 1.3),
    ("bert_mrpc with torch.compile against litlab without", "mrpc_compiled", "mrpc", "tokens/s", 1.3),
    ("bert_imdb without padding against litlab with padding", "imdb", "imdb_padded", "tokens/s", 1.3),
    ("T5-small greedy decoding against model.generate, static cache", "t5", "t5_static", "tokens/s", 1.3),
    ("T5-small greedy decoding against model.generate", "t5", "t5_dynamic", "tokens/s", 1.3),
)


def moment() -> float:
    """Seconds, after the GPU has finished all work so far."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class SecondHalf(Callback):
    """Times the second half of an epoch and counts its tokens, or its examples; in the first half, kernels are chosen or compiled.

    Class attributes, because the command line builds the instance.
    """

    began = ended = 0.0
    batches: ClassVar[list[Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock at the middle."""
        if batch_idx == trainer.num_training_batches // 2:
            SecondHalf.batches, SecondHalf.began = [], moment()
        SecondHalf.batches.append(batch)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Stop the clock at the end."""
        if trainer.is_last_batch:
            SecondHalf.ended = moment()

    @classmethod
    def speed(cls) -> float:
        """Tokens/s, of labels too, or examples/s."""
        amount = 0
        for batch in cls.batches:
            if not isinstance(batch, dict):
                amount += len(batch[0])
            elif "attention_mask" in batch:
                amount += int(batch["attention_mask"].sum())
                amount += int((batch["labels"] >= 0).sum()) if "labels" in batch else 0
            else:
                amount += len(batch["id"])
        cls.batches = []
        return amount / (cls.ended - cls.began)


class TrainersSecondEpoch(TrainerCallback):
    """Times the second epoch of the Trainer of transformers."""

    began = ended = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Overwritten by each epoch."""
        self.began = moment()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Overwritten by each epoch."""
        self.ended = moment()


def lengths(count: int, median: float, spread: float, most: int, seed: int = 0) -> list[int]:
    """Tokens of each text, log-normal, from 8 to `most`."""
    draws = random.Random(seed)
    return [min(most, max(8, round(draws.lognormvariate(math.log(median), spread)))) for _ in range(count)]


def write_models(room: Path) -> None:
    """A BERT-base and a T5-small with random weights, and tokenizers with one token per word."""
    words = [f"w{number}" for number in range(30_000)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: row for row, word in enumerate([*special, *words])}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(room / "bert")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**BERT)).save_pretrained(room / "bert")
    vocabulary = {word: row for row, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 512}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(room / "t5")
    t5().cpu().save_pretrained(room / "t5")


def write_data(room: Path) -> None:
    """Texts of each set's lengths, and a synthetic MNIST, as files."""
    draws = random.Random(0)
    words = [f"w{number}" for number in range(30_000)]

    def text(tokens: int) -> str:
        return " ".join(draws.choices(words, k=max(1, tokens)))

    for name, (batch, median, spread, most) in SETS.items():
        (room / name).mkdir()
        for split, count in (("train", 2 * STEPS * batch), ("validation", batch), ("test", batch)):
            targets = lengths(count, *SUMMARY, seed=1)
            rows = [
                {"text": text(size - 2), "label": row % 2, "summary": text(targets[row] - 1)}
                for row, size in enumerate(lengths(count, median, spread, most))
            ]
            write_jsonl(room / name / f"{split}.jsonl", rows)
    pixels = np.random.default_rng(0)
    (room / "mnist").mkdir()
    for name, count in (("train", IMAGES), ("t10k", 1_000)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = (pixels.integers(0, 50, (count, 28, 28)) + 20 * labels[:, None, None]).astype(np.uint8)
        header = np.array([0x803, count, 28, 28], ">u4").tobytes()
        (room / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, count], ">u4").tobytes()
        (room / "mnist" / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


class Contest:
    """The contenders. Each does its work once and returns its speed; `_peak` holds the most GPU memory, in bytes.

    Args:
        room: folder of the models and the data files.
    """

    def __init__(self, room: Path) -> None:
        self.room = room

    def mnist(self) -> float:
        """`litlab fit`: images/s."""
        return self._fit(*mnist.SETTINGS, f"--data.validation_size={IMAGES // 12}", self._source("mnist"))

    def mnist_lightning(self) -> float:
        """Lightning's Trainer, with normalized images and a DataLoader with workers: images/s."""
        data = MNIST(str(self.room / "mnist"), validation_size=IMAGES // 12)
        data.setup()
        images = (data.images["train"][: data.train_size].float() / 255 - MEAN) / DEVIATION
        digits = TensorDataset(images, data.labels["train"][: data.train_size])
        workers: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True, "pin_memory": True}
        loader: DataLoader[Any] = DataLoader(digits, mnist.BATCH, shuffle=True, **workers)
        off = dict.fromkeys(
            ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False
        )  # litlab has all of these on
        LightningTrainer(devices=1, max_epochs=1, callbacks=[SecondHalf()], **off).fit(mnist.Plain(), loader)
        return SecondHalf.speed()

    def bert(self) -> float:
        """`litlab fit` on mixed lengths, without padding: tokens/s."""
        return self._bert("bert_cls", "mixed")

    def bert_padded(self) -> float:
        """The same with padding: tokens/s."""
        return self._bert("bert_cls", "mixed", "--model.padding_free=false")

    def bert_trainer(self) -> float:
        """Trainer with the flags of a careful user: tokens/s."""
        batch, *shape = SETS["mixed"]
        tokenizer = AutoTokenizer.from_pretrained(self.room / "bert")
        rows = [json.loads(line) for line in (self.room / "mixed" / "train.jsonl").read_text().splitlines()]
        tokens = [tokenizer(row["text"], truncation=True, max_length=512) for row in rows]
        columns = [
            {**encoded, "label": row["label"], "length": len(encoded["input_ids"])}
            for row, encoded in zip(rows, tokens, strict=True)
        ]
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(self.room / "bert", dtype=torch.float32)
        loading = {"dataloader_num_workers": WORKERS, "dataloader_persistent_workers": True}
        settings = {**BEST, **loading, "num_train_epochs": 2, "use_cpu": DEVICE.type == "cpu"}
        trainer = Trainer(
            model,
            TrainingArguments(**arguments(per_device_train_batch_size=batch, learning_rate=1e-4, **settings)),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=Dataset.from_list(columns),
            processing_class=tokenizer,
        )
        clock = TrainersSecondEpoch()
        trainer.add_callback(clock)
        trainer.train()
        return sum(lengths(2 * STEPS * batch, *shape)) / (clock.ended - clock.began)

    def mrpc(self) -> float:
        """bert_mrpc without padding: tokens/s."""
        return self._bert("bert_mrpc", "mrpc")

    def mrpc_padded(self) -> float:
        """bert_mrpc with padding: tokens/s."""
        return self._bert("bert_mrpc", "mrpc", "--model.padding_free=false")

    def mrpc_compiled(self) -> float:
        """bert_mrpc with torch.compile, without padding: tokens/s."""
        return self._bert("bert_mrpc", "mrpc", "--model.compile=true")

    def imdb(self) -> float:
        """bert_imdb without padding: tokens/s."""
        return self._bert("bert_imdb", "imdb")

    def imdb_padded(self) -> float:
        """bert_imdb with padding: tokens/s."""
        return self._bert("bert_imdb", "imdb", "--model.padding_free=false")

    def cnn(self) -> float:
        """t5_cnn_dailymail, training: tokens/s of texts and summaries."""
        columns = ("--data.text=text", "--data.summary=summary", "--data.configuration=null")
        options = (self._source("cnn"), *columns, f"--model.pretrained={self.room / 't5'}")
        return self._fit(*self._experiment("t5_cnn_dailymail"), *options)

    def t5(self) -> float:
        """Greedy decoding as `litlab eval` does it with one beam: tokens/s."""
        module = T5Summarizer(max_new_tokens=LIMIT)
        module.network = t5()
        speed_up(module.network)
        return self._decode(module.eval().generate, mixed=True)

    def t5_static(self) -> float:
        """`generate` with a static cache, whose step it compiles: tokens/s."""
        return self._generate(cache_implementation="static")

    def t5_dynamic(self) -> float:
        """`generate` as it comes: tokens/s."""
        return self._generate()

    def _experiment(self, name: str) -> tuple[str, ...]:
        off = ("--trainer.limit_val_batches=0", "--checkpoint.monitor=null")  # training is compared
        return "-c", f"configs/experiment/{name}.yaml", *off

    def _source(self, name: str) -> str:
        return f"--data.source={self.room / name}"

    def _bert(self, experiment: str, texts: str, *more: str) -> float:
        batch, *shape = SETS[texts]
        columns = ("--data.text=text", "--data.text_pair=null", "--data.label=label", "--data.configuration=null")
        splits = ("--data.validation=validation", "--data.test=test")
        sizes = (f"--data.batch_size={batch}", f"--data.max_length={shape[-1]}", "--trainer.precision=bf16-mixed")
        options = (self._source(texts), *columns, *splits, *sizes, f"--model.pretrained={self.room / 'bert'}")
        return self._fit(*self._experiment(experiment), *options, *more)

    def _fit(self, *options: str) -> float:
        """Speed of `litlab fit` for one epoch; its run directory is deleted."""
        runs = Path(tempfile.mkdtemp(dir=self.room))
        os.environ["LITLAB_RUNS"] = str(runs)
        ours = ("--trainer.max_epochs=1", "--trainer.devices=1", "--trainer.logger=false", "--checkpoint.save_top_k=0")
        fit_command([*options, *ours, "--trainer.callbacks+=benchmarks.on_gpu.SecondHalf"])
        shutil.rmtree(runs)
        return SecondHalf.speed()

    def _generate(self, **settings: Any) -> float:
        network = t5().to(torch.bfloat16)
        settings |= {"max_new_tokens": LIMIT, "do_sample": False, "num_beams": 1}
        return self._decode(lambda batch: network.generate(**batch, **settings)[:, 1:], mixed=False)

    def _decode(self, generate: Callable[[dict[str, Any]], Tensor], mixed: bool) -> float:
        """Tokens/s of the second pass over the texts."""
        tokens, seconds = 0, 0.0
        for _ in range(2):
            tokens, began = 0, moment()
            with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
                for batch in t5_batches():
                    tokens += generate(batch).numel()
            seconds = moment() - began
        return tokens / seconds


def t5() -> T5ForConditionalGeneration:
    """A T5-small with random weights that never ends a summary, so that all contenders write as many tokens."""
    torch.manual_seed(0)
    network = T5ForConditionalGeneration(T5Config(**T5)).eval().to(DEVICE)
    network.shared.weight.data[network.config.eos_token_id] = 0  # other tokens are more probable
    return network


def t5_batches() -> list[dict[str, Tensor]]:
    """Texts of mixed lengths as tokens, longest first as in an evaluation, (batch, a multiple of 64, for a static cache)."""
    batch, *shape = SETS["mixed"]
    counts = torch.tensor(sorted(lengths(TEXTS, *shape, seed=2), reverse=True))
    batches = []
    for part in counts.split(batch):
        real = torch.arange(-(-int(part.max()) // 64) * 64) < part[:, None]
        tokens = torch.randint(2, T5Config(**T5).vocab_size - 1, real.shape, generator=torch.Generator().manual_seed(0))
        batches.append({"input_ids": (tokens * real).to(DEVICE), "attention_mask": real.long().to(DEVICE)})
    return batches


def turn(name: str, room: Path) -> Callable[[], float]:
    """A contender's turn in this process: its speed, while its peak of GPU memory goes into a file."""

    def take() -> float:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        speed = getattr(Contest(room), name)()
        if DEVICE.type == "cuda":
            (room / f"{name}.memory").write_text(str(torch.cuda.max_memory_allocated()))
            gc.collect()
            torch.cuda.empty_cache()  # the next contender may need it
        return speed

    return take


def start_tests(room: Path) -> subprocess.Popen[bytes]:
    """Start the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "tests/project/test_gpu.py", f"--junitxml={room / 'tests.xml'}"]
    command += ["-o", "filterwarnings=default", "--tb=short"]
    return subprocess.Popen(command, stdout=(room / "tests.log").open("wb"), stderr=subprocess.STDOUT)


def outcomes(room: Path) -> list[tuple[str, str, float]]:
    """Name, outcome and seconds of each test."""
    if not (room / "tests.xml").exists():
        return [("tests/project/test_gpu.py", "failed to run", 0.0)]
    found = []
    for case in ET.parse(room / "tests.xml").getroot().iter("testcase"):
        failures = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found.append((str(case.get("name")), (failures or ["passed"])[0], float(case.get("time", 0))))
    return found


def contest(names: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Let the contenders warm up, a few at a time, and then take turns.

    Args:
        names: methods of Contest.

    Returns:
        The median of each contender's speeds, and the error of each one that failed.
    """
    contenders = {name: apart("benchmarks.on_gpu", name) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    failures: dict[str, str] = {}

    def attempt(name: str, round_number: int) -> None:
        began = time.monotonic()
        try:
            speed = contenders[name]()
        except SystemExit as error:  # its process has ended
            failures[name] = str(error)
            say(f"{name:<16} failed: {error}")
            return
        say(f"round {round_number}  {name:<16} {speed:12,.0f}/s   took {time.monotonic() - began:.0f} s")
        if round_number:
            speeds[name].append(speed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(attempt, names, [0] * len(names)))
    for round_number in range(1, ROUNDS + 1):
        for name in names:
            if name not in failures and time.monotonic() - STARTED < SECONDS:
                attempt(name, round_number)
    return {name: statistics.median(values) for name, values in speeds.items() if values}, failures


def rows_of(medians: dict[str, float]) -> list[Row]:
    """The comparisons; without figures where a contender has none."""
    rows = []
    for what, ours, theirs, unit, required in RATIOS:
        one, other = medians.get(ours), medians.get(theirs)
        measured = one is not None and other is not None
        ratio = one / other if one is not None and other is not None else None
        rows.append(Row(f"GPU: {what}", one if measured else None, other if measured else None, unit, ratio, required))
    return rows


def main() -> None:
    """Test, measure, print the table and hand the figures to `bench.py` or to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smallest", action="store_true", help="every part at its smallest, in under three minutes")
    parser.add_argument(
        "--out", type=Path, help="file for the figures: benchmarks/results/on_gpu.json for BENCHMARKS.md"
    )
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        say("on_gpu: this machine has no GPU that torch can use: nothing was measured.")
        report(rows_of({}), ["on_gpu: this machine has no GPU."])
        return
    if options.smallest and not SMALL:
        os.environ[SMALLEST] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.on_gpu", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        os.environ[ROOM] = str(room)
        tests = start_tests(room)
        write_models(room)
        write_data(room)
        say(f"models and data written after {time.monotonic() - STARTED:.0f} s")
        names = [name for name in vars(Contest) if not name.startswith("_")]
        names.sort(key=lambda name: not name.endswith(("_compiled", "_static")))  # these warm up longest
        medians, failures = contest(names)
        tests.wait()
        notes = [f"on_gpu: test {name}: {outcome}, {seconds:.0f} s." for name, outcome, seconds in outcomes(room)]
        for name in names:
            memory = room / f"{name}.memory"
            peak = f", {int(memory.read_text()) / 1e9:.1f} GB of GPU memory at most" if memory.exists() else ""
            speed = f"{medians[name]:,.0f}/s" if name in medians else f"failed ({failures.get(name)})"
            notes.append(f"on_gpu: {name}: {speed}{peak}.")
        say((room / "tests.log").read_text()[-6000:])
    command = "python -m benchmarks.on_gpu" + (" --smallest" if SMALL else "")
    content = {**facts(command), "rows": [asdict(row) for row in rows_of(medians)], "notes": notes}
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    say("\n".join(notes))
    for row in rows_of(medians):
        say(f"{row.what:<90} {'not measured' if row.ratio is None else f'{row.ratio:.2f} x'}")
    say(f"in {(time.monotonic() - STARTED) / 60:.1f} minutes on {content['hardware']}")
    report(rows_of(medians), notes)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        from benchmarks import on_gpu  # the module whose SecondEpoch the command line imports

        serve(on_gpu.turn(sys.argv[1], Path(os.environ[ROOM])))
    else:
        main()
