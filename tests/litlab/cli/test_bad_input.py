"""Every mistake of a user gives exit status 2 and one sentence, and no file is lost."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import (
    Case,
    Code,
    assert_refused,
    assert_refused_by_command,
    change,
    check_answer,
    copy,
    drop,
    flip_a_bit,
    interrupt,
    listing,
    remove,
    run_main,
    save,
    use,
)
from conftest import Command, small_project
from in_process import content, fit, newest

# the beginning of most commands
SMALL = "fit -c configs/experiment/small.yaml"
OVERLAY = f"{SMALL} -c overlay.yaml"
SPELLER = "fit -c configs/experiment/speller.yaml"

# the finished runs of the project
RUN, OTHER_RUN = "runs/small/latest", "runs/speller/latest"
BEST, LAST = f"{RUN}/checkpoints/best.ckpt", f"{RUN}/checkpoints/last.ckpt"

COMMANDS = [
    Case("an unknown command", "evla latest", ["there is no command 'evla'", "did you mean 'eval'", "fit, eval"]),
    Case("an option instead of a command", "--model.hidden=64", ["no command '--model.hidden=64'", "fit, eval"]),
    Case("fit of nothing", "fit", ["no data and no model is set", "-c configs/experiment/<name>.yaml"]),
    Case("-c without a file", "fit -c", ["-c needs a file", "-c configs/experiment/<name>.yaml"]),
    Case("--config without a file", "fit --config", ["--config needs a file", "-c configs/experiment/<name>.yaml"]),
    Case(
        "-c with a missing file", "fit -cmissing.yaml", ["missing.yaml is not a file", "-c takes a YAML file such as"]
    ),
    Case("-c with a name that is too long", f"fit -c {'x' * 999}.yaml", ["xxx", "-c takes a YAML file such as"]),
    Case("-c with a folder", "fit -c configs", ["configs is not a file", "configs/experiment/<name>.yaml"]),
    Case(
        "-c with a data file",
        "fit -c notes.csv",
        ["notes.csv must hold settings as `key: value` lines"],
        {"notes.csv": "a,b\n"},
    ),
    Case("make without EXP", "fit -c configs/experiment/.yaml", ["no experiment is named", "small", "EXP=<name>"]),
    Case(
        "a misspelt experiment",
        "fit -c configs/experiment/samll.yaml",
        ["no experiment 'samll'", "did you mean 'small'", "known are", "speller"],
    ),
    Case(
        "a misspelt overlay",
        f"{SMALL} -c configs/hardware/dpd.yaml",
        ["no hardware 'dpd'", "did you mean 'ddp'", "known are cpu, ddp, fsdp, gpu"],
    ),
    Case(
        "a word that is not an option", f"{SMALL} surplus", ["surplus: this is not an option", "options begin with --"]
    ),
    Case("an unknown option", f"{SMALL} --max_epochs=3", ["--max_epochs=3", "did you mean 'trainer.max_epochs'"]),
    Case(
        "help on a class that does not exist",
        "fit -c own.yaml --help",
        ["own.yaml: model.class_path 'own.Model' is not a class that can be imported"],
        {"own.yaml": "model: {class_path: own.Model}\n"},
    ),
    Case("--resume without a run", "fit --resume", ["--resume needs a run", "latest, an experiment, a run id", "auto"]),
    Case("--fork without a run", "fit --fork --model.hidden=64", ["--fork needs a run", "latest, an experiment"]),
    Case("--init without a run", f"{SMALL} --init=", ["--init needs a run", "latest, an experiment"]),
    Case("--resume of no run", "fit --resume=nothing", ["no run 'nothing' in", "the newest are small/", "speller/"]),
    Case("--fork of no run", f"{SMALL} --fork=nothing", ["no run 'nothing' in", "the newest are small/"]),
    Case("--init of no run", f"{SMALL} --init=nothing", ["no run 'nothing' in", "the newest are small/"]),
    Case(
        "--init of no file",
        f"{SMALL} --init=missing.ckpt",
        ["missing.ckpt is not a file", "name a run, or one of the .ckpt"],
    ),
    Case("--init of a file alone", f"fit --init={BEST}", ["--init with a checkpoint file needs an experiment", "-c"]),
    Case("--fork and --init", "fit --fork=latest --init=latest", ["--fork and --init exclude each other"]),
    Case("--resume and --fork", "fit --resume=latest --fork=small", ["--resume RUN, --fork", "exclude each other"]),
    Case(
        "--resume=auto of nothing", "fit --resume=auto", ["--resume=auto needs an experiment", "-c configs/experiment/"]
    ),
    Case("eval of nothing", "eval", ["required: run", "for example: litlab eval latest"]),
    Case("eval of no run", "eval nothing", ["no run 'nothing' in", "the newest are small/", "speller/"]),
    Case("eval of a name that is too long", f"eval {'x' * 999}", ["no run 'xxx", "the newest are small/"]),
    Case("eval of a folder that is not a run", "eval configs", ["no run 'configs' in", "the newest are small/"]),
    Case(
        "eval before there are runs",
        "eval latest",
        ["no run 'latest' in", "elsewhere", "there are none yet: make train EXP="],
        environment={"LITLAB_RUNS": "elsewhere"},
    ),
    Case("an unknown split", "eval latest --split=tset", ["--split: invalid choice: 'tset'", "val", "test"]),
    Case("a split without name", "eval latest --split", ["--split: expected one argument", "--split=val"]),
    Case("an unknown checkpoint", "eval latest --checkpoint=newest", ["--checkpoint: invalid choice", "best", "last"]),
    Case("an abbreviated option", "eval latest --spl=val", ["--spl=val: there is no such option"]),
    Case("an unknown option of eval", "eval small --model.hiden=3", ["--model.hiden=3", "did you mean 'hidden'"]),
    Case("a surplus word of eval", "eval latest val", ["val: this is not an option", "options begin with --"]),
    Case(
        "outside a project",
        "eval latest",
        ["no folder configs/ in", "run litlab inside the project"],
        steps=[remove("configs")],
    ),
    Case(
        "without base.yaml",
        SMALL,
        ["configs/base.yaml is missing", "git checkout -- configs/base.yaml"],
        steps=[remove("configs/base.yaml")],
    ),
]


OPTIONS = [
    Case(option, f"{SMALL} {option}", words)
    for option, words in {
        "--model.hiden 64": ["--model.hiden=64: SmallModel has no option", "did you mean 'hidden'; it has hidden, "],
        "'--model.hid\nen=64'": ["--model.hid en=64: SmallModel has no option", "did you mean 'hidden'"],
        "--model.hidden": ["--model.hidden: the value is missing", "--model.hidden=..."],
        "--model.hidden=0": ["--model.hidden=0: 0 is not accepted", "a number greater than 0"],
        "--model.hidden=1.5": ["--model.hidden=1.5: 1.5 is not accepted", "a valid integer"],
        "--model.hidden=null": ["--model.hidden=null: null is not accepted", "a valid integer"],
        "--model.learning_rate=fast": ["fast is not accepted", "a valid number"],
        "--model.learning_rate=nan": ["nan is not accepted", "a number greater than 0"],
        "--model.warmup=2": ["2 is not accepted", "a number less than or equal to 1"],
        "--model.schedule=cosin": ["expected one of linear, cosine, exponential, constant", "did you mean 'cosine'"],
        "--model.schedule=null": ["null is not accepted", "expected one of linear, cosine, exponential, constant"],
        "--model.num_classes=5": ["--model.num_classes=5", "this value is derived from the data; remove the setting"],
        "--model=small.model.SmallModle": ["has no attribute 'SmallModle'", "did you mean 'SmallModel'"],
        "--model=small.nowhere.Model": ["--model=small.nowhere.Model", "cannot be used", "'nowhere'"],
        "--model=": ["--model=: nothing is not accepted", "a LightningModule"],
        "--model.class_path=SmallModle": [
            "--model.class_path=SmallModle: SmallModle is not accepted",
            "a LightningModule",
        ],
        "--model=small.data.CLASSES": ["small.data.CLASSES is not accepted", "a LightningModule"],
        "--model=torch.nn.Linear": ["torch.nn.Linear is not accepted", "a LightningModule"],
        "--data=small.model.SmallModel": ["SmallModel is not accepted", "a LightningDataModule"],
        "--data.seed=5": ["--data.seed=5", "this value is derived from seed_everything; set seed_everything instead"],
        "--data.batch_size=0": ["--data.batch_size=0: 0 is not accepted", "a number greater than 0"],
        "--data.source=null": ["--data.source=null: null is not accepted", "expected string"],
        "--trainer.max_epochs=ten": ["--trainer.max_epochs=ten: ten is not accepted", "expected int or null"],
        "--trainer.max_epoch=3": ["--trainer.max_epoch=3: there is no such option", "'trainer.max_epochs'"],
        "--traner.max_epochs=3": ["--traner.max_epochs=3: there is no such option", "'trainer.max_epochs'"],
        "--trainer.max_epochs=-1": ["schedule needs the number of steps", "set trainer.max_epochs or"],
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
        "--experiment=../elsewhere": ["experiment '../elsewhere' is not a valid folder name", "use letters, digits"],
        f"--experiment={'x' * 200}": ["is not a valid folder name", "at most 100"],
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
        (
            "a malformed number",
            "seed_everything: !!int many\n",
            ["overlay.yaml", "'many'", "quote it if it is a string"],
        ),
        (
            "a date that does not exist",
            "experiment: 2026-02-30\n",
            ["overlay.yaml", "day is out of range", "quote it if it is a string"],
        ),
        ("a section twice", "trainer:\n  max_epochs: 3\ntrainer:\n  devices: 1\n", ["line 3: trainer", "second time"]),
        ("a number as a key", "trainer:\n  3: 4\n", ["overlay.yaml, line 2, trainer.3", "must be a string"]),
        ("a section without settings", "guard:\n", ["overlay.yaml: guard must hold settings", "it is nothing"]),
        ("a section that is a word", "guard: skip\n", ["overlay.yaml: guard must hold settings", "`key: value` lines"]),
        ("a missing space", "trainer:\n  max_epochs:3\n", ["trainer must hold settings", "it is 'max_epochs:3'"]),
        ("a missing indentation", "model:\n  init_args: {}\nhidden: 3\n", ["overlay.yaml, line 3, hidden", "no such"]),
        ("an unknown section", "traner:\n  max_epochs: 3\n", ["line 2, traner.max_epochs", "'trainer.max_epochs'"]),
        ("an unknown key", "trainer:\n  max_epoch: 3\n", ["line 2, trainer.max_epoch", "'trainer.max_epochs'"]),
        (
            "an unknown key of a model",
            "model:\n  init_args:\n    hiden: 3\n",
            ["overlay.yaml, line 3, model.init_args.hiden: SmallModel has no option", "did you mean 'hidden'"],
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
            "model:\n  class_path: small.model.Nothing\n",
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
        ("a number as a name", "experiment: 3\n", ["overlay.yaml, line 1, experiment: 3", "expected string or null"]),
    ]
]


SETTINGS = [
    *OPTIONS,
    *LINES,
    Case(
        "a file name that cannot name an experiment",
        "fit -c 'my own.yaml'",
        ["experiment 'my own' is not a valid folder name", "use letters, digits", "set it with --experiment=..."],
        steps=[copy("configs/experiment/small.yaml", "my own.yaml")],
    ),
    Case(
        "a model without data",
        "fit -c own.yaml",
        ["no data is set", "name an experiment with -c"],
        {"own.yaml": "model:\n  class_path: small.model.SmallModel\n"},
    ),
    Case(
        "arguments without a class",
        "fit -c own.yaml",
        ["own.yaml, line 3, model.init_args.hidden", "name the class with model.class_path"],
        {"own.yaml": "model:\n  init_args:\n    hidden: 3\n"},
    ),
    Case(
        "a model that cannot train",
        f"{SMALL} -c own.yaml",
        ["these settings do not work here", "No `training_step()` method defined"],
        {"own.yaml": "model:\n  class_path: lightning.pytorch.LightningModule\n"},
    ),
    Case(
        "an argument that a class lacks",
        f"{SPELLER} --model.hidden=3",
        ["--model.hidden=3: SmallSpeller has no option 'hidden'", "it has pretrained, learning_rate"],
    ),
    Case("a linked tokenizer", f"{SPELLER} --data.tokenizer=x", ["--data.tokenizer=x", "model.pretrained"]),
    Case("no pretrained model", f"{SPELLER} --model.pretrained=null", ["--model.pretrained=null", "expected string"]),
    Case(
        "a pretrained model that is not there",
        f"{SPELLER} --model.pretrained=latin",
        ["there is no language 'latin'", "model.pretrained takes a folder"],
    ),
    Case(
        "weights that are cut short",
        SPELLER,
        ["english/weights.npy cannot be read", "write it again"],
        steps=[change("english/weights.npy", lambda content: content[:200])],
    ),
]


DATA = [
    Case(
        "no such folder",
        f"{SMALL} --data.source=nowhere",
        ["nowhere/train_features.npy is missing", "data.source must name a folder"],
    ),
    Case(
        "a missing file",
        SMALL,
        ["examples/test_labels.npy is missing", "all four arrays"],
        steps=[remove("examples/test_labels.npy")],
    ),
    Case(
        "a file that is cut short",
        SMALL,
        ["examples/train_features.npy cannot be read", "write it again"],
        steps=[change("examples/train_features.npy", lambda content: content[:-7])],
    ),
    Case("all held out", f"{SMALL} --data.validation_size=600", ["data.validation_size is 600", "between 1 and 599"]),
]

DAMAGED = ["checkpoints/best.ckpt is damaged", "use another checkpoint"]
UNSAFE = ["best.ckpt is not a checkpoint that can be loaded safely", "holds more than tensors"]
INCOMPLETE = ["best.ckpt is not a training checkpoint", "it lacks", "choose another file"]
OTHER_MODEL = ["does not match the configured model", "network.0.weight", "it was trained with"]
NO_OPTIMIZER = ["last.ckpt has no optimizer states", "--init=", "starts a new run with its weights"]

CHECKPOINTS = [
    Case("eval, cut short", "eval small", DAMAGED, steps=[change(BEST, lambda content: content[:5000])]),
    Case("eval, an empty file", "eval small", DAMAGED, {BEST: b""}),
    Case("eval, random bytes", "eval small", DAMAGED, {BEST: np.random.default_rng(0).bytes(5000)}),
    Case("eval, one bit flipped", "eval small", ["best.ckpt is damaged", "checksum"], steps=[flip_a_bit(BEST)]),
    Case("eval, a bare pickle", "eval small", DAMAGED, {BEST: pickle.dumps(Code())}),
    Case("eval, code", "eval small", UNSAFE, steps=[save({"state_dict": Code()}, BEST)]),
    Case(
        "eval, a tensor",
        "eval small",
        ["best.ckpt is not a training checkpoint", "holds a Tensor"],
        steps=[save(torch.zeros(3), BEST)],
    ),
    Case("eval, weights alone", "eval small", INCOMPLETE, steps=[save({"network.0.weight": torch.zeros(3)}, BEST)]),
    Case("eval, another size", "eval small --model.hidden=64", OTHER_MODEL),
    Case("eval, of another run", "eval small", OTHER_MODEL, steps=[copy(f"{OTHER_RUN}/checkpoints/best.ckpt", BEST)]),
    Case(
        "eval, other classes",
        "eval speller --model.pretrained=german",
        ["the checkpoint has the classes zero, one", "model.pretrained=german has null, eins"],
    ),
    Case("init, random bytes", f"{SMALL} --init={BEST}", DAMAGED, {BEST: b"random"}),
    Case("init, code", f"{SMALL} --init={BEST}", UNSAFE, steps=[save({"state_dict": Code()}, BEST)]),
    Case("init, no weights", f"{SMALL} --init={BEST}", INCOMPLETE, steps=[save({"epoch": 3}, BEST)]),
    Case("init, another model", f"{SMALL} --init=speller", OTHER_MODEL),
    Case("fork, another size", "fit --fork=small --model.hidden=64", OTHER_MODEL),
    Case("fork, another model", f"{SMALL} --fork=speller", OTHER_MODEL),
    Case(
        "fork, all damaged",
        "fit --fork=small",
        ["runs/small/", "has no checkpoint that a run can continue from", "choose another run"],
        {BEST: b"", LAST: b""},
    ),
    Case("fork, no optimizer", "fit --fork=small", NO_OPTIMIZER, steps=[drop("optimizer_states", LAST)]),
    Case(
        "resume, no optimizer",
        "fit --resume=small",
        NO_OPTIMIZER,
        steps=[interrupt(RUN), drop("optimizer_states", LAST)],
    ),
    Case(
        "resume, of another run",
        "fit --resume=small",
        ["last.ckpt belongs to the run", "which was started with other settings: ", "data.class_path", "--fork="],
        steps=[interrupt(RUN), copy(f"{OTHER_RUN}/checkpoints/last.ckpt", LAST)],
    ),
]


DAMAGED_RECORD = ["run.json cannot be read", "not a run directory or is damaged", "restore the file"]
IN_USE = ["runs/small/", "is in use by process", "wait for it or stop it"]

RUNS = [
    Case("eval, half a run.json", "eval small", DAMAGED_RECORD, {f"{RUN}/run.json": '{"status": "fin'}),
    Case("eval, a list in run.json", "eval small --split=val", DAMAGED_RECORD, {f"{RUN}/run.json": "[1]"}),
    Case("resume, an empty run.json", "fit --resume=small", DAMAGED_RECORD, {f"{RUN}/run.json": ""}),
    Case(
        "eval, no run.json",
        f"eval {RUN}",
        ["no run 'runs/small/latest' in", "the newest are speller/"],
        steps=[remove(f"{RUN}/run.json")],
    ),
    Case(
        "eval, a damaged eval.json",
        "eval small",
        ["eval.json cannot be read", "restore the file"],
        {f"{RUN}/eval.json": "{"},
    ),
    Case(
        "eval, no config.yaml",
        "eval small",
        ["config.yaml is missing", "restore the file"],
        steps=[remove(f"{RUN}/config.yaml")],
    ),
    Case(
        "resume, no config.yaml",
        f"{SMALL} --resume=small",
        ["config.yaml is missing", "restore the file"],
        steps=[interrupt(RUN), remove(f"{RUN}/config.yaml")],
    ),
    Case(
        "eval, half a config.yaml",
        "eval small",
        ["config.yaml, line 1: this is not YAML"],
        {f"{RUN}/config.yaml": "model: ["},
    ),
    Case(
        "resume, an empty config.yaml",
        f"{SMALL} --resume=small",
        ["config.yaml must hold settings as `key: value` lines", "it holds nothing"],
        {f"{RUN}/config.yaml": ""},
        [interrupt(RUN)],
    ),
    Case(
        "fork, config.yaml in latin-1",
        f"{SMALL} --fork=small",
        ["config.yaml: this is not YAML", "UTF-8"],
        {f"{RUN}/config.yaml": b"# Gr\xf6\xdfe\n"},
    ),
    Case("eval, in use", "eval small", IN_USE, steps=[use(RUN)]),
    Case("resume, in use", "fit --resume=small", IN_USE, steps=[interrupt(RUN), use(RUN)]),
    Case(
        "eval, a lock that cannot be taken",
        "eval small",
        ["lock cannot be written", "make the run directory writable"],
        steps=[remove(f"{RUN}/lock"), lambda: os.mkdir(f"{RUN}/lock")],
    ),
    Case("resume, finished", "fit --resume=small", ["is finished", "--fork=small continues it in a new run"]),
    Case(
        "resume, other settings",
        "fit --resume=small --model.hidden=64 --data.batch_size=16",
        [
            "started with other settings: data.batch_size 32 -> 16, model.hidden 128 -> 64",
            "use those",
            "--fork=small",
        ],
        steps=[interrupt(RUN)],
    ),
    Case(
        "resume, another experiment",
        f"{SMALL} --resume=speller",
        ["was started with other settings: ", "data.class_path", "--fork=speller"],
        steps=[interrupt(OTHER_RUN)],
    ),
    Case(
        "resume, other data",
        "fit --resume=small",
        ["the data differ from those of ", " (train_features ", "restore them", "--fork=small/"],
        steps=[interrupt(RUN), flip_a_bit("examples/train_features.npy")],
    ),
    Case(
        "resume, other classes",
        "fit --resume=speller",
        ["the data differ from those of ", " (names zero one ", "restore them", "--fork=speller/"],
        steps=[interrupt(OTHER_RUN), change("english/names.txt", lambda content: content.replace(b"zero", b"nought"))],
    ),
    Case(
        "resume, no data",
        "fit --resume=small",
        ["examples/train_features.npy is missing", "all four arrays"],
        steps=[interrupt(RUN), remove("examples/train_features.npy")],
    ),
    Case(
        "eval, no checkpoints",
        "eval small",
        ["best.ckpt does not exist", "this run has no checkpoints"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case("eval, no best", "eval small", ["best.ckpt does not exist", "this run has last"], steps=[remove(BEST)]),
    Case(
        "fork, no checkpoints",
        "fit --fork=small",
        ["has no checkpoint that a run can continue from", "choose another run"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case(
        "init, no checkpoints",
        f"{SMALL} --init=small",
        ["last.ckpt does not exist", "this run has no checkpoints"],
        steps=[remove(f"{RUN}/checkpoints")],
    ),
    Case(
        "a file in the place of runs/",
        SMALL,
        ["cannot create the run directory", "runs/small/", "set LITLAB_RUNS"],
        {"runs": "text"},
        [remove("runs")],
    ),
    Case(
        "a file in the place of an experiment",
        f"{SMALL} --experiment=other",
        ["cannot create the run directory", "runs/other/", "set LITLAB_RUNS"],
        {"runs/other": "text"},
    ),
    Case(
        "runs below a file",
        SMALL,
        ["cannot create the run directory", "notes.csv/runs/small/", "set LITLAB_RUNS"],
        {"notes.csv": "a,b\n"},
        environment={"LITLAB_RUNS": "notes.csv/runs"},
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
    "data: a file that is cut short",
    "checkpoint: fork, another size",
    "run: eval, in use",
    "run: eval, no checkpoints",
]


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run of each experiment."""
    folder = small_project(tmp_path_factory.mktemp("bad_input") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for command in (SMALL, SPELLER):
            fit(*command.split()[1:])
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    """A copy of the template that a test may change."""
    return Path(shutil.copytree(template, tmp_path / "project", symlinks=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_gives_one_sentence_and_no_file_is_lost(
    case: Case, inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_refused(case, monkeypatch, capfd)


@pytest.mark.parametrize("name", THROUGH_THE_REAL_COMMAND)
def test_the_litlab_command_gives_the_same_message(
    name: str, inside: Path, litlab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = name.startswith("command: ")  # these are answered before the long imports
    assert_refused_by_command(CASES[name], monkeypatch, litlab, fresh)


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
def test_a_metric_that_is_never_logged_is_reported_after_an_epoch_whose_results_are_kept(
    options: str, words: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = Case(options, f"{SMALL} {options}", words)
    before = {name: content for name, content in listing(inside).items() if not name.endswith("/latest")}
    status = run_main(case.command, monkeypatch)
    check_answer(case, status, *capfd.readouterr())
    assert before.items() <= listing(inside).items()
    run = newest()
    assert json.loads((run.path / "run.json").read_text())["status"] == "failed"
    assert content(run)["global_step"] == 16
