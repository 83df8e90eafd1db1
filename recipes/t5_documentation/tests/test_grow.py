"""A T5 with added layers gives the same output as before, and all of its weights are trained."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from litlab.data import token_cache
from litlab.errors import BadInput
from litlab.sources import pretrained
from project.models.t5_summarizer import T5Summarizer
from recipes.t5_documentation import grow as command
from recipes.t5_documentation.grow import grow


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["grow", *map(str, arguments)])
    return command.main()


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(2, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, 300, (4, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def t5(request: pytest.FixtureRequest, tiny_t5: Path, tmp_path: Path) -> Path:
    """A T5 with two encoder and two decoder layers, with tied or, as in T5 1.1, untied output embeddings."""
    if request.param:
        return tiny_t5
    network: Any = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5, dtype=torch.float32)
    network.config.tie_word_embeddings = False
    network.lm_head.weight = torch.nn.Parameter(torch.randn_like(network.lm_head.weight))
    network.generation_config.eos_token_id = [1, 7]
    network.save_pretrained(tmp_path / "untied")
    for file in tiny_t5.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "untied")
    return tmp_path / "untied"


def test_the_deeper_t5_gives_the_same_output_and_every_weight_gets_a_gradient(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "deeper"
    assert run(monkeypatch, t5, out, "--encoder", 3, "--decoder", 1) == 0
    assert capsys.readouterr().out == (f"{out}: 5 encoder and 3 decoder layers; train with --model.pretrained={out}\n")
    assert [path.name for path in out.parent.iterdir()] == ["deeper"]
    small, large = models = [
        T5Summarizer(str(folder), dropout=0.0, num_beams=2, max_new_tokens=9) for folder in (t5, out)
    ]
    for model in models:
        model.configure_model()
    tied = [model.network.lm_head.weight is model.network.shared.weight for model in models]
    assert tied[0] == tied[1] == (t5.name != "untied")
    encoder, decoder = large.network.encoder, large.network.decoder
    assert (len(encoder.block), len(decoder.block)) == (5, 3) and len(small.network.encoder.block) == 2
    # 2 layers become 5: three copies of the first, two copies of the second
    first, second = (block.layer[0].SelfAttention.q.weight for block in small.network.encoder.block)
    for block, of in zip(encoder.block, (first, first, first, second, second), strict=True):
        torch.testing.assert_close(block.layer[0].SelfAttention.q.weight, of, rtol=0, atol=0)
    torch.testing.assert_close(large(batch()), small(batch()))
    torch.testing.assert_close(large.generate(batch()), small.generate(batch()), rtol=0, atol=0)
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2)
    for _ in range(2):  # in the first step, the weights behind a zero output weight have zero gradients
        optimizer.zero_grad()
        large(batch()).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in large.parameters())


def test_the_tokenizer_is_copied(tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, tiny_t5, tmp_path / "deeper", "--encoder=1") == 0
    before, after = (pretrained.load_tokenizer(str(folder)) for folder in (tiny_t5, tmp_path / "deeper"))
    assert token_cache.fingerprint(before) == token_cache.fingerprint(after)


def test_the_given_network_is_not_changed(tiny_t5: Path) -> None:
    network: Any = pretrained.load_model(AutoModelForSeq2SeqLM, str(tiny_t5))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    grow(network, 2, 2)
    assert network.config.num_layers == 2 and len(network.encoder.block) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_a_network_that_is_not_a_t5_is_refused() -> None:
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=9, d_model=4, encoder_layers=1, decoder_layers=1, **heads)
    )
    with pytest.raises(BadInput, match=r"^cannot add layers to a BartForConditionalGeneration: only T5 is supp"):
        grow(bart, 1, 0)


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        (
            "tiny_t5",
            ("--encoder=1", "--decoder=2"),
            "--decoder=2: the decoder would have 4 layers, more than the encoder's 3: add",
        ),
        ("./nowhere", (), "no model './nowhere': there is no such folder"),
        ("tiny_t5", (), "{out} already exists: choose a new folder, or delete this one."),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_status_2(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "deeper"
    if "exists" in message:
        out.mkdir()
    source = tiny_t5 if folder == "tiny_t5" else folder
    assert run(monkeypatch, source, out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"litlab: {message.format(out=out)}") and error.count("\n") == 1
    assert not any(tmp_path.rglob("*.safetensors"))


def test_a_negative_number_of_layers_is_refused(tmp_path: Path, tiny_t5: Path) -> None:
    module = "recipes.t5_documentation.grow"
    outcome = subprocess.run(
        [sys.executable, "-m", module, tiny_t5, tmp_path / "deeper", "--encoder=-1"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 2 and "'-1' is not an integer of at least 0" in outcome.stderr
