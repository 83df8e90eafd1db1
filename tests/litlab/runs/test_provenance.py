import subprocess
from pathlib import Path

import pytest

from litlab.runs.provenance import code_state, redact


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-proj-abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_known_formats_of_keys_are_redacted(secret: str) -> None:
    assert secret not in redact(f'token = "{secret}"\nother = {secret}')


def test_values_of_secret_environment_variables_and_assignments_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    text = (
        "password correct horse battery\nWANDB_API_KEY: 0123456789abcdef0123456789abcdef01234567\nhttps://me:pass1@host"
    )
    assert redact(text) == "password <MY_SERVICE_TOKEN>\nWANDB_API_KEY: <secret>\nhttps://<secret>@host"


SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "line",
    [
        f'os.environ["WANDB_API_KEY"] = "{SECRET}"',
        f'"wandb.login(key=\\"{SECRET}\\")"',
        f"litlab fit --api-key {SECRET}",
        f'DB_PASSWORD = "{SECRET[:10]}"',
        f"Authorization: Bearer {SECRET}",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_keys_in_code_notebooks_and_commands_are_redacted(line: str) -> None:
    assert SECRET[:10] not in redact(line) and "<secret>" in redact(line)


def test_in_settings_a_value_assigned_to_a_name_like_key_is_kept() -> None:
    text = "text_key: cnn_dailymail/article_highlights_v3"
    assert redact(text, assignments=False) == text


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
    assert code_state(repository)[1] == b""
    (repository / "code.py").write_text("x = 22\n")
    (repository / "new model.py").write_text("y = 3\n")
    (repository / "ignored.py").write_text("z = 4\n")
    (repository / ".env").write_text("PASSWORD=tell-nobody\n")
    (repository / "Secrets").mkdir()
    (repository / "Secrets" / "conf.yaml").write_text("password: tell-nobody\n")
    (repository / "id_ed25519").write_text("tell-nobody\n")
    state, content = code_state(repository)
    patch = content.decode()
    assert state["dirty"] and len(state["commit"]) == 40
    assert "+x = 2" in patch and "+y = 3" in patch
    assert "z = 4" not in patch and "tell-nobody" not in patch


def test_the_patch_restores_the_code_and_does_not_change_the_staging_area(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("x = 22\n")
    (repository / "new.py").write_text("y = 3\n")
    (repository / "latin.py").write_bytes(b"# caf\xe9\n")
    (repository / "picture.png").write_bytes(bytes(range(256)))
    subprocess.run(["git", "-C", str(repository), "config", "color.ui", "always"], check=True)
    subprocess.run(["git", "-C", str(repository), "config", "diff.noprefix", "true"], check=True)
    patch = code_state(repository)[1]
    command = ["git", "-C", str(repository), "-c", "color.ui=false", "status", "--porcelain"]
    status = subprocess.run(command, capture_output=True, text=True).stdout
    assert status.split("\n")[:4] == [" M code.py", "?? latin.py", "?? new.py", "?? picture.png"]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), "apply"], input=patch, check=True)
    assert (clone / "code.py").read_text() == "x = 22\n" and (clone / "new.py").read_text() == "y = 3\n"
    for name in ("latin.py", "picture.png"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()


def test_a_project_without_git_has_no_commit(tmp_path: Path) -> None:
    assert code_state(tmp_path) == ({"commit": None, "dirty": None}, b"")


def test_paths_and_harmless_variables_are_not_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("MONKEY_NAME", "bananas and more"),
        ("SSH_KEY", "/home/me/project"),
        ("TOKENIZERS_PARALLELISM", "sometimes"),
    ):
        monkeypatch.setenv(name, value)
        assert redact(value) == value


def test_a_repository_without_a_commit_has_no_state(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert code_state(tmp_path)[0]["commit"] is None
