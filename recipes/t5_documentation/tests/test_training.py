"""The recipe's trainings through the real command: made data, exact resumption, and weights that the next stage reads."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import differing
from in_process import fit, logged, newest
from interruption import EVERY_STEP, assert_continues_bit_for_bit
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
    """Forty short texts of one's own."""
    source = random.Random(0)
    words = ["a", "the", "red", "old", "cat", "house", "river", "saw", "by"]
    lines = [" ".join(source.choices(words, k=9)) for _ in range(40)]
    Path("documents.csv").write_text("\n".join(["text", *lines]) + "\n")
    return "--data.source=documents.csv"


def test_a_pretraining_that_was_stopped_continues_bit_for_bit(documents: str, interrupter: Any) -> None:
    hooks = ("on_before_optimizer_step", "on_validation_batch_end", "on_train_end")
    assert_continues_bit_for_bit(interrupter, (*PRETRAIN, documents), hooks)
    assert (newest().path / "model" / "config.json").exists()


def test_the_same_command_gives_the_same_bits(litlab: Any, documents: str) -> None:
    runs = []
    for _ in range(2):
        done = litlab("fit", *PRETRAIN, documents)
        assert done.returncode == 0, done.stderr
        runs.append(newest().path)
    assert runs[0] != runs[1] and not differing(*runs)


def test_one_command_makes_the_data_and_each_stage_reads_the_weights_of_the_one_before(files_made: list[str]) -> None:
    pretrained = fit(*PRETRAIN).path / "model"
    assert files_made == ["texts.parquet"]
    options = ("--data.batch_size=8", "--trainer.max_epochs=1", "--data.validation=0.2", "--data.test=0.2", *PLAIN)
    for stage, before in (("t5_gap_sentences", "t5_pretrain"), ("t5_multitask", "t5_gap_sentences")):
        run = fit("-c", f"{CONFIGS}/{stage}.yaml", *options)
        assert f"pretrained: runs/{before}/latest/model" in (run.path / "config.yaml").read_text()
        assert (run.path / "model" / "tokenizer.json").read_bytes() == (pretrained / "tokenizer.json").read_bytes()
    assert files_made == ["texts.parquet", "gap_sentences.parquet", "pairs.parquet"]


def test_two_processes_pretrain_like_one_and_the_weights_can_be_fine_tuned(litlab: Any, recipe: Path) -> None:
    source, words = random.Random(0), ["red", "green", "blue", "cat", "dog", "house", "tree", "river", "film", "plot"]
    Path("reports").mkdir()
    for split, size in (("train", 150), ("validation", 30), ("test", 20)):
        texts = [" ".join(source.choices(words, k=source.randint(3, 12))) for _ in range(size)]
        lines = (json.dumps({"text": f"{text.capitalize()}. And more.", "summary": f"On {text}"}) for text in texts)
        Path(f"reports/{split}.jsonl").write_text("\n".join(lines) + "\n")
    options = (
        *("-c", f"{CONFIGS}/t5_pretrain.yaml", "--data.source=reports", "--data.validation=validation"),
        *("--data.tokenizer_size=400", "--data.input_length=16", "--data.batch_size=8", "--trainer.max_epochs=1"),
        *(*SIZES, *PLAIN),
    )
    losses = []
    for more in ((), ("-c", "configs/hardware/ddp.yaml", "--trainer.devices=2")):
        done = litlab("fit", *options, *more)
        assert done.returncode == 0, done.stderr
        run = newest()
        losses.append(logged(run, "train/loss"))
        assert {row.get("train/padding_share") for row in rows(run.path)} == {0, None}
        model = load_file(run.path / "model" / "model.safetensors")
        weights = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert {tensor.dtype for tensor in model.values()} == {torch.bfloat16}
        assert all(torch.equal(tensor, weights[f"network.{name}"].bfloat16()) for name, tensor in model.items())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < losses[0][0] - 0.5
    done = litlab(
        *("fit", "-c", "configs/experiment/t5_sum.yaml", "--data.source=reports", "--trainer.max_epochs=1", *PLAIN),
        "--model.pretrained=runs/t5_pretrain/latest/model",
    )
    assert done.returncode == 0, done.stderr
    assert "training a tokenizer" not in done.stderr
