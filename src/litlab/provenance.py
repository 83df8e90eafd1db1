"""Where a run came from: its code, its packages, its machine; and what must not be written down about it."""

import os
import platform
import re
import socket
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("litlab", "torch", "lightning", "transformers", "torchmetrics", "wandb", "datasets", "numpy")
LARGEST_NEW_FILE = 1_000_000  # bytes; untracked files above this are data, not code, and stay out of code.patch
SECRET_FILES = (
    ".env",
    ".env.*",
    "*.env",
    "*.pem",
    "*.key",
    ".netrc",
    ".pypirc",
    "id_rsa*",
    "*credentials*",
    "*secret*",
)
SECRET_NAMES = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abp]-[A-Za-z0-9-]{10,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
SECRET_ASSIGNMENTS = re.compile(
    r"((?:key|token|secret|password|passwd)['\"]?\s*[=:]\s*['\"]?)(?=[^\s'\"]*\d)[A-Za-z0-9_/+-]{20,}", re.IGNORECASE
)


def redact(text: str) -> str:
    """Replace what looks like a key or token, and the value of any environment variable that is named like one."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 8 and not value.startswith(("/", "~")):  # a path is no secret
            text = text.replace(value, f"<{name}>")
    return SECRET_ASSIGNMENTS.sub(r"\1<secret>", SECRET_SHAPES.sub("<secret>", text))


def code_state(root: Path) -> tuple[dict[str, Any], str]:
    """The git commit of the project, and a patch of everything that is not committed, without secrets.

    New files are part of the patch unless git ignores them or they are large.
    """

    def git(*arguments: str, names: str = "", **environment: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        outcome = subprocess.run(
            command, input=names, capture_output=True, text=True, errors="replace", env={**os.environ, **environment}
        )
        return outcome.stdout

    commit = git("rev-parse", "HEAD").strip()
    if not commit:
        return {"commit": None, "dirty": None}, ""
    top = Path(git("rev-parse", "--show-toplevel").strip())
    with tempfile.TemporaryDirectory() as room:
        index = (
            Path(room) / "index"
        )  # a copy, so that new files can be announced without touching the user's staging area
        original = Path(git("rev-parse", "--absolute-git-dir").strip()) / "index"
        if original.exists():
            index.write_bytes(original.read_bytes())
        listed = git("ls-files", "--others", "--exclude-standard", "-z", "--full-name", str(top)).split("\0")
        new = [
            name
            for name in listed
            if name and (top / name).is_file() and (top / name).stat().st_size <= LARGEST_NEW_FILE
        ]
        if new:
            from_stdin = ("--pathspec-from-file=-", "--pathspec-file-nul")
            git("-C", str(top), "add", "--intent-to-add", *from_stdin, names="\0".join(new), GIT_INDEX_FILE=str(index))
        excluded = [f":(exclude,glob)**/{pattern}" for pattern in SECRET_FILES]
        patch = git("-C", str(top), "diff", "HEAD", "--", ".", *excluded, GIT_INDEX_FILE=str(index))
    return {"commit": commit, "dirty": bool(patch)}, redact(patch)


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
