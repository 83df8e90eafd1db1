"""Whatever a person gets wrong is answered with exit status 2 and one sentence, and nothing is lost."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import make_project

from litlab.__main__ import main
from litlab.__main__ import run as run_command
from litlab.runs.directory import RunDirectory


@dataclass
class Case:
    """One mistake.

    Args:
        name: what was done wrong.
        command: what follows `litlab` on the command line.
        words: parts of the sentence, in this order: the place, and what would be right.
        files: files of the project that are written before.
        steps: what else is done before, in the project folder.
        environment: variables that are set.
    """

    name: str
    command: str
    words: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    steps: list[Callable[[], Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


# what most commands begin with
MNIST = "fit -c configs/experiment/mnist_mlp.yaml"
OVERLAY = f"{MNIST} -c overlay.yaml"
TEXTS = "fit -c configs/experiment/bert_cls.yaml --model.pretrained=bert --data.max_length=null --data.source="
SUMMARIES = "fit -c configs/experiment/t5_sum.yaml --data.source="

# the finished runs of the project
RUN, TEXT_RUN = "runs/mnist_mlp/latest", "runs/bert_cls/latest"
BEST, LAST = f"{RUN}/checkpoints/best.ckpt", f"{RUN}/checkpoints/last.ckpt"


def remove(name: str) -> Callable[[], Any]:
    return lambda: shutil.rmtree(name) if os.path.isdir(name) else os.remove(name)


def copy(name: str, target: str) -> Callable[[], Any]:
    return lambda: shutil.copy(name, target)


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[], Any]:
    return lambda: Path(name).write_bytes(how(Path(name).read_bytes()))


def flip_a_bit(name: str) -> Callable[[], Any]:
    return change(name, lambda content: content[:99_999] + bytes([content[99_999] ^ 1]) + content[100_000:])


def save(content: Any, checkpoint: str) -> Callable[[], Any]:
    return lambda: torch.save(content, checkpoint)


def drop(part: str, checkpoint: str) -> Callable[[], Any]:
    def step() -> None:
        content = torch.load(checkpoint, weights_only=True)
        del content[part]
        torch.save(content, checkpoint)

    return step


def interrupt(run: str) -> Callable[[], Any]:
    """Let a run look as if it had been stopped."""
    return change(f"{run}/run.json", lambda content: content.replace(b'"finished"', b'"interrupted"'))


def use(run: str) -> Callable[[], Any]:
    """Work on a run: this process lives."""
    return lambda: RunDirectory(Path(run)).acquire()


class Code:
    """What a checkpoint must not hold."""

    def __reduce__(self) -> tuple:
        return os.system, ("echo exploited",)


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


COMMANDS = [
    Case("an unknown command", "evla latest", ["there is no command 'evla'", "did you mean 'eval'", "fit, eval"]),
    Case("an option instead of a command", "--model.hidden=64", ["no command '--model.hidden=64'", "fit, eval"]),
    Case("fit of nothing", "fit", ["nothing says which data and model to use", "-c configs/experiment/<name>.yaml"]),
    Case("-c without a file", "fit -c", ["-c needs a file", "-c configs/experiment/<name>.yaml"]),
    Case("--config without a file", "fit --config", ["--config needs a file", "-c configs/experiment/<name>.yaml"]),
    Case(
        "-c with a missing file", "fit -cmissing.yaml", ["missing.yaml is not a file", "-c takes a YAML file such as"]
    ),
    Case("-c with a name that is too long", f"fit -c {'x' * 999}.yaml", ["xxx", "-c takes a YAML file such as"]),
    Case("-c with a folder", "fit -c configs", ["configs is not a file", "configs/experiment/<name>.yaml"]),
    Case("-c with a data file", "fit -c reviews.csv", ["reviews.csv must hold settings as `key: value` lines"]),
    Case("make without EXP", "fit -c configs/experiment/.yaml", ["no experiment is named", "mnist_mlp", "EXP=<name>"]),
    Case(
        "a misspelt experiment",
        "fit -c configs/experiment/mnist_mpl.yaml",
        ["no experiment 'mnist_mpl'", "did you mean 'mnist_mlp'", "known are", "bert_cls"],
    ),
    Case(
        "a misspelt overlay",
        f"{MNIST} -c configs/hardware/dpd.yaml",
        ["no hardware 'dpd'", "did you mean 'ddp'", "known are cpu, ddp, fsdp, gpu"],
    ),
    Case("a word that is no option", f"{MNIST} surplus", ["surplus: this is no option", "options begin with --"]),
    Case("an unknown option", f"{MNIST} --max_epochs=3", ["--max_epochs=3", "did you mean 'trainer.max_epochs'"]),
    Case(
        "help on a class that does not exist",
        "fit -c own.yaml --help",
        ["own.yaml: model.class_path 'own.Model' is no class that can be imported"],
        {"own.yaml": "model: {class_path: own.Model}\n"},
    ),
    Case("--resume without a run", "fit --resume", ["--resume needs a run", "latest, an experiment, a run id", "auto"]),
    Case("--fork without a run", "fit --fork --model.hidden=64", ["--fork needs a run", "latest, an experiment"]),
    Case("--init without a run", f"{MNIST} --init=", ["--init needs a run", "latest, an experiment"]),
    Case(
        "--resume of no run", "fit --resume=nothing", ["no run 'nothing' in", "the newest are mnist_mlp/", "bert_cls/"]
    ),
    Case("--fork of no run", f"{MNIST} --fork=nothing", ["no run 'nothing' in", "the newest are mnist_mlp/"]),
    Case("--init of no run", f"{MNIST} --init=nothing", ["no run 'nothing' in", "the newest are mnist_mlp/"]),
    Case(
        "--init of no file", f"{MNIST} --init=missing.ckpt", ["missing.ckpt is not a file", "a run or one of the .ckpt"]
    ),
    Case("--init of a file alone", f"fit --init={BEST}", ["--init with a checkpoint file needs an experiment", "-c"]),
    Case("--fork and --init", "fit --fork=latest --init=latest", ["--fork and --init exclude each other"]),
    Case("--resume and --fork", "fit --resume=latest --fork=mnist_mlp", ["--resume RUN, --fork", "exclude each other"]),
    Case(
        "--resume=auto of nothing", "fit --resume=auto", ["--resume=auto needs an experiment", "-c configs/experiment/"]
    ),
    Case("eval of nothing", "eval", ["required: run", "as in litlab eval latest"]),
    Case("eval of no run", "eval nothing", ["no run 'nothing' in", "the newest are mnist_mlp/", "bert_cls/"]),
    Case("eval of a name that is too long", f"eval {'x' * 999}", ["no run 'xxx", "the newest are mnist_mlp/"]),
    Case("eval of a folder that is no run", "eval configs", ["no run 'configs' in", "the newest are mnist_mlp/"]),
    Case(
        "eval before there are runs",
        "eval latest",
        ["no run 'latest' in", "elsewhere", "there are none yet: make train EXP=mnist_mlp makes one"],
        environment={"LITLAB_RUNS": "elsewhere"},
    ),
    Case("an unknown split", "eval latest --split=tset", ["--split: invalid choice: 'tset'", "val", "test"]),
    Case("a split without name", "eval latest --split", ["--split: expected one argument", "--split=val"]),
    Case("an unknown checkpoint", "eval latest --checkpoint=newest", ["--checkpoint: invalid choice", "best", "last"]),
    Case("an abbreviated option", "eval latest --spl=val", ["--spl=val: there is no such option"]),
    Case("an unknown option of eval", "eval mnist_mlp --model.hiden=3", ["--model.hiden=3", "did you mean 'hidden'"]),
    Case("a surplus word of eval", "eval latest val", ["val: this is no option", "options begin with --"]),
    Case(
        "outside a project",
        "eval latest",
        ["no folder configs/ in", "run litlab inside the project"],
        steps=[remove("configs")],
    ),
    Case(
        "without base.yaml",
        MNIST,
        ["configs/base.yaml is missing", "git checkout -- configs/base.yaml"],
        steps=[remove("configs/base.yaml")],
    ),
]

OPTIONS = [
    Case(option, f"{MNIST} {option}", words)
    for option, words in {
        "--model.hiden 64": ["--model.hiden=64: MnistMLP has no option", "did you mean 'hidden'; it has hidden, "],
        "'--model.hid\nen=64'": ["--model.hid en=64: MnistMLP has no option", "did you mean 'hidden'"],
        "--model.hidden": ["--model.hidden: the value is missing", "--model.hidden=..."],
        "--model.hidden=0": ["--model.hidden=0: 0 is not accepted", "a number greater than 0"],
        "--model.hidden=1.5": ["--model.hidden=1.5: 1.5 is not accepted", "a valid integer"],
        "--model.hidden=null": ["--model.hidden=null: null is not accepted", "a valid integer"],
        "--model.learning_rate=fast": ["fast is not accepted", "a valid number"],
        "--model.learning_rate=nan": ["nan is not accepted", "a number greater than 0"],
        "--model.warmup=2": ["2 is not accepted", "a number less than or equal to 1"],
        "--model.schedule=cosin": ["expected one of linear, cosine, exponential, constant", "did you mean 'cosine'"],
        "--model.schedule=null": ["null is not accepted", "expected one of linear, cosine, exponential, constant"],
        "--model.num_classes=5": ["--model.num_classes=5", "this follows the data; set that instead"],
        "--model=project.models.mnist_mlp.MnistMPL": ["has no attribute 'MnistMPL'", "did you mean 'MnistMLP'"],
        "--model=litlab.models.nowhere.Model": ["--model=litlab.models.nowhere.Model", "cannot be used", "'nowhere'"],
        "--model=": ["--model=: nothing is not accepted", "a LightningModule"],
        "--model.class_path=MnistMPL": ["--model.class_path=MnistMPL: MnistMPL is not accepted", "a LightningModule"],
        "--model=project.data.mnist.MEAN": ["project.data.mnist.MEAN is not accepted", "a LightningModule"],
        "--model=torch.nn.Linear": ["torch.nn.Linear is not accepted", "a LightningModule"],
        "--data=project.models.mnist_mlp.MnistMLP": ["MnistMLP is not accepted", "a LightningDataModule"],
        "--data.seed=5": ["--data.seed=5", "this follows seed_everything; set that instead"],
        "--data.batch_size=0": ["--data.batch_size=0: 0 is not accepted", "a number greater than 0"],
        "--data.source=null": ["--data.source=null: null is not accepted", "expected text"],
        "--trainer.max_epochs=ten": ["--trainer.max_epochs=ten: ten is not accepted", "expected int or null"],
        "--trainer.max_epoch=3": ["--trainer.max_epoch=3: there is no such option", "'trainer.max_epochs'"],
        "--traner.max_epochs=3": ["--traner.max_epochs=3: there is no such option", "'trainer.max_epochs'"],
        "--trainer.max_epochs=-1": ["a learning-rate schedule needs an end", "set trainer.max_epochs or max_steps"],
        "--trainer.max_epochs=-5": ["`max_epochs` must be a non-negative integer or -1"],
        "--trainer.precision=bf17": ["bf17 is not accepted", "did you mean 'bf16'"],
        "--trainer.strategy=dpp": ["invalid strategy name", "`strategy='dpp'`", "Example choices", "ddp"],
        "--trainer.accelerator=gpuu": [
            "invalid accelerator name",
            "`accelerator='gpuu'`",
            "Available names are",
            "cpu",
        ],
        "-c configs/hardware/gpu.yaml": ["do not work here", "No supported gpu backend found"],
        "-c configs/hardware/fsdp.yaml": ["do not work here", "No supported gpu backend found"],
        "--trainer.devices=two": ["the trainer's settings do not work here", "`devices`", "should be an int > 0"],
        "--trainer.limit_train_batches=2.5": ["2.5 for limit_train_batches", "has to be in [0.0, 1.0] or an int"],
        "--trainer.accumulate_grad_batches=0": ["--trainer.accumulate_grad_batches=0", "a number greater than 0"],
        "--trainer.log_every_n_steps=0": ["--trainer.log_every_n_steps=0", "a number greater than 0"],
        "--trainer.val_check_interval=0": ["--trainer.val_check_interval=0", "a number greater than 0"],
        "--trainer.val_check_interval=100": ["`val_check_interval` (100) must be less than or equal to", "(16)"],
        "--trainer.max_time=tomorrow": ["duration='tomorrow'", "is not a valid duration"],
        "--trainer.profiler=simpel": ["the `profiler` parameter", "'simple'"],
        "--trainer.logger=Wandbb": ["--trainer.logger=Wandbb", "the name of a class", "did you mean 'Wandb'"],
        "--trainer.logger.mode=onlin": ["expected one of online, offline, disabled", "did you mean 'online'"],
        "--trainer.callbacks+=EarlyStoping": ["--trainer.callbacks+=EarlyStoping", "did you mean 'EarlyStopping'"],
        "--trainer.callbacks+=EarlyStopping": ["monitor must be set too", "--trainer.callbacks.monitor=..."],
        "--trainer=3": ["--trainer=3: 3 is not accepted", "--trainer.name=value"],
        "--checkpoint.save_top_k=3": ["save_top_k is 3", "use --checkpoint.filename='{epoch}-{step}'"],
        "--checkpoint.mode=best": ["`mode` can be min, max but got best"],
        "--checkpoint.every_n_train_steps=3 --checkpoint.every_n_epochs=1": ["every_n_epochs=1", "mutually exclusive"],
        "--last_checkpoint.every_minutes=0": ["--last_checkpoint.every_minutes=0", "a number greater than 0"],
        "--guard.nonfinite=ignore": ["--guard.nonfinite=ignore", "expected one of stop, skip"],
        "--seed_everything=-1": ["-1 is not accepted", "a number greater than or equal to 0"],
        "--seed_everything=dice": ["dice is not accepted", "a valid integer"],
        "--seed_everything=99999999999": ["99999999999 is not accepted", "a number less than 4294967296"],
        "--experiment=../elsewhere": ["experiment '../elsewhere' names a folder", "use letters, digits"],
        f"--experiment={'x' * 200}": ["names a folder", "at most 100"],
        "--experiment=latest": ["experiment 'latest' is the name of the link to the newest run", "choose another"],
    }.items()
]

LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))  # 2**39 values
LINES = [
    Case(name, OVERLAY, words, {"overlay.yaml": content})
    for name, content, words in [
        ("an empty file", "", ["overlay.yaml must hold settings as `key: value` lines", "it holds nothing"]),
        ("plain text", "just text\n", ["overlay.yaml must hold settings as `key: value` lines", "it holds str"]),
        ("a list of settings", "- trainer\n- model\n", ["overlay.yaml must hold settings", "it holds list"]),
        ("an open bracket", "trainer: [1, 2\n", ["overlay.yaml, line 2: this is not YAML", "expected ',' or ']'"]),
        ("a tab", "trainer:\n\tmax_epochs: 3\n", ["overlay.yaml, line 2: this is not YAML", r"found character '\t'"]),
        ("latin-1", "# Größe\n".encode("latin1"), ["overlay.yaml: this is not YAML", "not text in UTF-8"]),
        ("UTF-16", "trainer:\n".encode("utf-16"), ["overlay.yaml: this is not YAML", "not text in UTF-8"]),
        ("code in a tag", "trainer: !!python/object:os.system {}\n", ["overlay.yaml, line 1: this is not YAML", "tag"]),
        ("a zero byte", "trainer: {}\n\0", ["overlay.yaml: this is not YAML", "not text in UTF-8"]),
        ("brackets without end", "trainer: " + "[" * 2000, ["overlay.yaml", "nested too deeply"]),
        (
            "an alias of itself",
            "trainer: &a {callbacks: [*a]}\n",
            ["overlay.yaml holds more than 10,000 values", "alias"],
        ),
        ("aliases of aliases", LAUGHS, ["overlay.yaml holds more than 10,000 values", "aliases (*) repeat"]),
        ("a number that is none", "seed_everything: !!int many\n", ["overlay.yaml", "'many'", "between quotes"]),
        ("a day that is none", "experiment: 2026-02-30\n", ["overlay.yaml", "day is out of range", "between quotes"]),
        ("a section twice", "trainer:\n  max_epochs: 3\ntrainer:\n  devices: 1\n", ["line 3: trainer", "second time"]),
        ("a number as a key", "trainer:\n  3: 4\n", ["overlay.yaml, line 2, trainer.3", "must be text"]),
        ("a section without settings", "guard:\n", ["overlay.yaml: guard must hold settings", "it is nothing"]),
        ("a section that is a word", "guard: skip\n", ["overlay.yaml: guard must hold settings", "`key: value` lines"]),
        ("a missing space", "trainer:\n  max_epochs:3\n", ["trainer must hold settings", "it is 'max_epochs:3'"]),
        ("a missing indentation", "model:\n  init_args: {}\nhidden: 3\n", ["overlay.yaml, line 3, hidden", "no such"]),
        ("an unknown section", "traner:\n  max_epochs: 3\n", ["line 2, traner.max_epochs", "'trainer.max_epochs'"]),
        ("an unknown key", "trainer:\n  max_epoch: 3\n", ["line 2, trainer.max_epoch", "'trainer.max_epochs'"]),
        (
            "an unknown key of a model",
            "model:\n  init_args:\n    hiden: 3\n",
            ["overlay.yaml, line 3, model.init_args.hiden: MnistMLP has no option", "did you mean 'hidden'"],
        ),
        (
            "an unknown key of a callback",
            "trainer:\n  callbacks+:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n    init_args: {monitr: x}\n",
            ["overlay.yaml, line 4", "EarlyStopping has no option 'monitr'", "did you mean 'monitor'"],
        ),
        (
            "a callback that needs more",
            "trainer:\n  callbacks+:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n",
            ["overlay.yaml, line 2, trainer.callbacks+", "monitor must be set too"],
        ),
        (
            "a number instead of a callback",
            "trainer:\n  callbacks: [1]\n",
            ["overlay.yaml, line 2, trainer.callbacks", "expected Callback"],
        ),
        (
            "an unknown class",
            "model:\n  class_path: project.models.mnist_mlp.Nothing\n",
            ["overlay.yaml, line 2, model.class_path", "has no attribute 'Nothing'"],
        ),
        ("a list instead of a model", "model: [1]\n", ["overlay.yaml: model must hold settings", "it is [1]"]),
        ("a list of arguments", "model:\n  init_args: [1]\n", ["overlay.yaml, line 2: init_args must hold settings"]),
        ("text for a number", "trainer:\n  max_epochs: ten\n", ["line 2, trainer.max_epochs: ten", "int or null"]),
        (
            "a decimal comma",
            "model:\n  init_args:\n    learning_rate: 1,5\n",
            ["overlay.yaml, line 3, model.init_args.learning_rate: 1,5 is not accepted", "a valid number"],
        ),
        (
            "a value out of range",
            "model:\n  init_args:\n    hidden: 0\ntrainer:\n  num_sanity_val_steps: 0\n",
            ["overlay.yaml, line 3, model.init_args.hidden: 0 is not accepted", "a number greater than 0"],
        ),
        ("a word for a count", "checkpoint:\n  save_top_k: many\n", ["line 2, checkpoint.save_top_k: many", "int"]),
        ("a broken seed", "seed_everything: 1.5\n", ["overlay.yaml, line 1, seed_everything: 1.5", "a valid integer"]),
        ("a linked key", "data:\n  init_args:\n    seed: 3\n", ["line 3, data.init_args.seed", "seed_everything"]),
        ("a number as a name", "experiment: 3\n", ["overlay.yaml, line 1, experiment: 3", "expected text or null"]),
    ]
]

SETTINGS = [
    *OPTIONS,
    *LINES,
    Case(
        "a file name that is no experiment's",
        "fit -c 'my own.yaml'",
        ["experiment 'my own' names a folder", "use letters, digits", "--experiment=... sets it"],
        steps=[copy("configs/experiment/mnist_mlp.yaml", "my own.yaml")],
    ),
    Case(
        "a model without data",
        "fit -c own.yaml",
        ["nothing says which data to use", "name an experiment with -c"],
        {"own.yaml": "model:\n  class_path: project.models.mnist_mlp.MnistMLP\n"},
    ),
    Case(
        "arguments without a class",
        "fit -c own.yaml",
        ["own.yaml, line 3, model.init_args.hidden", "name the class with model.class_path"],
        {"own.yaml": "model:\n  init_args:\n    hidden: 3\n"},
    ),
    Case(
        "a model that cannot train",
        f"{MNIST} -c own.yaml",
        ["these settings do not work here", "No `training_step()` method defined"],
        {"own.yaml": "model:\n  class_path: lightning.pytorch.LightningModule\n"},
    ),
    Case(
        "an argument that a class lacks",
        f"{TEXTS}reviews.csv --model.hidden=3",
        ["--model.hidden=3: BertClassifier has no option 'hidden'", "it has pretrained, "],
    ),
    Case("a linked tokenizer", f"{TEXTS}reviews.csv --data.tokenizer=x", ["--data.tokenizer=x", "model.pretrained"]),
    Case("no pretrained model", f"{TEXTS}reviews.csv --model.pretrained=null", ["--model.pretrained=null", "text"]),
    Case(
        "a pretrained model that is not there",
        f"{TEXTS}reviews.csv --model.pretrained=./nothing",
        ["no model './nothing'", "model.pretrained takes a name of the catalog"],
    ),
    Case(
        "a pretrained model that is out of reach",
        f"{TEXTS}reviews.csv --model.pretrained=owner/name",
        ["the model owner/name could not be had", "HF_HUB_OFFLINE is set", "use a name of the catalog"],
    ),
    Case(
        "a folder that is no model",
        f"{TEXTS}reviews.csv --model.pretrained=idx",
        ["idx has no config.json", "save_pretrained"],
    ),
    Case(
        "weights that are cut short",
        f"{TEXTS}reviews.csv",
        ["the model in bert cannot be loaded", "fetch or save it again"],
        steps=[change("bert/model.safetensors", lambda content: content[:100])],
    ),
    Case("texts that are too long", f"{TEXTS}reviews.csv --data.max_length=99", ["--data.max_length=99", "at most 64"]),
    Case(
        "heads that do not divide the width",
        f"{SUMMARIES}reviews.csv --data.summary=label --model.pretrained=null --model.num_heads=3",
        ["model.d_model is 256", "3 heads (model.num_heads)"],
    ),
    Case(
        "a size of a model that has one already",
        f"{SUMMARIES}reviews.csv --data.summary=label --model.d_model=512",
        ["model.d_model=512 describes a new T5", "model.pretrained=null"],
    ),
    Case(
        "a callback that cannot write this model",
        f"{MNIST} --trainer.callbacks+=recipes.t5_documentation.pretrained_model.PretrainedModel",
        ["PretrainedModel cannot write MnistMLP", "leave it out of trainer.callbacks"],
    ),
]

GOOD = "text,label\n" + "".join(f"words {number},{'ab'[number % 2]}\n" for number in range(40))
OBJECT = '{"text": "one", "label": "a"}\n'

CSV = [
    ("nothing in it", "", ["a.csv is empty", "a first line with the names of the columns is right"]),
    ("a header alone", "text,label\n", ["a.csv has no rows", "nothing to learn from"]),
    ("no header", GOOD.removeprefix("text,label\n"), ["a.csv has no column 'text'", "it has 'words 0', 'a'"]),
    (
        "another column",
        GOOD.replace("label", "stars"),
        ["no column 'label'", "it has 'text', 'stars'", "--data.label=..."],
    ),
    ("a column twice", GOOD.replace("text,label", "text,text"), ["a.csv has two columns 'text'", "rename one"]),
    ("semicolons", GOOD.replace(",", ";"), ["a.csv", "'text;label'", "must be separated by commas"]),
    ("tabs", GOOD.replace(",", "\t"), ["a.csv", r"'text\tlabel'", "must be separated by commas"]),
    ("latin-1", GOOD.replace("words 3,", "Wörter,").encode("latin1"), ["a.csv, line 5", "save the file as UTF-8"]),
    ("UTF-16", GOOD.encode("utf-16"), ["a.csv, line 1", "save the file as UTF-8"]),
    ("an empty text", GOOD.replace("words 3,", ","), ["a.csv, row 4: column 'text' is empty", "fill it in or delete"]),
    ("an empty label", GOOD.replace("words 3,b", "words 3,"), ["a.csv, row 4: column 'label' is empty", "fill it in"]),
    ("an empty line", GOOD.replace("words 3,b\n", "\n"), ["a.csv, row 4: the line is empty", "delete it"]),
    (
        "a comma too many",
        GOOD.replace("words 3,", "well, words,"),
        ["a.csv, row 4 has 3 values", "between double quotes"],
    ),
    ("an open quote", GOOD.replace("words 3,", '"words 3,'), ["a.csv, row 4 is no valid CSV", "must end it"]),
    ("one class", GOOD.replace(",b", ",a"), ["a.csv", "labels in column 'label' are 'a'", "two classes or more"]),
    ("two rows", GOOD[:31], ["a.csv has 2 rows", "give more rows, other fractions, or a file for each split"]),
]
JSONL = [
    ("no JSON", "{'text': 'one'}\n", ["a.jsonl, row 2 is no JSON", "one object per line is right"]),
    ("an array", f"[{OBJECT.strip()}]\n", ["a.jsonl, row 2 is no object", 'a line like {"text"', "is right"]),
    ("a missing key", '{"text": "two"}\n', ["a.jsonl, row 2 lacks 'label'", "every row needs text, label"]),
    ("a number as a text", '{"text": 5, "label": "a"}\n', ["row 2: column 'text' holds 5", "put it between quotes"]),
    ("mixed labels", '{"text": "two", "label": 1}\n', ["a.jsonl, row 2", "row 1 has 'a'", "not both"]),
]
PARQUET = [
    ("a csv", GOOD, ["a.parquet is no valid parquet file", "write or download it again"]),
    ("half a file", parquet(text=["a"], label=["x"])[:-9], ["a.parquet is no valid parquet file", "download it again"]),
    ("null", parquet(text=["a", None], label=["x", "y"]), ["a.parquet, row 2: column 'text' is empty", "fill it in"]),
    (
        "fractions",
        parquet(text=["a"], label=[0.5]),
        ["a.parquet, row 1", "the label 0.5", "strings or integers are right"],
    ),
]
FOLDER = [
    ("no train", {"test.csv": GOOD}, ["folder has no train.jsonl, train.csv", "one file per split"]),
    (
        "two trains",
        {"train.csv": GOOD, "train.jsonl": OBJECT},
        ["folder has both train.csv and train.jsonl", "keep one"],
    ),
    (
        "a label that train lacks",
        {"train.csv": GOOD, "test.csv": "text,label\nx,a\ny,c\n"},
        ["folder/test.csv, row 2: the label 'c' is not in the training split", "'a', 'b'", "correct it"],
    ),
]
SOURCE = [
    ("no such file", "a.csv", ["a.csv cannot be read (No such file", "data.source must name a file"]),
    ("another kind of file", "overlay.yaml", ["overlay.yaml", "files that end in .jsonl, .csv or .parquet"]),
    (
        "no such name",
        "roten_tomatoes",
        ["roten_tomatoes", "could not be had", "use a name of the catalog (rotten_tomatoes"],
    ),
    ("texts as labels", "reviews.csv --data.label=text", ["reviews.csv: column 'text' has 40", "--data.label=..."]),
    ("no such second text", "reviews.csv --data.text_pair=answer", ["no column 'answer'", "--data.text_pair=..."]),
    ("no such split", "reviews.csv --data.validation=dev", ["--data.validation=dev", "it has train", "a fraction"]),
    (
        "too much for test",
        "reviews.csv --data.test=0.99",
        ["reviews.csv has 40 rows", "0.99 for test", "other fractions"],
    ),
]
TRAIN_IMAGES, TRAIN_LABELS = "idx/train-images-idx3-ubyte", "idx/train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "idx/t10k-images-idx3-ubyte", "idx/t10k-labels-idx1-ubyte"

DATA = [
    *(Case(f"csv, {name}", f"{TEXTS}a.csv", words, {"a.csv": content}) for name, content, words in CSV),
    *(Case(f"jsonl, {name}", f"{TEXTS}a.jsonl", words, {"a.jsonl": OBJECT + line}) for name, line, words in JSONL),
    *(Case(f"parquet, {name}", f"{TEXTS}a.parquet", words, {"a.parquet": content}) for name, content, words in PARQUET),
    *(
        Case(f"folder, {name}", f"{TEXTS}folder", words, {f"folder/{file}": files[file] for file in files})
        for name, files, words in FOLDER
    ),
    *(Case(name, f"{TEXTS}{source}", words, {"overlay.yaml": ""}) for name, source, words in SOURCE),
    Case(
        "a summary that is empty",
        f"{SUMMARIES}a.csv",
        ["a.csv, row 2: column 'summary' is empty", "fill it in or delete the row"],
        {"a.csv": "text,summary\na,b\nc,\n"},
    ),
    Case(
        "MNIST nowhere", f"{MNIST} --data.source=/nowhere", ["data.source is '/nowhere'", "catalog, hub, or a folder"]
    ),
    Case(
        "MNIST in a csv", f"{MNIST} --data.source=reviews.csv", ["data.source is 'reviews.csv'", "must be catalog, hub"]
    ),
    Case(
        "MNIST out of reach",
        f"{MNIST} --data.source=hub",
        ["ylecun/mnist", "could not be had", "--data.source=catalog"],
    ),
    Case("all held out", f"{MNIST} --data.validation_size=600", ["data.validation_size is 600", "between 1 and 599"]),
    Case(
        "a missing IDX file",
        MNIST,
        ["idx/t10k-labels-idx1-ubyte is missing", "all four IDX files"],
        steps=[remove(TEST_LABELS)],
    ),
    Case(
        "an IDX file that is cut short",
        MNIST,
        ["idx/train-images-idx3-ubyte has 470409 bytes", "promises 470416", "download it again"],
        steps=[change(TRAIN_IMAGES, lambda content: content[:-7])],
    ),
    Case(
        "a picture instead of IDX",
        MNIST,
        ["idx/train-images-idx3-ubyte begins with 89504e47 instead of 00000803", "not an IDX file"],
        {TRAIN_IMAGES: b"\x89PNG"},
    ),
    Case(
        "half a gzip file",
        MNIST,
        ["idx/train-labels-idx1-ubyte.gz cannot be read", "download it again"],
        {f"{TRAIN_LABELS}.gz": gzip.compress(bytes(600))[:-9]},
        [remove(TRAIN_LABELS)],
    ),
    Case(
        "labels of other images",
        MNIST,
        ["idx has 600 train images but 200 train labels", "do not belong together"],
        steps=[copy(TEST_LABELS, TRAIN_LABELS)],
    ),
    Case(
        "a label that is no digit",
        MNIST,
        ["idx/t10k-labels-idx1-ubyte has the label 11", "0 to 9"],
        steps=[change(TEST_LABELS, lambda content: content[:-1] + b"\x0b")],
    ),
    Case(
        "images of another size",
        MNIST,
        ["idx/t10k-images-idx3-ubyte has images of 14 x 14", "28 x 28"],
        {TEST_IMAGES: np.array([0x803, 200, 14, 14], ">u4").tobytes() + bytes(200 * 14 * 14)},
    ),
]

DAMAGED = ["checkpoints/best.ckpt is damaged", "use another checkpoint"]
UNSAFE = ["best.ckpt is not a checkpoint that can be loaded safely", "holds more than tensors"]
INCOMPLETE = ["best.ckpt is no checkpoint of a training", "it lacks", "choose another one"]
OTHER_MODEL = ["holds another model than the configuration describes", "network.0.weight", "it was trained with"]
NO_OPTIMIZER = ["last.ckpt has no optimizer states", "--init=", "begins a new one with its weights"]

CHECKPOINTS = [
    Case("eval, cut short", "eval mnist_mlp", DAMAGED, steps=[change(BEST, lambda content: content[:5000])]),
    Case("eval, an empty file", "eval mnist_mlp", DAMAGED, {BEST: b""}),
    Case("eval, random bytes", "eval mnist_mlp", DAMAGED, {BEST: np.random.default_rng(0).bytes(5000)}),
    Case("eval, one bit flipped", "eval mnist_mlp", ["best.ckpt is damaged", "checksum"], steps=[flip_a_bit(BEST)]),
    Case("eval, a bare pickle", "eval mnist_mlp", DAMAGED, {BEST: pickle.dumps(Code())}),
    Case("eval, code", "eval mnist_mlp", UNSAFE, steps=[save({"state_dict": Code()}, BEST)]),
    Case(
        "eval, a tensor",
        "eval mnist_mlp",
        ["best.ckpt is no checkpoint", "holds a Tensor"],
        steps=[save(torch.zeros(3), BEST)],
    ),
    Case("eval, weights alone", "eval mnist_mlp", INCOMPLETE, steps=[save({"network.0.weight": torch.zeros(3)}, BEST)]),
    Case("eval, another size", "eval mnist_mlp --model.hidden=64", OTHER_MODEL),
    Case(
        "eval, of another run", "eval mnist_mlp", OTHER_MODEL, steps=[copy(f"{TEXT_RUN}/checkpoints/best.ckpt", BEST)]
    ),
    Case(
        "eval, other classes",
        "eval bert_cls --data.source=others.csv",
        ["the checkpoint tells bad, good apart", "others.csv has a, b", "evaluate with the classes of the run"],
        {"others.csv": GOOD},
    ),
    Case("init, random bytes", f"{MNIST} --init={BEST}", DAMAGED, {BEST: b"random"}),
    Case("init, code", f"{MNIST} --init={BEST}", UNSAFE, steps=[save({"state_dict": Code()}, BEST)]),
    Case("init, no weights", f"{MNIST} --init={BEST}", INCOMPLETE, steps=[save({"epoch": 3}, BEST)]),
    Case("init, another model", f"{MNIST} --init=bert_cls", OTHER_MODEL),
    Case("fork, another size", "fit --fork=mnist_mlp --model.hidden=64", OTHER_MODEL),
    Case("fork, another model", f"{MNIST} --fork=bert_cls", OTHER_MODEL),
    Case(
        "fork, all damaged",
        "fit --fork=mnist_mlp",
        ["runs/mnist_mlp/", "has no checkpoint that a run can continue from", "choose another run"],
        {BEST: b"", LAST: b""},
    ),
    Case("fork, no optimizer", "fit --fork=mnist_mlp", NO_OPTIMIZER, steps=[drop("optimizer_states", LAST)]),
    Case(
        "resume, no optimizer",
        "fit --resume=mnist_mlp",
        NO_OPTIMIZER,
        steps=[interrupt(RUN), drop("optimizer_states", LAST)],
    ),
    Case(
        "resume, of another run",
        "fit --resume=mnist_mlp",
        ["last.ckpt is of the run", "which was begun with other settings: data.class_path", "--fork="],
        steps=[interrupt(RUN), copy(f"{TEXT_RUN}/checkpoints/last.ckpt", LAST)],
    ),
]

DAMAGED_RECORD = ["run.json cannot be read", "not a run directory or is damaged", "bring the file back"]
IN_USE = ["runs/mnist_mlp/", "is in use by process", "wait for it or stop it"]

RUNS = [
    Case("eval, half a run.json", "eval mnist_mlp", DAMAGED_RECORD, {f"{RUN}/run.json": '{"status": "fin'}),
    Case("eval, a list in run.json", "eval mnist_mlp --split=val", DAMAGED_RECORD, {f"{RUN}/run.json": "[1]"}),
    Case("resume, an empty run.json", "fit --resume=mnist_mlp", DAMAGED_RECORD, {f"{RUN}/run.json": ""}),
    Case(
        "eval, no run.json",
        f"eval {RUN}",
        ["no run 'runs/mnist_mlp/latest' in", "the newest are bert_cls/"],
        steps=[remove(f"{RUN}/run.json")],
    ),
    Case(
        "eval, a damaged eval.json",
        "eval mnist_mlp",
        ["eval.json cannot be read", "bring the file back"],
        {f"{RUN}/eval.json": "{"},
    ),
    Case(
        "eval, no config.yaml",
        "eval mnist_mlp",
        ["config.yaml is missing", "bring the file back"],
        steps=[remove(f"{RUN}/config.yaml")],
    ),
    Case(
        "resume, no config.yaml",
        f"{MNIST} --resume=mnist_mlp",
        ["config.yaml is missing", "bring the file back"],
        steps=[interrupt(RUN), remove(f"{RUN}/config.yaml")],
    ),
    Case(
        "eval, half a config.yaml",
        "eval mnist_mlp",
        ["config.yaml, line 1: this is not YAML"],
        {f"{RUN}/config.yaml": "model: ["},
    ),
    Case(
        "resume, an empty config.yaml",
        f"{MNIST} --resume=mnist_mlp",
        ["config.yaml must hold settings as `key: value` lines", "it holds nothing"],
        {f"{RUN}/config.yaml": ""},
        [interrupt(RUN)],
    ),
    Case(
        "fork, config.yaml in latin-1",
        f"{MNIST} --fork=mnist_mlp",
        ["config.yaml: this is not YAML", "UTF-8"],
        {f"{RUN}/config.yaml": b"# Gr\xf6\xdfe\n"},
    ),
    Case("eval, in use", "eval mnist_mlp", IN_USE, steps=[use(RUN)]),
    Case("resume, in use", "fit --resume=mnist_mlp", IN_USE, steps=[interrupt(RUN), use(RUN)]),
    Case(
        "eval, a lock that cannot be taken",
        "eval mnist_mlp",
        ["lock cannot be written", "make the run directory writable"],
        steps=[remove(f"{RUN}/lock"), lambda: os.mkdir(f"{RUN}/lock")],
    ),
    Case("resume, finished", "fit --resume=mnist_mlp", ["is finished", "--fork=mnist_mlp continues it in a new run"]),
    Case(
        "resume, other settings",
        "fit --resume=mnist_mlp --model.hidden=64 --data.batch_size=16",
        [
            "begun with other settings: data.batch_size 32 -> 16, model.hidden 128 -> 64",
            "repeat those",
            "--fork=mnist_mlp",
        ],
        steps=[interrupt(RUN)],
    ),
    Case(
        "resume, another experiment",
        f"{MNIST} --resume=bert_cls",
        ["was begun with other settings: data.class_path", "--fork=bert_cls"],
        steps=[interrupt(TEXT_RUN)],
    ),
    Case(
        "resume, other images",
        "fit --resume=mnist_mlp",
        ["the data are not those", "began with (train_images ", "bring them back", "--fork=mnist_mlp/"],
        steps=[interrupt(RUN), flip_a_bit(TRAIN_IMAGES)],
    ),
    Case(
        "resume, other texts",
        "fit --resume=bert_cls",
        [
            "the data are not those",
            "began with (examples.train 32 -> 33, source ",
            "bring them back",
            "--fork=bert_cls/",
        ],
        steps=[interrupt(TEXT_RUN), change("reviews.csv", lambda content: content + b"another one,good\n")],
    ),
    Case(
        "resume, no data",
        "fit --resume=mnist_mlp",
        ["idx/train-images-idx3-ubyte is missing", "all four IDX files"],
        steps=[interrupt(RUN), remove(TRAIN_IMAGES)],
    ),
    Case(
        "eval, no checkpoints",
        "eval mnist_mlp",
        ["best.ckpt does not exist", "this run has no checkpoints"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case("eval, no best", "eval mnist_mlp", ["best.ckpt does not exist", "this run has last"], steps=[remove(BEST)]),
    Case(
        "fork, no checkpoints",
        "fit --fork=mnist_mlp",
        ["has no checkpoint that a run can continue from", "choose another run"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case(
        "init, no checkpoints",
        f"{MNIST} --init=mnist_mlp",
        ["last.ckpt does not exist", "this run has no checkpoints"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case(
        "a file in the place of runs/",
        MNIST,
        ["cannot make the run directory", "runs/mnist_mlp/", "set LITLAB_RUNS"],
        {"runs": "text"},
        [remove("runs")],
    ),
    Case(
        "a file in the place of an experiment",
        f"{MNIST} --experiment=other",
        ["cannot make the run directory", "runs/other/", "set LITLAB_RUNS"],
        {"runs/other": "text"},
    ),
    Case(
        "runs below a file",
        MNIST,
        ["cannot make the run directory", "reviews.csv/runs/mnist_mlp/", "set LITLAB_RUNS"],
        environment={"LITLAB_RUNS": "reviews.csv/runs"},
    ),
    Case(
        "a cache below a file",
        f"{TEXTS}reviews.csv",
        ["cannot write to the cache", "reviews.csv/tokens", "set LITLAB_CACHE"],
        environment={"LITLAB_CACHE": "reviews.csv"},
    ),
]

GROUPS = {"command": COMMANDS, "setting": SETTINGS, "data": DATA, "checkpoint": CHECKPOINTS, "run": RUNS}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
THROUGH_THE_REAL_COMMAND = [
    "command: an unknown command",
    "command: a misspelt experiment",
    "command: an unknown split",
    "setting: an open bracket",
    "setting: --trainer.max_epochs=ten",
    "data: csv, an empty text",
    "data: an IDX file that is cut short",
    "checkpoint: fork, another size",
    "run: eval, in use",
    "run: eval, no checkpoints",
]


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path, tiny_bert: Path) -> Path:
    """A project with all its data and two finished runs."""
    folder = make_project(tmp_path_factory.mktemp("bad_input") / "project", Path("idx"))
    shutil.copytree(idx_folder, folder / "idx")
    shutil.copytree(tiny_bert, folder / "bert")
    rows = (f"the film was {word} {number},{word}\n" for number in range(20) for word in ("good", "bad"))
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("LITLAB_CACHE", str(folder.parent / "cache"))
        for command in (MNIST, f"{TEXTS}reviews.csv --trainer.max_epochs=1 --trainer.precision=32-true"):
            assert run_command("fit", command.split()[1:]) == 0
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    """A copy of it, in which a test can do what it wants."""
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


def prepare(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mistakes that are not on the command line; steps come first, as they make room for files."""
    for step in case.steps:
        step()
    for name, content in case.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)


