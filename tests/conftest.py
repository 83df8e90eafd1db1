"""Shared fixtures: a small project, small images and pretrained models, and the litlab command."""

import functools
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]
TESTS = PROJECT / "tests"
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it only when it is imported


def isolate(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Hide the user's credentials, cache, runs and network, and let subprocesses import from tests/."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "LITLAB_")):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(TESTS) not in path:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [*path, str(TESTS)])))


@pytest.fixture(scope="session", autouse=True)
def session_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate the fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("home"))
        yield


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Isolate each test, with its own empty home folder."""
    isolate(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files of MNIST, with 600 training and 200 test images: a blurred spot per digit at its own position."""
    folder = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    centres = [(6 + 5 * (digit // 4), 4 + 6 * (digit % 4)) for digit in range(10)]
    prototypes = np.stack([np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 18) for r, c in centres]) * 200
    for name, size in (("train", 600), ("t10k", 200)):
        labels = random.permutation(np.arange(size) % 10).astype(np.uint8)
        images = (prototypes[labels] + random.normal(0, 25, (size, 28, 28))).clip(0, 255).astype(np.uint8)
        header = np.array([0x803, size, 28, 28], ">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(np.array([0x801, size], ">u4").tobytes() + labels.tobytes())
    return folder


WORDS = (
    "the a an and or not of to in it is was film movie plot story actor scene good great fine bad poor dull best worst "
    "very too more less one two three four five six seven eight nine ten red green blue cat dog house tree river"
)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_pretrained: a BERT with random weights, and a tokenizer for a few words and all letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    letters = [*string.ascii_lowercase, *string.digits, *".,!?'-"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *WORDS.split()]))
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of save_pretrained: a T5 with random weights, and a tokenizer that adds </s> to every text."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny_t5")
    bytes_and_words = Tokenizer(BPE())
    bytes_and_words.pre_tokenizer = pre_tokenizers.ByteLevel()
    bytes_and_words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bytes_and_words.train_from_iterator([WORDS, WORDS], trainer)
    bytes_and_words.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_and_words, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def small_project(folder: Path) -> Path:
    """Create a project: the repository's configs without experiments, and the experiments of tests/small with data."""
    from small.data import write_examples, write_language

    shutil.copytree(PROJECT / "configs", folder / "configs", ignore=shutil.ignore_patterns("experiment"))
    (folder / "configs" / "experiment").mkdir()
    for file in (TESTS / "small").glob("*.yaml"):
        shutil.copy(file, folder / "configs" / "experiment")
    write_examples(folder / "examples")
    for language in ("english", "german"):
        write_language(folder / language, language)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with the experiments small and speller."""
    return small_project(tmp_path / "project")


Command = Callable[..., subprocess.CompletedProcess[str]]


def run_litlab(
    project: Path, *arguments: str, timeout: float = 120, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the litlab command in a project folder, in its own process.

    Args:
        project: the project folder.
        arguments: command line after `litlab`.
        timeout: time limit in seconds.
        fresh: start a new interpreter, which needs seconds; otherwise use a copy of one, see `forked`.
        environment: additional environment variables.
    """
    command, variables = ["-m", "litlab", *arguments], {**os.environ, **environment}
    if not fresh:
        return forked.run(command, timeout, project, variables)
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def litlab(project: Path) -> Command:
    """A function that runs the litlab command with arguments, in the project folder and in its own process."""
    return functools.partial(run_litlab, project)


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder as the working folder, to call commands in this process."""
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `interruption.Interrupter`. W&B is disabled, because its session would outlive the test."""
    from interruption import Interrupter

    monkeypatch.setenv("WANDB_MODE", "disabled")
    return Interrupter(monkeypatch)
