"""User mistakes with the texts, images and models of the experiments: each gives one sentence, and no file is lost."""

import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from bad_input import (
    Case,
    assert_refused,
    assert_refused_by_command,
    change,
    copy,
    flip_a_bit,
    interrupt,
    remove,
)
from conftest import Command
from in_process import fit

# the beginning of most commands
MNIST = "fit -c configs/experiment/mnist_mlp.yaml"
TEXTS = "fit -c configs/experiment/bert_cls.yaml --model.pretrained=bert --data.max_length=null --data.source="
SUMMARIES = "fit -c configs/experiment/t5_sum.yaml --model.pretrained=t5 --data.source="

# the finished runs of the project
RUN, TEXT_RUN = "runs/mnist_mlp/latest", "runs/bert_cls/latest"
BEST, LAST = f"{RUN}/checkpoints/best.ckpt", f"{RUN}/checkpoints/last.ckpt"


def parquet(**columns: list) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


SETTINGS = [
    Case(
        "a misspelt experiment",
        "fit -c configs/experiment/mnist_mpl.yaml",
        ["no experiment 'mnist_mpl'", "did you mean 'mnist_mlp'", "known are", "bert_cls"],
    ),
    Case(
        "an option that MNIST lacks", f"{MNIST} --model.hiden=64", ["MnistMLP has no option", "did you mean 'hidden'"]
    ),
    Case(
        "an argument that a class lacks",
        f"{TEXTS}reviews.csv --model.hidden=3",
        ["--model.hidden=3: BertClassifier has no option 'hidden'", "it has pretrained, "],
    ),
    Case("a linked tokenizer", f"{TEXTS}reviews.csv --data.tokenizer=x", ["--data.tokenizer=x", "model.pretrained"]),
    Case(
        "no pretrained model",
        f"{TEXTS}reviews.csv --model.pretrained=null",
        ["--model.pretrained=null", "expected string"],
    ),
    Case(
        "a pretrained model that is not there",
        f"{TEXTS}reviews.csv --model.pretrained=./nothing",
        ["no model './nothing'", "model.pretrained takes a packaged model"],
    ),
    Case(
        "a pretrained model that is out of reach",
        f"{TEXTS}reviews.csv --model.pretrained=owner/name",
        ["the model owner/name could not be downloaded", "HF_HUB_OFFLINE is set", "use a packaged model"],
    ),
    Case(
        "a folder without a model",
        f"{TEXTS}reviews.csv --model.pretrained=idx",
        ["idx has no config.json", "save_pretrained"],
    ),
    Case(
        "weights that are cut short",
        f"{TEXTS}reviews.csv",
        ["the model in bert cannot be loaded", "download or save it again"],
        steps=[change("bert/model.safetensors", lambda content: content[:100])],
    ),
    Case("texts that are too long", f"{TEXTS}reviews.csv --data.max_length=99", ["--data.max_length=99", "at most 64"]),
    Case(
        "heads that do not divide the width",
        f"{SUMMARIES}reviews.csv --data.summary=label --model.pretrained=null --model.num_heads=3",
        ["model.d_model is 256", "divisible by model.num_heads, which is 3"],
    ),
    Case(
        "a size of a model that has one already",
        f"{SUMMARIES}reviews.csv --data.summary=label --model.d_model=512",
        ["model.d_model=512 describes a new T5", "model.pretrained=null"],
    ),
    Case(
        "a cache below a file",
        f"{TEXTS}reviews.csv",
        ["cannot write to the folder", "reviews.csv/tokens", "set LITLAB_CACHE"],
        environment={"LITLAB_CACHE": "reviews.csv"},
    ),
]

GOOD = "text,label\n" + "".join(f"words {number},{'ab'[number % 2]}\n" for number in range(40))
OBJECT = '{"text": "one", "label": "a"}\n'