def listing(folder: Path) -> dict[str, str]:
    """Every file, folder and link below a folder, with its content."""

    def entries() -> Iterator[tuple[str, str]]:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                yield str(path), os.readlink(path)
            elif path.is_file():
                yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                yield str(path), "a folder"

    return {name: content for name, content in entries() if not name.endswith("/lock")}


def check_answer(case: Case, status: int, output: str, errors: str) -> None:
    assert status == 2, errors
    assert "Traceback" not in output + errors and "exploited" not in output + errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("litlab: ") and last.endswith(".") and len(last) < 700, errors
    place = 0
    for words in case.words:
        assert words in last[place:], f"{words!r} is not there, or too early: {last}"
        place = last.index(words, place)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_answered_with_one_sentence_and_nothing_is_lost(
    case: Case, inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare(case, monkeypatch)
    before = listing(inside)
    monkeypatch.setattr(sys, "argv", ["litlab", *shlex.split(case.command)])
    status = main()
    check_answer(case, status, *capfd.readouterr())
    assert listing(inside) == before


@pytest.mark.parametrize("name", THROUGH_THE_REAL_COMMAND)
def test_the_real_command_answers_the_same(name: str, inside: Path, litlab, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(CASES[name], monkeypatch)
    before = listing(inside)
    done = litlab(*shlex.split(CASES[name].command))
    check_answer(CASES[name], done.returncode, done.stdout, done.stderr)
    assert listing(inside) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--checkpoint.monitor=val/acc", ["monitor='val/acc'", "could not find the monitored key", "'val/accuracy'"]),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/acc",
            ["Early stopping conditioned on metric `val/acc`", "not available", "`val/accuracy`"],
        ),
    ],
)
def test_a_score_that_is_never_logged_is_known_after_an_epoch_whose_results_are_kept(
    options: str, words: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = Case(options, f"{MNIST} {options}", words)
    before = {name: content for name, content in listing(inside).items() if not name.endswith("/latest")}
    monkeypatch.setattr(sys, "argv", ["litlab", *shlex.split(case.command)])
    status = main()
    check_answer(case, status, *capfd.readouterr())
    assert before.items() <= listing(inside).items()
    run = RunDirectory(Path("runs/latest").resolve())
    assert json.loads((run.path / "run.json").read_text())["status"] == "failed"
    assert torch.load(run.checkpoint("last"), weights_only=True)["global_step"] == 16
