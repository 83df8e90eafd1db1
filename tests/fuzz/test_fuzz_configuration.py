"""Configuration files and command lines with any content, alone and through the whole parser."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT, TESTS, small_project
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import damaged, texts
from fuzz.outcomes import examples, outcome
from litlab.cli import messages, settings
from litlab.cli.lightning_cli import LitlabCLI
from litlab.errors import BadInput
from litlab.files import cache_folder
from litlab.runs.start import Request

pytestmark = pytest.mark.fuzz

EXPERIMENT = "configs/experiment/small.yaml"

# --- what users write

SCALARS = [
    "1", "0", "-1", "1.5", "1e-3", "4.0e-3", "null", "~", "true", "yes", "off", "abc", "'q'", '"\\0"', '"\\ud800"',
    '"', "'", "2001-01-01", "2001-99-99", "12:30:45", "190:20:30", "0x_", "0b_", "0o8", "1" * 5000, "1__0", ".inf",
    ".nan", "=", "<<", "!!int foo", "!!float x", "!!bool x", "!!timestamp x", "!!binary é", "!!set {a, b}",
    "!!omap [b]", "!!str 5", "!x y", "&a 1", "*a", "&a [*a]", "&a {b: *a}", "*b", "{}", "[]", "[[]]", "{a: 1}",
    "{a: {b: 1}}", "[1, 2]", "[a, {b: c}]", "{", "[", "}", "|", ">", "@x", "%x", "`", "é", "漢字", "\u2028", "\x1b[31m",
    "\ufeff", "\0", "a: b: c", "# none", "- 1", "? x", "\t", "x" * 3000, "[" * 2000, "{a: " * 400, "linear", "cosine",
    "auto", "cpu", "gpu", "ddp", "lightning.pytorch.callbacks.Timer", "EarlyStopping",
    "small.model.SmallModel", "small.data.SmallData", "litlab.nowhere.X", "builtins.int",
    "builtins.dict", "os.path", "os.getcwd", ".a.B", "a..B", "litlab.errors.BadInput", "torch.nn.Linear",
    "collections.abc.Sized", "!!python/object/apply:os.mkdir [marker]", "!!python/name:os.system",
    "!!python/object/new:os.system [touch marker]",
]  # fmt: skip
KEYS = [
    "model", "data", "trainer", "checkpoint", "last_checkpoint", "guard", "seed_everything", "experiment",
    "class_path", "init_args", "callbacks", "callbacks+", "logger", "hidden", "learning_rate", "warmup", "source",
    "batch_size", "max_epochs", "devices", "strategy", "precision", "plugins", "profiler", "a.b", "model.init_args",
    "modle", "1", "null", "true", "<<", "[a]", "{a: b}", "? x", '""', "'q'", "é", "&k key", "*a", "!!str x", "-", "+",
    ".", "", "\x1b", "x" * 3000,
]  # fmt: skip
NAMES = [
    "model.hidden", "model.learning_rate", "model.warmup", "model.schedule", "model.num_classes", "model",
    "model.class_path", "model.init_args", "model.init_args.hidden", "model.hiden", "model.", "model..hidden", "data",
    "data.source", "data.batch_size", "data.seed", "data.class_path", "data.init_args", "data.dict_kwargs", "trainer",
    "trainer.max_epochs", "trainer.max_epoch", "trainer.devices", "trainer.num_nodes", "trainer.accelerator",
    "trainer.strategy", "trainer.precision", "trainer.callbacks", "trainer.callbacks+", "trainer.callbacks.patience",
    "trainer.callbacks.init_args", "trainer.logger", "trainer.logger+", "trainer.plugins", "trainer.profiler",
    "trainer.limit_train_batches", "trainer.val_check_interval", "trainer.max_time", "trainer.gradient_clip_val",
    "trainer.fast_dev_run", "trainer.overfit_batches", "trainer.default_root_dir", "trainer.log_every_n_steps",
    "checkpoint", "checkpoint.monitor", "checkpoint.mode", "checkpoint.filename", "checkpoint.save_top_k",
    "checkpoint.dirpath", "checkpoint.every_n_epochs", "last_checkpoint", "last_checkpoint.every_minutes", "guard",
    "guard.nonfinite", "seed_everything", "experiment", "config", "init_args", "class_path", "", ".", "+", "é",
    "x" * 3000,
]  # fmt: skip
keys = st.sampled_from(KEYS) | texts
scalars = st.sampled_from(SCALARS) | texts

lines = st.tuples(st.sampled_from(["", "", "  ", "    ", "\t"]), st.sampled_from(["", "", "", "- "]), keys, scalars)
yaml_lines = st.lists(lines, max_size=8).map(
    lambda parts: "".join(f"{indent}{dash}{key}: {value}\n" for indent, dash, key, value in parts)
)
trees = st.recursive(
    scalars.map(lambda text: text[:200]) | st.integers() | st.floats() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys.map(lambda key: key[:50]), inner, max_size=4),
    max_leaves=10,
)
yaml_trees = trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
laughs = st.integers(1, 40).map(
    lambda depth: "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, depth))
)


@st.composite
def edited(draw: st.DrawFn, files: st.SearchStrategy[str]) -> str:
    """A real file with one or two changed lines, like a user's edit."""
    rows = draw(files).splitlines()
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(rows) - 1))
        row, key, value = rows[place], draw(keys), draw(scalars)
        before, colon, after = row.partition(":")
        margin = before[: len(before) - len(before.lstrip())]
        changes = [
            [f"{before}: {value}"],
            [f"{margin}{key}{colon}{after}"],
            [row, f"{margin}{key}: {value}"],
            [row, row],
            [f"  {row}"],
            [],
        ]
        rows[place : place + 1] = draw(st.sampled_from(changes))
        rows = rows or [""]
    return "\n".join(rows) + "\n"


