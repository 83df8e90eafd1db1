"""Small versions of the three experiments: exact resume, several processes, and a user's own texts."""

import json
import os
import random
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from conftest import WORDS, Command
from exactness import differing
from in_process import fit, logged, newest, weights
from interruption import EVERY_STEP, INTERRUPTIONS, Interrupter, assert_continues_bit_for_bit

from litlab.cli.main import run
from litlab.errors import BadInput

EXPERIMENTS = ("mnist_mlp", "bert_cls", "t5_sum")
SIZES = ("--model.d_model=32", "--model.d_ff=64", "--model.num_layers=1", "--model.num_heads=2")
# without risk training: rounding can change a sample and with it the training, and random weights give useless samples
SMALL_T5 = ("--model.pretrained=null", "--model.risk_samples=0", *SIZES)
PLAIN = ("--trainer.logger=false", "--trainer.precision=32-true", "--trainer.log_every_n_steps=1")
DDP = ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(params=EXPERIMENTS)
def experiment(request: pytest.FixtureRequest, inside: Path, tiny_bert: Path, tiny_t5: Path) -> tuple[str, ...]:
    """Options for a small version of an experiment: few images, or a tiny model and forty short texts."""
    name, options = request.param, ("--trainer.log_every_n_steps=1", EVERY_STEP)
    if name == "mnist_mlp":
        return ("-c", f"configs/experiment/{name}.yaml", "--data.batch_size=64", *options)
    source = random.Random(0)
    lines = (f"{' '.join(source.choices(WORDS.split(), k=8))} {word},{word}" for word in ["good", "bad"] * 20)
    Path("reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    short = ("--data.source=reviews.csv", "--data.max_length=32", "--data.batch_size=8", "--trainer.max_epochs=2")
    own = {
        "bert_cls": (f"--model.pretrained={tiny_bert}", "--data.label=label"),
        "t5_sum": (f"--model.pretrained={tiny_t5}", "--data.summary=label", "--model.max_new_tokens=4"),
    }
    return ("-c", f"configs/experiment/{name}.yaml", *own[name], *short, *options)


@INTERRUPTIONS
def test_the_experiment_resumes_bit_for_bit(experiment: tuple[str, ...], interrupter: Interrupter, both: bool) -> None:
    hooks = ("on_before_optimizer_step", "on_validation_batch_end")
    assert_continues_bit_for_bit(interrupter, experiment, hooks, both)


def test_the_same_command_in_another_process_gives_the_same_run_bit_for_bit(
    experiment: tuple[str, ...], litlab: Command
) -> None:
    here = fit(*experiment)
    done = litlab("fit", *experiment)
    assert done.returncode == 0, done.stderr
    assert newest().path != here.path and not differing(here.path, newest().path)


def test_the_run_directory_is_complete_and_evaluations_on_the_test_split_are_counted(
    experiment: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = fit(*experiment)
    assert {"best.ckpt", "last.ckpt"} == set(os.listdir(directory.path / "checkpoints"))
    for count in (1, 2):
        capsys.readouterr()
        assert run("eval", ["latest"]) == 0
        assert f"evaluated {count} time" in capsys.readouterr().out
    names = {"config.yaml", "run.json", "metrics.csv", "eval.json", "predictions", "checkpoints"}
    assert names <= set(os.listdir(directory.path))
    record, evaluations = directory.record(), directory.evaluations()
    assert record["status"] == "finished" and record["test_evaluations"] == 2 and record["data_fingerprint"]
    monitored = record["best"]["name"]
    assert record["best"]["score"] == evaluations["val"]["metrics"][monitored] is not None
    for split in ("val", "test"):
        table = pyarrow.parquet.read_table(directory.path / "predictions" / f"{split}.parquet").to_pydict()
        assert len(set(table["id"])) == len(table["id"]) == evaluations[split]["examples"]
        assert {"id", "target", "prediction", "probabilities"} <= set(table) or {"id", "target", "text"} <= set(table)


def test_help_lists_the_options_of_the_experiment(
    experiment: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", [*experiment[:2], "--help"]) == 0
    text = capsys.readouterr().out
    assert "--model.learning_rate = " in text and "--data.batch_size = " in text
    assert "--data.seed" not in text and "--data.tokenizer " not in text


@pytest.mark.slow
def test_two_processes_train_a_perceptron_like_one(litlab: Command, inside: Path) -> None:
    options = ("-c", "configs/experiment/mnist_mlp.yaml", "--trainer.max_epochs=1", *PLAIN)
    one = fit(*options)
    done = litlab("fit", *options, *DDP)
    assert done.returncode == 0, done.stderr
    two = newest()
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-3, atol=1e-5)
    before, after = (part.evaluations()["val"] for part in (one, two))
    assert after["examples"] == before["examples"] == 100
    assert after["metrics"] == pytest.approx(before["metrics"], abs=1e-3)


@pytest.fixture
def reviews(project: Path) -> Path:
    """A CSV file of 200 reviews; a single word determines the class."""
    source = random.Random(0)
    lines = ["review,stars"]
    for number in range(200):
        good = source.random() < 0.5
        word = source.choice(["great", "good", "best"] if good else ["bad", "poor", "dull"])
        lines.append(f'"the {source.choice(["film", "plot", "actor"])}, scene {number}, was {word}",{5 if good else 1}')
    file = project / "reviews.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def reports(project: Path) -> Path:
    """A folder with one JSON Lines file per split; the summary is "On" followed by the first sentence of the text."""
    source = random.Random(0)
    folder = project / "reports"
    folder.mkdir()
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river", "film", "plot"]
    for split, size in (("train", 150), ("validation", 30), ("test", 20)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(size):
                text = " ".join(source.choices(words, k=source.randint(3, 12)))
                file.write(json.dumps({"body": f"{text.capitalize()}. And more.", "abstract": f"On {text}"}) + "\n")
    return folder


def test_one_command_trains_a_classifier_on_a_csv(
    inside: Path, reviews: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--data.source=reviews.csv", "--data.text=review", "--data.label=stars", "--data.max_length=null")
    more = ("--model.learning_rate=2e-3", "--data.batch_size=8", "--trainer.max_epochs=8", *PLAIN)
    directory = fit("-c", "configs/experiment/bert_cls.yaml", f"--model.pretrained={tiny_bert}", *own, *more)
    output = capsys.readouterr().out
    assert "reviews.csv: 160 train, 20 validation, 20 test" in output and "classes    1, 5" in output
    scores = directory.evaluations()["val"]["metrics"]
    assert set(scores) == {f"val/{name}" for name in ("loss", "accuracy", "precision", "recall", "f1", "roc_auc")}
    assert scores["val/accuracy"] == 1.0  # a lower value would mean that texts and labels are mixed up
    assert run("eval", ["latest"]) == 0
    table = pyarrow.parquet.read_table(directory.path / "predictions" / "test.parquet")
    lines = reviews.read_text().splitlines()[1:]
    for row in table.to_pylist():  # the id is the row of the file
        assert ("1", "5")[row["target"]] == lines[row["id"]].split(",")[-1]
    assert directory.record()["data_fingerprint"] and directory.record()["class_names"] == ["1", "5"]
    Path("others.csv").write_text(reviews.read_text().replace(",1\n", ",7\n"))
    with pytest.raises(BadInput, match=r"the checkpoint has the classes 1, 5, but data\.source=others\.csv has 5, 7"):
        run("eval", ["latest", "--data.source=others.csv"])


@pytest.mark.slow
def test_two_processes_train_a_classifier_like_one(
    litlab: Command, inside: Path, reviews: Path, tiny_bert: Path
) -> None:
    shutil.copytree(tiny_bert, "without_dropout")
    file = Path("without_dropout/config.json")
    settings = json.loads(file.read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(settings))
    own = ("--data.source=reviews.csv", "--data.text=review", "--data.label=stars", "--data.max_length=null")
    options = ("-c", "configs/experiment/bert_cls.yaml", "--model.pretrained=without_dropout", *own, *PLAIN)
    one = fit(*options, "--trainer.max_epochs=1")
    done = litlab("fit", *options, "--trainer.max_epochs=1", *DDP)
    assert done.returncode == 0, done.stderr
    two = newest()
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-4)
    before, after = (part.evaluations()["val"] for part in (one, two))
    assert after["examples"] == before["examples"] == 20
    assert after["metrics"] == pytest.approx(before["metrics"], abs=1e-3)


def test_t5_trains_on_a_folder_and_prints_its_summaries(
    inside: Path, reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--data.source=reports", "--data.text=body", "--data.summary=abstract", "--data.tokenizer_size=300")
    directory = fit("-c", "configs/experiment/t5_sum.yaml", *own, "--trainer.max_epochs=2", *SMALL_T5, *PLAIN)
    output, errors = capsys.readouterr()
    assert output.count("\nsource  ") == output.count("\ntext    ") == 10
    scores = directory.evaluations()["val"]["metrics"]
    names = [f"{prefix}{name}" for prefix in ("", "lead1_") for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
    assert set(scores) == {f"val/{name}" for name in ("loss", "capped", "generated_tokens", *names)}
    losses = logged(directory, "val/loss")
    assert losses[-1] < losses[0]
    texts = [json.loads(line) for line in (reports / "validation.jsonl").read_text().splitlines()]
    for row in pyarrow.parquet.read_table(directory.path / "predictions" / "val.parquet").to_pylist():
        assert row["source"] == texts[row["id"]]["body"] and row["target"] == texts[row["id"]]["abstract"]
    assert "training a tokenizer" in errors and "--data.tokenizer" not in errors
    again = fit("-c", str(directory.path / "config.yaml"))
    assert "training a tokenizer" not in capsys.readouterr().err
    assert again.evaluations()["val"]["metrics"] == scores
    for split in ("train", "validation", "test"):
        file = reports / f"{split}.jsonl"
        file.write_text(file.read_text().replace("green", "violet"))
    with pytest.raises(BadInput, match="was trained with another tokenizer"):
        run("eval", ["latest"])


@pytest.mark.slow
def test_two_processes_weight_tokens_like_one(litlab: Command, inside: Path, reports: Path) -> None:
    own = ("--data.source=reports", "--data.text=body", "--data.summary=abstract", "--data.tokenizer_size=300")
    small = ("--trainer.max_epochs=1", "--model.dropout=0", *SMALL_T5, *PLAIN)
    options = ("-c", "configs/experiment/t5_sum.yaml", *own, *small)
    one = fit(*options)
    done = litlab("fit", *options, *DDP)
    assert done.returncode == 0, done.stderr
    two = newest()
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-4)
    assert two.evaluations()["val"]["metrics"] == pytest.approx(one.evaluations()["val"]["metrics"], abs=1e-3)
