"""Writes requirements/*.txt from pyproject.toml: the exact version and the hashes of every package but torch's own.

One file per extra, each with what it adds to core.txt. `make lock` runs it; uv resolves, for Linux and macOS and all Python versions.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
UV = "uv==0.13.9"
EXTRAS = ("fast", "tensorboard", "notebook", "dev")
NOT_LOCKED = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")  # constraints.txt pins torch, torch the others
HEADER = "# {what}, with the sha256 of every file of each release. `make lock` writes this file from pyproject.toml.\n"


def main() -> None:
    """Resolve the core, then each extra with the core's versions."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", room / "venv"], check=True)
        subprocess.run([room / "venv/bin/python", "-m", "pip", "install", "--quiet", UV], check=True)
        core = resolve(room, "core", [])
        write("core", core)
        (room / "core.in").write_text("".join(block.split(" ")[0] + "\n" for block in core))
        for extra in EXTRAS:
            blocks = resolve(room, extra, [f"--extra={extra}", f"--constraint={room / 'core.in'}"])
            write(extra, [block for block in blocks if block not in core])


def resolve(room: Path, name: str, options: list[str]) -> list[str]:
    """The lines of each package that uv chooses; it keeps the versions in requirements/ unless --upgrade is given."""
    output = room / f"{name}.txt"
    output.write_text("".join(file.read_text() for file in sorted(FOLDER.glob("*.txt"))))
    command = [room / "venv/bin/uv", "pip", "compile", FOLDER.parent / "pyproject.toml", f"--output-file={output}"]
    command += ["--universal", "--python-version=3.11", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    command += [f"--constraint={FOLDER.parent / 'constraints.txt'}", *options]
    subprocess.run([*command, "--no-emit-index-url", *sys.argv[1:]], check=True)
    blocks = re.split(r"^(?=[a-zA-Z0-9])", output.read_text(), flags=re.MULTILINE)
    return [block for block in blocks if block and not NOT_LOCKED.match(block)]


def write(name: str, blocks: list[str]) -> None:
    """Write one file."""
    what = "What litlab needs" if name == "core" else f"What the extra {name} adds to core.txt"
    (FOLDER / f"{name}.txt").write_text(HEADER.format(what=what) + "".join(blocks))
    print(f"requirements/{name}.txt: {len(blocks)} packages")


if __name__ == "__main__":
    main()
