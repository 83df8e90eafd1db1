import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "litlab", *arguments], capture_output=True, text=True)


def test_help_is_a_table_of_commands() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = run(*arguments)
        assert done.returncode == 0 and "  fit " in done.stdout and "  eval " in done.stdout


def test_help_imports_neither_torch_nor_lightning() -> None:
    script = (
        "import sys; sys.argv = ['litlab', '--help']; from litlab.cli.main import main; main(); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "lightning", "transformers", "numpy", "yaml"} & set(modules)


def test_the_console_script_is_the_same_program() -> None:
    script = f"{sys.prefix}/bin/litlab"
    assert subprocess.run([script, "--version"], capture_output=True).stdout == run("--version").stdout.encode()