REAL = {
    file.stem: file.read_text() for file in sorted([*PROJECT.glob("configs/**/*.yaml"), *TESTS.glob("small/*.yaml")])
}


def contents_like(files: list[str]) -> st.SearchStrategy[bytes]:
    real = st.sampled_from(files)
    written = st.one_of(yaml_lines, yaml_trees, edited(real), edited(real), laughs).map(str.encode)
    return st.one_of(written, damaged(real.map(str.encode)), st.binary(max_size=60))


options = st.tuples(
    st.sampled_from(["--", "--", "--", "-", ""]),
    st.sampled_from(NAMES) | texts,
    st.sampled_from(["=", "=", ""]),
    scalars | texts,
)
WORDS = [
    "-c", "--config", "--config=", "-c=", EXPERIMENT, "..", "x" * 300 + ".yaml", "--", "-", "", "=", "-x", "surplus",
    "--resume", "--resume=auto", "--resume=latest", "--fork", "--fork=", "--fork=a", "--init=a.ckpt", "latest",
]  # fmt: skip
words = options.map("".join) | st.sampled_from(WORDS)
# without NUL, which ends a word of a command line, and without --help, which prints an answer and sets nothing
command_lines = st.lists(words.map(lambda word: word.replace("\0", "")), max_size=5)


