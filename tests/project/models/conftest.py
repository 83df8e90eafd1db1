"""Shared fixtures for the tests of the summarizers."""

import csv
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

WORDS = ("the", "plot", "of", "a", "good", "film", "was", "dull", "and", "its", "actor", "poor")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training, a validation and a test file of texts (1 to 30 words) and summaries (1 to 12 words)."""
    folder, source = tmp_path_factory.mktemp("texts"), random.Random(0)
    for split, size in (("train", 12), ("validation", 9), ("test", 5)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = [[" ".join(source.choices(WORDS, k=source.randint(1, k))) for k in (30, 12)] for _ in range(size)]
            csv.writer(file).writerows([["text", "summary"], *rows])
    return folder


@pytest.fixture(scope="module")
def tiny_bart(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with the tokenizer of the tiny T5; its decoder starts with </s>, token 1."""
    folder = tmp_path_factory.mktemp("tiny_bart")
    for file in tiny_t5.glob("tokenizer*"):
        shutil.copy(file, folder)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=400, d_model=16, max_position_embeddings=64, **layers, **heads, **special)
    config.forced_eos_token_id = None
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder
