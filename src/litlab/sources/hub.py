"""The Hugging Face Hub: one request, ten seconds at most, and one sentence if it fails."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from litlab.errors import BadInput

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # weights that cannot hold code, and the tokenizer
TIMEOUT = 10  # seconds in which the Hub must answer whether it has a repository

Kind = Literal["model", "dataset"]


def parse_id(name: str) -> tuple[str, str | None]:
    """The repository and the revision of `owner/name@revision`; the revision may be left out."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def is_id(name: str) -> bool:
    """Whether the Hub would accept this as the name of a repository."""
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", parse_id(name)[0]))


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never changes, unlike a branch."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


@contextmanager
def access(kind: Kind, name: str, instead: str) -> Iterator[str]:
    """Use the Hub inside this block, which turns the clients' errors into one sentence.

    The Hub is asked once, without the minute of retries after which its clients give up.

    Args:
        kind: model or dataset.
        name: id of the repository, with @revision or without.
        instead: the advice to users without the Hub, as in "use a local file".

    Yields:
        The commit that the name stands for.

    Raises:
        BadInput: if the Hub cannot be reached, or refuses the request.
    """
    from huggingface_hub import HfApi, constants, errors  # imported here: most runs never need it

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
            reason = f"it has no revision {revision!r}; a commit, a branch or a tag goes behind the @"
        elif errors.RepositoryNotFoundError.__name__ in kinds:
            reason = "there is none of this name, or it is private; check the name, or run .venv/bin/hf auth login"
        elif constants.HF_HUB_OFFLINE:
            reason = f"HF_HUB_OFFLINE is set and it is not in the Hub's cache; fetch it once online, or {instead}"
        elif isinstance(error, ValueError) and "onfig" in str(error):  # the data set has other configurations
            reason = f"{' '.join(str(error).split())[:300]}; choose one with --data.configuration"
        else:
            # the text of a connection error does not help; that of a data set with a script, or of a broken file, does
            lines = [] if "HTTPError" in kinds else str(error).strip().splitlines()
            detail = f", {lines[0][:120]}" if lines else ""
            reason = (
                f"{type(error).__name__}{detail}; check the network and HF_ENDPOINT, set HF_HUB_OFFLINE=1 if it is in the Hub's cache, or "
                f"{instead}"
            )
        raise BadInput(f"the {kind} {name} could not be downloaded from the Hugging Face Hub: {reason}.") from error


def model_folder(name: str, instead: str) -> Path:
    """The folder with a model's configuration, safetensors and tokenizer, from the Hub's cache or the Hub.

    Args:
        name: id of the model, with @revision or without.
        instead: the advice to users without the Hub, as in "use a local file".

    Raises:
        BadInput: if it is unavailable.
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
