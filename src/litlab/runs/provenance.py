"""The provenance of a run: code, packages and machine, without secrets."""

import os
import platform
import re
import socket
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("litlab", "torch", "lightning", "transformers", "torchmetrics", "wandb", "datasets", "numpy")
LARGEST_NEW_FILE = 1_000_000  # bytes; larger untracked files are taken for data and stay out of code.patch
LARGEST_PATCH = 20_000_000  # bytes
SECRET_FILES = (".env", ".env.*", "*.env", "*.pem", "*.key", ".netrc", ".pypirc", "id_*", "*credential*", "*secret*")
SECRET_NAMES = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abp]-[A-Za-z0-9-]{10,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=Bearer )[\w.~+/-]{8,}"
    r"|(?<=PRIVATE KEY-----)[^-]+(?=-----END)"
)
# api_key = "...", environ["API_KEY"] = "...", --api-key ..., also in JSON; the value has a digit and is quoted or long
SECRET_ASSIGNMENTS = re.compile(
    r"((?:key|token|secret|password|passwd)(?:\\?['\"])?\]?(?:\s*[=:]\s*|(?<=-key) |(?<=-token) ))"
    r"(?:(\\?['\"])(?=[^'\"\\\s]*\d)[^'\"\\\s]{8,}|()(?=[\w+/-]*\d)[\w+/-]{20,})",
    re.IGNORECASE,
)


def redact(text: str, assignments: bool = True) -> str:
    """Replace text that looks like a key or token, and the values of environment variables with such names.

    Args:
        text: the text, before it is written.
        assignments: whether to replace values that are assigned to names like api_key too. Use False for settings,
            where a column can have such a name.
    """
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 8 and not value.startswith(("/", "~")):  # a path is not a secret
            text = text.replace(value, f"<{name}>")
    text = SECRET_SHAPES.sub("<secret>", text)
    if assignments:
        text = SECRET_ASSIGNMENTS.sub(lambda found: f"{found[1]}{found[2] or ''}<secret>", text)
    return text


def code_state(root: Path) -> tuple[dict[str, Any], bytes]:
    """Return the git commit of the project and a patch of all uncommitted changes, without secrets.

    The patch has new files too, unless git ignores them or they are larger than `LARGEST_NEW_FILE`.

    Returns:
        The commit and whether there are changes, for run.json.
        The patch, for `git apply`; empty if there are no changes or it is larger than `LARGEST_PATCH`.
    """

    def git(*arguments: str, names: bytes = b"", **environment: str) -> bytes:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, input=names, capture_output=True, env={**os.environ, **environment}).stdout

    # the commit
    try:
        commit = git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except FileNotFoundError:  # git is not installed
        commit = ""
    if not commit:
        return {"commit": None, "dirty": None}, b""
    top = Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n")))
    with tempfile.TemporaryDirectory() as folder:
        # add new files to a copy of the index, so that the staging area does not change
        index = Path(folder) / "index"
        original = Path(os.fsdecode(git("rev-parse", "--absolute-git-dir").rstrip(b"\n"))) / "index"
        if original.exists():
            index.write_bytes(original.read_bytes())
        listed = git("-C", str(top), "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
        paths = {name: top / os.fsdecode(name) for name in listed if name}
        new = [name for name, path in paths.items() if path.is_file() and path.stat().st_size <= LARGEST_NEW_FILE]
        if new:
            from_stdin = ("--pathspec-from-file=-", "--pathspec-file-nul")
            git("-C", str(top), "add", "--intent-to-add", *from_stdin, names=b"\0".join(new), GIT_INDEX_FILE=str(index))
        # the patch, in a format that the user's git configuration does not change
        excluded = [f":(exclude,icase,glob)**/{name}{below}" for name in SECRET_FILES for below in ("", "/**")]
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        patch = git("-C", str(top), "diff", *plain, "HEAD", "--", ".", *excluded, GIT_INDEX_FILE=str(index))
    if len(patch) > LARGEST_PATCH:
        reason = f"{len(patch):,} bytes, more than {LARGEST_PATCH:,}"
        return {"commit": commit, "dirty": True, "patch_left_out": reason}, b""
    return {"commit": commit, "dirty": bool(patch)}, redact(patch.decode("latin-1")).encode("latin-1")


def machine() -> dict[str, Any]:
    """Return the versions of the main packages, and the hardware."""
    import torch  # imported here: reading a run directory does not need it

    return {
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
        "hardware": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "cpu": torch.cpu.get_capabilities().get("cpu_name"),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed: --trainer.logger=false does not need wandb."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
