"""A person's own texts, through the real command: from a file to scores, samples and predictions."""

import json
import random
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from litlab.runs.directory import RunDirectory, rows

SIZES = ("--model.d_model=32", "--model.d_ff=64", "--model.num_layers=1", "--model.num_heads=2")
# a draw that rounding decides makes two trainings part, for which random weights learn nothing from what they draw
SMALL_T5 = ("--model.pretrained=null", "--model.risk_samples=0", *SIZES)
PLAIN = ("--trainer.logger=false", "--trainer.precision=32-true", "--trainer.log_every_n_steps=1")


def newest(project: Path) -> RunDirectory:
    return RunDirectory((project / "runs" / "latest").resolve())


@pytest.fixture
def reviews(project: Path) -> Path:
    """A CSV file of 200 reviews whose class a single word tells."""
    chance = random.Random(0)
    lines = ["review,stars"]
    for number in range(200):
        good = chance.random() < 0.5
        word = chance.choice(["great", "good", "best"] if good else ["bad", "poor", "dull"])
        lines.append(f'"the {chance.choice(["film", "plot", "actor"])}, scene {number}, was {word}",{5 if good else 1}')
    file = project / "reviews.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def reports(project: Path) -> Path:
    """A folder with one JSON-lines file per split: what is to be written is the first two words of a text, twice apart."""
    chance = random.Random(0)
    folder = project / "reports"
    folder.mkdir()
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river", "film", "plot"]
    for split, size in (("train", 150), ("validation", 30), ("test", 20)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(size):
                text = " ".join(chance.choices(words, k=chance.randint(3, 12)))
                file.write(json.dumps({"body": f"{text.capitalize()}. And more.", "abstract": f"On {text}"}) + "\n")
    return folder


def test_one_command_leads_from_a_csv_to_a_classifier(litlab, project: Path, reviews: Path, tiny_bert: Path) -> None:
    done = litlab(
        "fit", "-c", "configs/experiment/bert_cls.yaml", "--data.source=reviews.csv", "--data.text=review", "--data.label=stars",
        f"--model.pretrained={tiny_bert}", "--data.max_length=null", "--model.learning_rate=2e-3", "--data.batch_size=8", "--trainer.max_epochs=8", *PLAIN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reviews.csv: 160 train, 20 validation, 20 test" in done.stdout and "classes    1, 5" in done.stdout
    run = newest(project)
    scores = json.loads((run.path / "eval.json").read_text())["val"]["scores"]
    assert set(scores) == {f"val/{name}" for name in ("loss", "accuracy", "precision", "recall", "f1", "roc_auc")}
    assert scores["val/accuracy"] == 1.0  # one word tells: anything less means that text and label have been mixed up
    assert litlab("eval", "latest").returncode == 0
    table = pyarrow.parquet.read_table(run.path / "predictions" / "test.parquet")
    lines = reviews.read_text().splitlines()[1:]
    for row in table.to_pylist():  # the id is the row of the file
        assert ("1", "5")[row["target"]] == lines[row["id"]].split(",")[-1]
    assert run.record()["data_fingerprint"] and run.record()["class_names"] == ["1", "5"]
    (project / "others.csv").write_text(reviews.read_text().replace(",1\n", ",7\n"))
    refused = litlab("eval", "latest", "--data.source=others.csv")
    assert (
        refused.returncode == 2 and "the checkpoint tells 1, 5 apart, data.source=others.csv has 5, 7" in refused.stderr
    )


def test_t5_learns_from_a_folder_and_shows_what_it_writes(litlab, project: Path, reports: Path) -> None:
    options = (
        "-c", "configs/experiment/t5_sum.yaml", "--data.source=reports", "--data.text=body", "--data.summary=abstract",
        "--data.tokenizer_size=300", "--trainer.max_epochs=2", *SMALL_T5, *PLAIN,
    )  # fmt: skip
    done = litlab("fit", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nsource  ") == done.stdout.count("\ntext    ") == 10
    run = newest(project)
    scores = json.loads((run.path / "eval.json").read_text())["val"]["scores"]
    names = [f"{prefix}{name}" for prefix in ("", "lead1_") for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
    assert set(scores) == {f"val/{name}" for name in ("loss", "capped", "generated_tokens", *names)}
    losses = [float(row["val/loss"]) for row in rows(run.path) if row.get("val/loss")]
    assert losses[-1] < losses[0]
    texts = [json.loads(line) for line in (reports / "validation.jsonl").read_text().splitlines()]
    for row in pyarrow.parquet.read_table(run.path / "predictions" / "val.parquet").to_pylist():
        assert row["source"] == texts[row["id"]]["body"] and row["target"] == texts[row["id"]]["abstract"]
    assert "--data.tokenizer" not in done.stderr
    again = litlab("fit", "-c", str(run.path / "config.yaml"))
    assert (
        again.returncode == 0 and "training a tokenizer" in done.stderr and "training a tokenizer" not in again.stderr
    )
    assert json.loads((newest(project).path / "eval.json").read_text())["val"]["scores"] == scores
    for split in ("train", "validation", "test"):
        file = reports / f"{split}.jsonl"
        file.write_text(file.read_text().replace("green", "violet"))
    refused = litlab("eval", "latest")
    assert refused.returncode == 2 and "was trained with another tokenizer" in refused.stderr


def test_two_processes_weigh_tokens_like_one(litlab, project: Path, reports: Path) -> None:
    options = (
        "-c", "configs/experiment/t5_sum.yaml", "--data.source=reports", "--data.text=body", "--data.summary=abstract",
        "--data.tokenizer_size=300", "--trainer.max_epochs=1", "--model.dropout=0", *SMALL_T5, *PLAIN,
    )  # fmt: skip
    losses, scores = [], []
    for more in ((), ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")):
        done = litlab("fit", *options, *more)
        assert done.returncode == 0, done.stderr
        run = newest(project)
        losses.append([float(row["train/loss"]) for row in rows(run.path) if row.get("train/loss")])
        scores.append(json.loads((run.path / "eval.json").read_text())["val"]["scores"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_what_is_pretrained_can_be_fine_tuned(litlab, project: Path, reports: Path) -> None:
    """From documents to a folder with a model, over two processes too, and from there to summaries."""
    options = (
        "-c", "configs/experiment/t5_pretrain.yaml", "--data.source=reports", "--data.text=body", "--data.validation=validation",
        "--data.tokenizer_size=400", "--data.input_length=16", "--data.batch_size=8", "--trainer.max_epochs=1", *SIZES, *PLAIN,
    )  # fmt: skip
    losses, models = [], []
    for more in ((), ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")):
        done = litlab("fit", *options, *more)
        assert done.returncode == 0, done.stderr
        run = newest(project)
        found = list(rows(run.path))
        losses.append([float(row["train/loss"]) for row in found if row.get("train/loss")])
        assert {row.get("train/padding_share") for row in found} == {0, None}
        models.append(load_file(run.path / "model" / "model.safetensors"))
        weights = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert {tensor.dtype for tensor in models[-1].values()} == {torch.bfloat16}
        for name, tensor in models[-1].items():
            assert torch.equal(tensor, weights[f"network.{name}"].bfloat16())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < losses[0][0] - 0.5
    done = litlab(
        "fit", "-c", "configs/experiment/t5_sum.yaml", "--data.source=reports", "--data.text=body", "--data.summary=abstract",
        "--model.pretrained=runs/t5_pretrain/latest/model", "--trainer.max_epochs=1", *PLAIN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training a tokenizer" not in done.stderr
