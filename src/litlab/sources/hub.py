"""The Hugging Face Hub: one request of ten seconds at most, and one sentence if it fails."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from litlab.errors import BadInput

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # configuration, weights that cannot hold code, tokenizer
TIMEOUT = 10  # seconds to wait for the Hub's answer whether a repository exists

Kind = Literal["model", "dataset"]


def parse_id(name: str) -> tuple[str, str | None]:
    """Split `owner/name@revision` into repository and revision, which is None if it is left out."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def is_id(name: str) -> bool:
    """Whether a name is a valid repository id of the Hub."""
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", parse_id(name)[0]))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never changes, unlike a branch."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


@contextmanager
def access(kind: Kind, name: str, instead: str) -> Iterator[str]:
    """Access the Hub in this block; errors of its clients become one sentence.

    The Hub is asked once. Its clients alone would retry for a minute.

    Args:
        kind: model or dataset.
        name: id of the repository, with or without @revision.
        instead: advice for users who cannot reach the Hub, as in "use a local file".

    Yields:
        The commit of the revision.

    Raises:
        BadInput: if the Hub cannot be reached, or refuses the request.
    """
    from huggingface_hub import HfApi, constants, errors  # imported here: most runs never need it

    # the one request
    repository, revision = parse_id(name)
    try:
        if constants.HF_HUB_OFFLINE:
            yield revision or "main"
        else:
            info = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=TIMEOUT)
            yield revision if revision and is_commit(revision) else str(info.sha)
    except BadInput:
        raise
    except Exception as error:  # the clients raise errors of several libraries, nested in each other
        # the names of all error classes involved
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        kinds = {parent.__name__ for cause in causes for parent in type(cause).__mro__}
        # what the user can do
        if errors.GatedRepoError.__name__ in kinds or "is a gated dataset" in str(error):
            reason = "its owner grants access by request; ask for it on its page, then run .venv/bin/hf auth login"
        elif errors.RevisionNotFoundError.__name__ in kinds:
            reason = f"it has no revision {revision!r}; write a commit, a branch or a tag after the @"
        elif errors.RepositoryNotFoundError.__name__ in kinds:
            reason = "it does not exist or is private; check the name, or run .venv/bin/hf auth login"
        elif constants.HF_HUB_OFFLINE:
            reason = f"HF_HUB_OFFLINE is set and it is not in the Hub's cache; download it once online, or {instead}"
        elif isinstance(error, ValueError) and "onfig" in str(error):  # the dataset has other configurations
            reason = f"{' '.join(str(error).split())[:300]}; choose one with --data.configuration"
        else:
            # the text of a connection error does not help; that of a dataset with a script or of a damaged file does
            lines = [] if "HTTPError" in kinds else str(error).strip().splitlines()
            detail = f", {lines[0][:120]}" if lines else ""
            reason = (
                f"{type(error).__name__}{detail}; check the network and HF_ENDPOINT, set HF_HUB_OFFLINE=1 if it is in the Hub's cache, or "
                f"{instead}"
            )
        raise BadInput(f"the {kind} {name} could not be downloaded from the Hugging Face Hub: {reason}.") from error


def model_folder(name: str, instead: str) -> Path:
    """Return the folder with a model's configuration, safetensors and tokenizer, from the Hub's cache or the Hub.

    Args:
        name: id of the model, with or without @revision.
        instead: advice for users who cannot reach the Hub, as in "use a local file".

    Raises:
        BadInput: if the model is unavailable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = parse_id(name)
    wanted: dict[str, Any] = {"allow_patterns": list(MODEL_FILES), "ignore_patterns": ["*/*"]}
    if is_commit(revision):
        try:
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, **wanted))
            if any(folder.glob("*.safetensors")):
                return folder
        except LocalEntryNotFoundError:
            pass
    with access("model", name, instead) as commit:
        return Path(snapshot_download(repository, revision=commit, **wanted))