@pytest.fixture(scope="module")
def project(room: Path) -> Iterator[Path]:
    """A project as the working folder."""
    folder = small_project(room / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


# --- files

LIST_LIKE = ("+", ".", "init_args")  # parts of a key that make it more than a name


@examples(3500)
@given(contents_like(list(REAL.values())))
def test_configuration_files(project: Path, content: bytes) -> None:
    path = project / "overlay.yaml"
    path.write_bytes(content)

    def use() -> messages.Settings:
        settings.check([path])
        return messages.Settings([], [path])

    found, refusal = outcome(use, project, str(path))
    assert not os.path.lexists("marker")
    if refusal:
        return
    height = max(len(content.decode().splitlines()), 1)
    for setting in found.all:
        assert setting.location.startswith(f"{path}, line ")
        assert 1 <= int(setting.location.split(", line ")[1].split(",")[0]) <= height
    for key, value in yaml.safe_load(content).items():
        if isinstance(key, str) and not any(part in key for part in LIST_LIKE):
            assert found.set_at(key), f"{key!r} was not found"
            assert not isinstance(value, str) or b"<<" in content or found.set_at(key).value is not None


@examples(2000)
@given(command_lines)
def test_words_of_a_command_line(project: Path, arguments: list[str]) -> None:
    def use() -> tuple[Request, list[str], list[Path], messages.Settings]:
        request, rest = settings.take_request(arguments)
        files = settings.all_files(rest)
        return request, rest, files, messages.Settings(rest, files)

    result, refusal = outcome(use, project)
    if refusal:
        return
    request, rest, files, found = result
    assert [word for word in rest if word.startswith(("--resume=", "--fork=", "--init="))] == []
    assert (request == Request()) == (rest == arguments)
    assert files[0] == project / "configs" / "base.yaml" and all(file.is_file() for file in files)
    name, equals, value = "".join(rest[-1:]).removeprefix("--").partition("=")
    if equals and rest[-1].startswith("--"):
        assert found.set_at(name).value == value


folders = texts | st.sampled_from(["~", "~nobody-here", "~nobody-here/a", "a" * 5000, "/" * 5000, "..", "//", "loop"])


@examples(800)
@given(folders.map(lambda name: name.replace("\0", "")))
def test_names_of_folders(project: Path, name: str) -> None:
    loop = project / "loop"
    loop.is_symlink() or loop.symlink_to(loop)

    def use() -> tuple[Path, Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LITLAB_RUNS", name)
            patch.setenv("LITLAB_CACHE", name)
            return settings.runs_folder([Path(name)]), cache_folder()

    folders, refusal = outcome(use, project)
    assert refusal == ""
    assert all(folder.is_absolute() for folder in folders)


MESSAGES = [
    "unrecognized arguments: {word}",
    "Option '{name}' is not accepted",
    "Validation failed: Class 'X' does not accept option '{name}'",
    "arguments are required: {word}",
    "Problem with given class_path '{word}':\n  {word}",
    "Parser key \"{name}\": Expected a <class 'int'>. Got value: {word}",
    'Parser key "{name}":\n  Does not validate against any of the Union subtypes\n  Errors:\n    - Expected a '
    "<class 'int'>\n    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: {word}",
    "Parser key \"{name}\": Expected a typing.Literal['a', 'b']. Got value: {word}",
    'Parser key "{name}":\n  1 validation error for X\n    Input should be greater than 0 [type=x, '
    "input_value={word}]\nGot value: {word}",
    'Parser key "{name}": Not a valid subclass of LightningModule. Got value: {word}',
    "{word}",
]


@examples(2500)
@given(st.sampled_from(MESSAGES), st.sampled_from(NAMES), scalars, command_lines)
def test_messages_of_the_parser(project: Path, message: str, name: str, word: str, arguments: list[str]) -> None:
    settings = messages.Settings(arguments, [])
    said = message.format(name=name, word=word)

    def use() -> None:
        sentence = messages.problem(said, settings, NAMES)
        assert sentence[0] == messages.OPEN and sentence[-1] == messages.CLOSE
        assert messages.problem(f"more of it: {sentence}", settings, NAMES) == sentence
        raise BadInput(sentence[1:-1])

    outcome(use, project)


# --- everything at once

integers = st.integers(1, 10**6)
GOOD = {
    "model.hidden": integers,
    "model.warmup": st.floats(0, 1),
    "model.learning_rate": st.floats(1e-9, 1e9),
    "model.schedule": st.sampled_from(["linear", "cosine", "exponential", "constant"]),
    "data.batch_size": integers,
    "data.source": st.sampled_from(["examples", "a b", "~/x", "é", "C:\\x", "{x}", "'q'"]),
    "trainer.max_epochs": integers,
    "trainer.gradient_clip_val": st.none() | st.floats(0, 1e9),
    "checkpoint.monitor": st.sampled_from(["val/loss", "a=b", "-"]),
    "seed_everything": st.integers(0, 2**32 - 1),
}
good_settings = st.lists(st.sampled_from(sorted(GOOD)), unique=True, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: GOOD[name] for name in names})
)


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def assert_settled(cli: LitlabCLI, wanted: dict[str, Any]) -> None:
    settled = yaml.safe_load(cli.config_yaml())
    for name, value in wanted.items():
        first, *rest = name.split(".")
        found = settled[first]
        found = found.get("init_args", found)[rest[0]] if rest else found
        assert found == value or math.isclose(found, value), name


@pytest.mark.parametrize("where", ["options", "file"])
def test_valid_settings_are_used_unchanged(where: str, project: Path) -> None:
    @examples(40)
    @given(good_settings)
    def check(wanted: dict[str, Any]) -> None:
        options = [f"--{name}={written(value)}" for name, value in wanted.items()]
        if where == "file":
            tree: dict[str, Any] = {}
            for name, value in wanted.items():
                first, *rest = name.split(".")
                branch = tree.setdefault(first, {}) if rest else tree
                if first in ("model", "data"):
                    branch = branch.setdefault("init_args", {})
                branch[rest[0] if rest else first] = value
            (project / "overlay.yaml").write_text(yaml.safe_dump(tree or {"trainer": {}}))
            options = ["-c", "overlay.yaml"]
        cli, refusal = outcome(lambda: LitlabCLI(["-c", EXPERIMENT, *options]), project)
        assert refusal == ""
        assert_settled(cli, wanted)

    check()


@examples(400)
@given(command_lines, good_settings)
def test_any_options(project: Path, arguments: list[str], wanted: dict[str, Any]) -> None:
    options = [f"--{name}={written(value)}" for name, value in wanted.items()]
    cli, refusal = outcome(lambda: LitlabCLI(["-c", EXPERIMENT, *arguments, *options]), project)
    assert not os.path.lexists("marker")
    if not refusal:
        assert_settled(cli, wanted)


@examples(400)
@given(contents_like([text for name, text in REAL.items() if not name.startswith(("bert", "t5"))]))  # no downloads
def test_any_overlay(project: Path, content: bytes) -> None:
    (project / "overlay.yaml").write_bytes(content)
    cli, refusal = outcome(lambda: LitlabCLI(["-c", EXPERIMENT, "-c", "overlay.yaml"]), project)
    assert not os.path.lexists("marker")
    if not refusal:
        seed = yaml.safe_load(content).get("seed_everything", 0)
        assert cli.config.seed_everything == int(seed)
