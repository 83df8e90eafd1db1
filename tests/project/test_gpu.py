"""What only a GPU can show. Without one, all of this is skipped; `python -m benchmarks.on_gpu` runs it and the benchmarks."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differing
from in_process import content, fit, logged
from interruption import Interrupter, fit_interrupted, terminate
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from litlab.cli.main import run
from litlab.nn.fast_transformers import speed_up
from litlab.nn.padding_free import classify, compile_training, has_kernel, pack
from litlab.nn.t5_decoding import greedy
from litlab.runs.directory import RunDirectory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
LENGTHS = [70, 1, 210, 120, 30, 3, 256, 64]
PLAIN = ("--trainer.logger=false",)
WORDS = ("the", "film", "a", "plot", "story", "of", "scene", "actor", "is")
EXACT = "--trainer.deterministic=true"


def bert(**settings: Any) -> BertForSequenceClassification:
    """A BERT without dropout whose large weights make every token matter to every other."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    network = BertForSequenceClassification(BertConfig(vocab_size=1000, num_labels=3, **sizes, **off, **settings))
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.data *= 3
    return network.to(GPU).train()


def texts(lengths: list[int], vocabulary: int = 1000) -> dict[str, Tensor]:
    """Random tokens and their mask, (texts, longest)."""
    draws = torch.Generator().manual_seed(0)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(2, vocabulary, mask.shape, generator=draws) * mask
    return {"input_ids": tokens, "attention_mask": mask}


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(GPU) if torch.is_tensor(value) else value for name, value in batch.items()}


def learnt(network: BertForSequenceClassification, logits: Callable[[], Tensor], bf16: bool) -> dict[str, Tensor]:
    """Logits and all gradients, float32."""
    network.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        found = logits()
        loss = F.cross_entropy(found.float(), torch.arange(len(found), device=GPU) % 3)
    loss.backward()
    gradients = {name: p.grad.float().clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"logits": found.detach().float(), **gradients}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of two sets of tensors."""
    return max(float((one[name] - other[name]).norm() / one[name].norm().clamp(min=1e-6)) for name in one)


def test_padding_free_bert_has_the_logits_and_gradients_of_the_padded_one() -> None:
    network, batch = bert(), texts(LENGTHS)
    assert has_kernel(network, GPU, "bf16-mixed")
    padded, packed = on_gpu(batch), on_gpu(pack(batch))
    exact = learnt(network, lambda: network(**padded).logits, bf16=False)
    rounded = learnt(network, lambda: network(**padded).logits, bf16=True)
    speed_up(network)
    found = learnt(network, lambda: classify(network, packed), bf16=True)
    assert distance(exact, found) < 1.5 * distance(exact, rounded)


def test_compiled_bert_has_the_logits_and_gradients_of_the_uncompiled_one() -> None:
    network, batch = bert(), texts([30, 60, 20, 40])
    speed_up(network)
    packed = on_gpu(pack(batch, longest=512))
    exact = learnt(network, lambda: network(**on_gpu(batch)).logits, bf16=False)
    rounded = learnt(network, lambda: classify(network, packed), bf16=True)
    compile_training(network)
    found = learnt(network, lambda: classify(network, packed), bf16=True)
    assert distance(exact, found) < 1.5 * distance(exact, rounded)


def t5() -> T5ForConditionalGeneration:
    """A T5 whose large weights make the next token depend on the text and on all tokens before it."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    network = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).to(GPU).eval()
    for parameter in network.parameters():
        parameter.data.mul_(3)
    return network


@pytest.mark.parametrize("size", [0, 2])
def test_recorded_decoding_writes_what_generate_writes(size: int) -> None:
    network, limits = t5(), {"max_new_tokens": 24, "no_repeat_ngram_size": size}
    batch = on_gpu(texts([9, 50, 33, 64, 20, 41, 12], vocabulary=40))
    for _ in range(3):  # the second and third time, the recording is replayed with other weights
        expected = network.generate(**batch, **limits, do_sample=False, num_beams=1)[:, 1:]
        found = greedy(network, **batch, **limits)
        assert len(expected.unique(dim=0)) > 3, "the texts should matter"
        assert torch.equal(found, expected)
        network.decoder.block[0].layer[0].SelfAttention.o.weight.data *= -1.1


def test_recorded_decoding_in_bfloat16_writes_nearly_what_generate_writes() -> None:
    network, batch = t5(), on_gpu(texts([9, 50, 33, 64, 20, 41, 12, 5] * 8, vocabulary=40))
    with torch.autocast("cuda", torch.bfloat16):
        expected = network.generate(**batch, max_new_tokens=12, do_sample=False, num_beams=1)[:, 1:]
        found = greedy(network, **batch, max_new_tokens=12, no_repeat_ngram_size=0)
    assert (found == expected).float().mean() > 0.8  # after one token that differs, all that follow may differ


