import subprocess
from pathlib import Path

import pytest

from litlab.provenance import code_state, redact


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-proj-abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_known_shapes_of_keys_are_redacted(secret: str) -> None:
    assert secret not in redact(f'token = "{secret}"\nother = {secret}')


def test_values_of_secret_environment_variables_and_assignments_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    text = (
        "password correct horse battery\nWANDB_API_KEY: 0123456789abcdef0123456789abcdef01234567\nhttps://me:pass1@host"
    )
    assert redact(text) == "password <MY_SERVICE_TOKEN>\nWANDB_API_KEY: <secret>\nhttps://<secret>@host"


def test_ordinary_code_and_commits_are_not_redacted() -> None:
    text = (
        "token = tokenizer.decode(ids)\nkey = config['learning_rate']\ncommit 0123456789abcdef0123456789abcdef01234567"
    )
    assert redact(text) == text


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    (folder / "code.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("ignored.py\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "begin"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_the_patch_has_changed_and_new_files_but_no_ignored_or_secret_ones(repository: Path) -> None:
    assert code_state(repository)[1] == ""
    (repository / "code.py").write_text("x = 2\n")
    (repository / "new model.py").write_text("y = 3\n")
    (repository / "ignored.py").write_text("z = 4\n")
    (repository / ".env").write_text("PASSWORD=tell-nobody\n")
    state, patch = code_state(repository)
    assert state["dirty"] and len(state["commit"]) == 40
    assert "+x = 2" in patch and "+y = 3" in patch
    assert "z = 4" not in patch and "tell-nobody" not in patch


def test_the_patch_restores_the_code_and_leaves_the_staging_area_alone(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("x = 2\n")
    (repository / "new.py").write_text("y = 3\n")
    patch = code_state(repository)[1]
    status = subprocess.run(["git", "-C", str(repository), "status", "--porcelain"], capture_output=True, text=True)
    assert status.stdout.split("\n")[:2] == [" M code.py", "?? new.py"]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), "apply"], input=patch, text=True, check=True)
    assert (clone / "code.py").read_text() == "x = 2\n" and (clone / "new.py").read_text() == "y = 3\n"


def test_a_project_without_git_has_no_commit(tmp_path: Path) -> None:
    assert code_state(tmp_path) == ({"commit": None, "dirty": None}, "")


def test_paths_and_harmless_variables_are_not_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MONKEY_NAME", "bananas and more"),
        ("SSH_KEY", "/home/me/project"),
        ("TOKENIZERS_PARALLELISM", "sometimes"),
    ):
        monkeypatch.setenv(name, value)
        assert redact(value) == value