CSV = [
    ("nothing in it", "", ["a.csv is empty", "the first line must name the columns"]),
    ("a header alone", "text,label\n", ["a.csv has no rows", "nothing to train on"]),
    ("no header", GOOD.removeprefix("text,label\n"), ["a.csv has no column 'text'", "it has 'words 0', 'a'"]),
    (
        "another column",
        GOOD.replace("label", "stars"),
        ["no column 'label'", "it has 'text', 'stars'", "--data.label=..."],
    ),
    ("a column twice", GOOD.replace("text,label", "text,text"), ["a.csv has two columns named 'text'", "rename one"]),
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
        ["a.csv, row 4 has 3 values", "in double quotes"],
    ),
    (
        "an open quote",
        GOOD.replace("words 3,", '"words 3,'),
        ["a.csv, row 4 is not valid CSV", "close every double quote"],
    ),
    ("one class", GOOD.replace(",b", ",a"), ["a.csv", "labels in column 'label' are 'a'", "at least two classes"]),
    ("two rows", GOOD[:31], ["a.csv has 2 rows", "give more rows, other fractions, or a file for each split"]),
]
JSONL = [
    ("not JSON", "{'text': 'one'}\n", ["a.jsonl, row 2 is not JSON", "write one object per line"]),
    ("an array", f"[{OBJECT.strip()}]\n", ["a.jsonl, row 2 is not an object", 'write lines like {"text"']),
    ("a missing key", '{"text": "two"}\n', ["a.jsonl, row 2 has no 'label'", "every row needs text, label"]),
    ("a number as a text", '{"text": 5, "label": "a"}\n', ["row 2: column 'text' contains 5", "put it in quotes"]),
    ("mixed labels", '{"text": "two", "label": 1}\n', ["a.jsonl, row 2", "row 1 has 'a'", "not both"]),
]
PARQUET = [
    ("a csv", GOOD, ["a.parquet is not a valid parquet file", "write or download it again"]),
    (
        "half a file",
        parquet(text=["a"], label=["x"])[:-9],
        ["a.parquet is not a valid parquet file", "download it again"],
    ),
    ("null", parquet(text=["a", None], label=["x", "y"]), ["a.parquet, row 2: column 'text' is empty", "fill it in"]),
    (
        "fractions",
        parquet(text=["a"], label=[0.5]),
        ["a.parquet, row 1", "the label 0.5", "labels must be strings or integers"],
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
    ("no such file", "a.csv", ["a.csv cannot be read (No such file", "data.source must name a readable file"]),
    ("another kind of file", "overlay.yaml", ["overlay.yaml", "files that end in .jsonl, .csv or .parquet"]),
    (
        "no such name",
        "roten_tomatoes",
        ["roten_tomatoes", "could not be downloaded", "use a packaged data set (rotten_tomatoes"],
    ),
    ("texts as labels", "reviews.csv --data.label=text", ["reviews.csv: column 'text' has 40", "--data.label=..."]),
    ("no such second text", "reviews.csv --data.text_pair=answer", ["no column 'answer'", "--data.text_pair=..."]),
    ("no such split", "reviews.csv --data.validation=dev", ["--data.validation=dev", "use train", "a fraction"]),
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
        ["ylecun/mnist", "could not be downloaded", "--data.source=catalog"],
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
        ["idx/train-images-idx3-ubyte has 470409 bytes", "declares 470416", "download it again"],
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
        ["idx has 600 train images but 200 train labels", "the files do not match"],
        steps=[copy(TEST_LABELS, TRAIN_LABELS)],
    ),
    Case(
        "a label above 9",
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

OTHER_MODEL = ["does not match the configured model", "network.0.weight", "it was trained with"]

RUNS = [
    Case(
        "eval, other classes",
        "eval bert_cls --data.source=others.csv",
        ["the checkpoint has the classes bad, good", "others.csv has a, b", "evaluate with the classes of the run"],
        {"others.csv": GOOD},
    ),
    Case(
        "eval, of another run", "eval mnist_mlp", OTHER_MODEL, steps=[copy(f"{TEXT_RUN}/checkpoints/best.ckpt", BEST)]
    ),
    Case("init, another model", f"{MNIST} --init=bert_cls", OTHER_MODEL),
    Case("fork, another model", f"{MNIST} --fork=bert_cls", OTHER_MODEL),
    Case(
        "resume, of another run",
        "fit --resume=mnist_mlp",
        ["last.ckpt belongs to the run", "which was started with other settings: data.class_path", "--fork="],
        steps=[interrupt(RUN), copy(f"{TEXT_RUN}/checkpoints/last.ckpt", LAST)],
    ),
    Case(
        "resume, another experiment",
        f"{MNIST} --resume=bert_cls",
        ["was started with other settings: data.class_path", "--fork=bert_cls"],
        steps=[interrupt(TEXT_RUN)],
    ),
    Case(
        "resume, other images",
        "fit --resume=mnist_mlp",
        ["the data differ from those of ", " (train_images ", "restore them", "--fork=mnist_mlp/"],
        steps=[interrupt(RUN), flip_a_bit(TRAIN_IMAGES)],
    ),
    Case(
        "resume, other texts",
        "fit --resume=bert_cls",
        [
            "the data differ from those of ",
            " (examples.train 32 -> 33, source ",
            "restore them",
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
]

GROUPS = {"setting": SETTINGS, "data": DATA, "run": RUNS}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
THROUGH_THE_REAL_COMMAND = ["data: csv, an empty text", "data: an IDX file that is cut short"]


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory,
    make_project: Callable[[Path, Path], Path],
    idx_folder: Path,
    tiny_bert: Path,
    tiny_t5: Path,
) -> Path:
    """A project with all its data and two finished runs."""
    folder = make_project(tmp_path_factory.mktemp("bad_input") / "project", Path("idx"))
    shutil.copytree(idx_folder, folder / "idx")
    shutil.copytree(tiny_bert, folder / "bert")
    shutil.copytree(tiny_t5, folder / "t5")
    rows = (f"the film was {word} {number},{word}\n" for number in range(20) for word in ("good", "bad"))
    (folder / "reviews.csv").write_text("text,label\n" + "".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("LITLAB_CACHE", str(folder.parent / "cache"))
        for command in (MNIST, f"{TEXTS}reviews.csv --trainer.max_epochs=1 --trainer.precision=32-true"):
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
    assert_refused_by_command(CASES[name], monkeypatch, litlab)