@pytest.fixture
def trainings(inside: Path, tiny_bert: Path, tiny_t5: Path) -> dict[str, tuple[str, ...]]:
    """Options of short trainings of each kind of model."""
    draws = random.Random(0)
    lines = ["review,stars,title"]
    for _ in range(200):
        stars = draws.choice((1, 5))
        words = draws.choices(WORDS, k=draws.randrange(3, 24))
        lines.append(f"{' '.join(words)} {'great' if stars == 5 else 'poor'},{stars},{words[0]} film")
    Path("reviews.csv").write_text("\n".join(lines) + "\n")
    columns = ("--data.source=reviews.csv", "--data.text=review")
    mnist = ("-c", "configs/experiment/mnist_mlp.yaml")
    bert = ("-c", "configs/experiment/bert_cls.yaml", *columns, "--data.label=stars", "--data.max_length=null")
    bert = (*bert, f"--model.pretrained={tiny_bert}", "--model.learning_rate=1e-3")
    t5 = ("-c", "configs/experiment/t5_xsum.yaml", *columns, "--data.summary=title", "--data.configuration=null")
    t5 = (*t5, f"--model.pretrained={tiny_t5}", "--model.num_beams=1", "--model.max_new_tokens=8")
    ends = ("--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", *PLAIN)
    halves = ("--trainer.precision=bf16-mixed",)
    return {
        "mnist": (*mnist, *ends),
        "bert_packed": (*bert, *halves, *ends),
        "bert_padded": (*bert, "--model.padding_free=false", *halves, *ends),
        "t5": (*t5, *halves, *ends),
    }


KINDS = ("mnist", "bert_packed", "bert_padded", "t5")


def falls(directory: RunDirectory) -> bool:
    """Whether the training loss ended lower than it began."""
    losses = logged(directory, "train/loss")
    return sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_on_the_gpu_and_is_evaluated(kind: str, trainings: dict[str, tuple[str, ...]]) -> None:
    directory = fit(*trainings[kind])
    assert falls(directory)
    hardware = json.dumps(directory.record()["hardware"])
    assert torch.cuda.get_device_name() in hardware
    assert run("eval", ["latest"]) == 0
    assert directory.evaluations()["test"]["examples"] > 0
    if kind == "mnist":
        assert directory.evaluations()["test"]["metrics"]["test/accuracy"] > 0.9


@pytest.fixture
def one_process() -> Iterator[None]:
    """Lets a test start distributed training in this process, again and again."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("overlay", ["gpu", "ddp"])
@pytest.mark.parametrize("kind", ["mnist", "bert_packed", "t5"])
def test_the_overlay_with_one_device_trains_like_no_overlay(
    overlay: str, kind: str, trainings: dict[str, tuple[str, ...]], one_process: None
) -> None:
    one = fit(*trainings[kind])
    other = fit(*trainings[kind], "-c", f"configs/hardware/{overlay}.yaml", "--trainer.devices=1")
    assert logged(other, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=0.02, abs=0.02)
    assert set(content(other)["state_dict"]) == set(content(one)["state_dict"])


@pytest.mark.parametrize("kind", ["mnist", "bert_packed", "t5"])
def test_fsdp_with_one_device_trains_and_its_checkpoint_is_evaluated_without_fsdp(
    kind: str, trainings: dict[str, tuple[str, ...]], one_process: None
) -> None:
    directory = fit(*trainings[kind], "-c", "configs/hardware/fsdp.yaml", "--trainer.devices=1")
    assert falls(directory)
    before = directory.evaluations()["val"]["metrics"]
    assert run("eval", ["latest", "--split=val", "--trainer.strategy=auto"]) == 0
    assert directory.evaluations()["val"]["metrics"] == pytest.approx(before, rel=0.02, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deterministic_run_repeats_and_resumes_bit_for_bit(
    kind: str, trainings: dict[str, tuple[str, ...]], interrupter: Interrupter
) -> None:
    interrupter.never()
    whole = fit(*trainings[kind], EXACT)
    repeated = fit(*trainings[kind], EXACT)
    assert repeated.path != whole.path and not differing(whole.path, repeated.path)
    shutil.rmtree(repeated.path)
    interrupter.after_steps(4, terminate)
    part = fit_interrupted(*trainings[kind], EXACT)
    interrupter.never()
    assert fit("--resume=latest").path == part.path != whole.path
    assert not differing(whole.path, part.path)
