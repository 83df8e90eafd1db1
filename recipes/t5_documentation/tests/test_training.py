"""The recipe's stages through the litlab command: creating the data, exact resume, weights for the next stage."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import differing
from in_process import fit, logged, newest
from interruption import EVERY_STEP, INTERRUPTIONS, assert_continues_bit_for_bit
from safetensors.torch import load_file

from litlab.runs.directory import rows

CONFIGS = "recipes/t5_documentation/configs"
SIZES = ("--model.d_model=32", "--model.d_ff=64", "--model.num_layers=1", "--model.num_heads=2")
PLAIN = ("--trainer.logger=false", "--trainer.precision=32-true", "--trainer.log_every_n_steps=1")
PRETRAIN = (
    *("-c", f"{CONFIGS}/t5_pretrain.yaml", "--data.tokenizer_size=400", "--data.validation=0.2"),
    *("--data.input_length=16", "--data.batch_size=6", "--trainer.max_epochs=2", *SIZES),
    *("--trainer.log_every_n_steps=1", EVERY_STEP),
)


@pytest.fixture
def documents(recipe: Path) -> str:
    """The option that trains on a file of forty short texts."""
    source = random.Random(0)
    words = ["a", "the", "red", "old", "cat", "house", "river", "saw", "by"]
    lines = [" ".join(source.choices(words, k=9)) for _ in range(40)]
    Path("documents.csv").write_text("\n".join(["text", *lines]) + "\n")
    return "--data.source=documents.csv"


@INTERRUPTIONS
def test_an_interrupted_pretraining_continues_bit_for_bit(documents: str, interrupter: Any, both: bool) -> None:
    hooks = ("on_before_optimizer_step", "on_validation_batch_end", "on_train_end")
    assert_continues_bit_for_bit(interrupter, (*PRETRAIN, documents), hooks, both)
    assert (newest().path / "model" / "config.json").exists()


def test_the_same_command_gives_the_same_run_bit_for_bit(litlab: Any, documents: str) -> None:
    here = fit(*PRETRAIN, documents)
    done = litlab("fit", *PRETRAIN, documents)
    assert done.returncode == 0, done.stderr
    assert newest().path != here.path and not differing(here.path, newest().path)


def test_each_stage_creates_its_data_and_starts_from_the_weights_of_the_stage_before(files_made: list[str]) -> None:
    pretrained = fit(*PRETRAIN).path / "model"
    assert files_made == ["texts.parquet"]
    options = ("--data.batch_size=8", "--trainer.max_epochs=1", "--data.validation=0.2", "--data.test=0.2", *PLAIN)
    for stage, before in (("t5_gap_sentences", "t5_pretrain"), ("t5_multitask", "t5_gap_sentences")):
        run = fit("-c", f"{CONFIGS}/{stage}.yaml", *options)
        assert f"pretrained: runs/{before}/latest/model" in (run.path / "config.yaml").read_text()
        assert (run.path / "model" / "tokenizer.json").read_bytes() == (pretrained / "tokenizer.json").read_bytes()
    assert files_made == ["texts.parquet", "gap_sentences.parquet", "pairs.parquet"]


@pytest.fixture
def pretraining(recipe: Path) -> tuple[str, ...]:
    """The options of a pre-training on a folder of short texts with summaries."""
    source, words = random.Random(0), ["red", "green", "blue", "cat", "dog", "house", "tree", "river", "film", "plot"]
    Path("reports").mkdir()
    for split, size in (("train", 150), ("validation", 30), ("test", 20)):
        texts = [" ".join(source.choices(words, k=source.randint(3, 12))) for _ in range(size)]
        lines = (json.dumps({"text": f"{text.capitalize()}. And more.", "summary": f"On {text}"}) for text in texts)
        Path(f"reports/{split}.jsonl").write_text("\n".join(lines) + "\n")
    return (
        *("-c", f"{CONFIGS}/t5_pretrain.yaml", "--data.source=reports", "--data.validation=validation"),
        *("--data.tokenizer_size=400", "--data.input_length=16", "--data.batch_size=8", "--trainer.max_epochs=1"),
        *(*SIZES, *PLAIN),
    )


def assert_weights_are_saved(run: Path) -> None:
    """Check that the run learns, pads nothing, and saves the weights of its last checkpoint in half precision."""
    assert {row.get("train/padding_share") for row in rows(run)} == {0, None}
    losses = [row["train/loss"] for row in rows(run) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.5
    model = load_file(run / "model" / "model.safetensors")
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in model.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, weights[f"network.{name}"].bfloat16()) for name, tensor in model.items())


def test_pretrained_weights_can_be_fine_tuned(pretraining: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert_weights_are_saved(fit(*pretraining).path)
    capsys.readouterr()
    fit(
        *("-c", "configs/experiment/t5_sum.yaml", "--data.source=reports", "--trainer.max_epochs=1", *PLAIN),
        "--model.pretrained=runs/t5_pretrain/latest/model",
    )
    assert "training a tokenizer" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_pretrain_like_one(litlab: Any, pretraining: tuple[str, ...]) -> None:
    losses = []
    for more in ((), ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")):
        done = litlab("fit", *pretraining, *more)
        assert done.returncode == 0, done.stderr
        run = newest()
        losses.append(logged(run, "train/loss"))
        assert_weights_are_saved(run.path)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
