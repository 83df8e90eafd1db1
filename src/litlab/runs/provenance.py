"""Where a run came from: its code, its packages, its machine; and what must not be written down about it."""

import os
import platform
import re
import socket
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("litlab", "torch", "lightning", "transformers", "torchmetrics", "wandb", "datasets", "numpy")
LARGEST_NEW_FILE = 1_000_000  # bytes; untracked files above this are data, not code, and stay out of code.patch
LARGEST_PATCH = 20_000_000  # bytes
SECRET_FILES = (".env", ".env.*", "*.env", "*.pem", "*.key", ".netrc", ".pypirc", "id_*", "*credential*", "*secret*")
SECRET_NAMES = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abp]-[A-Za-z0-9-]{10,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=Bearer )[\w.~+/-]{8,}"
    r"|(?<=PRIVATE KEY-----)[^-]+(?=-----END)"
)
# api_key = "...", environ["API_KEY"] = "...", --api-key ..., also escaped within JSON: a quoted or long value with a digit
SECRET_ASSIGNMENTS = re.compile(
    r"((?:key|token|secret|password|passwd)(?:\\?['\"])?\]?(?:\s*[=:]\s*|(?<=-key) |(?<=-token) ))"
    r"(?:(\\?['\"])(?=[^'\"\\\s]*\d)[^'\"\\\s]{8,}|()(?=[\w+/-]*\d)[\w+/-]{20,})",
    re.IGNORECASE,
)


def redact(text: str, assignments: bool = True) -> str:
    """Replace what looks like a key or token, and the value of any environment variable that is named like one.

    Args:
        text: what is to be written down.
        assignments: also replace values that are assigned to a name like api_key; not for settings, where such a name
            can be that of a column.
    """
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 8 and not value.startswith(("/", "~")):  # a path is no secret
            text = text.replace(value, f"<{name}>")
    text = SECRET_SHAPES.sub("<secret>", text)
    if assignments:
        text = SECRET_ASSIGNMENTS.sub(lambda found: f"{found[1]}{found[2] or ''}<secret>", text)
    return text


def code_state(root: Path) -> tuple[dict[str, Any], bytes]:
    """The git commit of the project, and a patch of everything that is not committed, without secrets.

    New files are part of the patch unless git ignores them or they are large.

    Returns:
        The commit and whether there are changes, for run.json; and what `git apply` takes to restore them, which is
        empty if there are none or they are too large to be code.
    """

    def git(*arguments: str, names: bytes = b"", **environment: str) -> bytes:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, input=names, capture_output=True, env={**os.environ, **environment}).stdout

    try:
        commit = git("rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except FileNotFoundError:  # no git on this machine
        commit = ""
    if not commit:
        return {"commit": None, "dirty": None}, b""
    top = Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n")))
    with tempfile.TemporaryDirectory() as room:
        index = Path(room) / "index"  # a copy, so that new files can be announced without touching the staging area
        original = Path(os.fsdecode(git("rev-parse", "--absolute-git-dir").rstrip(b"\n"))) / "index"
        if original.exists():
            index.write_bytes(original.read_bytes())
        listed = git("-C", str(top), "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
        paths = {name: top / os.fsdecode(name) for name in listed if name}
        new = [name for name, path in paths.items() if path.is_file() and path.stat().st_size <= LARGEST_NEW_FILE]
        if new:
            from_stdin = ("--pathspec-from-file=-", "--pathspec-file-nul")
            git("-C", str(top), "add", "--intent-to-add", *from_stdin, names=b"\0".join(new), GIT_INDEX_FILE=str(index))
        excluded = [f":(exclude,icase,glob)**/{name}{below}" for name in SECRET_FILES for below in ("", "/**")]
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        patch = git("-C", str(top), "diff", *plain, "HEAD", "--", ".", *excluded, GIT_INDEX_FILE=str(index))
    if len(patch) > LARGEST_PATCH:
        return {"commit": commit, "dirty": True, "patch_left_out": f"{len(patch):,} bytes are not code"}, b""
    return {"commit": commit, "dirty": bool(patch)}, redact(patch.decode("latin-1")).encode("latin-1")


def machine() -> dict[str, Any]:
    """The versions of the packages that matter, and the hardware."""
    import torch  # reading a run directory must not need it

    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "cpu": torch.cpu.get_capabilities().get("cpu_name"),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
