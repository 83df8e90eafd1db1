import hashlib
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from litlab.data.readers import open_source
from litlab.data.splits import read
from litlab.errors import BadInput
from litlab.files import cache_folder
from litlab.sources.wheels import Package
from project.data import docstrings

SCREENS = (
    "The screen keeps one buffer for every window and copies the visible part of it whenever the pointer moves, so that "
    "nothing flickers while a slow program draws into a window which is only half visible."
)
CLOCKS = (
    "A clock counts the ticks of its crystal and corrects them against the other clocks on the network, which it asks "
    "once in an hour and trusts only if most of them agree with each other."
)
BOATS = (
    "The boat holds its course by comparing the compass with the angle of the rudder, and it slows down when the waves "
    "are so high that the difference between the two cannot be measured any more."
)

MakeWheel = Callable[[str, dict[str, str]], Package]


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """A function that puts a wheel with the given files into the cache, where `fetch` finds it."""
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path / "cache"))

    def make(name: str, files: dict[str, str]) -> Package:
        wheel = tmp_path / "cache" / "packages" / f"{name}-1.0-py3-none-any.whl"
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel, "w") as file:
            for path, text in files.items():
                file.writestr(path, text)
        return Package(name, "1.0", wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())

    return make


def function(name: str, *paragraphs: str) -> str:
    indented = "\n\n".join(paragraphs).replace("\n", "\n    ")
    return f'def {name}():\n    r"""{indented}\n    """\n\n'


def pair_of(*paragraphs: str) -> tuple[str, str]:
    pair = docstrings.pair_of("\n\n".join(paragraphs))
    assert pair is not None
    return pair


def test_the_target_is_the_first_sentence_and_the_source_the_prose_after_it() -> None:
    assert pair_of("Copy the visible part of a window.", SCREENS) == (SCREENS, "Copy the visible part of a window.")
    assert pair_of(f"Copy the visible\npart of a window. {SCREENS}") == (SCREENS, "Copy the visible part of a window.")


def test_a_target_without_a_full_stop_gets_one() -> None:
    assert pair_of("Copy the visible part of a window", SCREENS)[1] == "Copy the visible part of a window."


def test_markup_becomes_plain_text() -> None:
    source, target = pair_of(
        "Copy the *visible* part of a :class:`~screens.Window`.",
        f"See :ref:`drawing`. Called by ``draw`` and [`Pen`] of the `manual <https://example.org>`_ [1]_. {SCREENS}",
    )
    assert target == "Copy the visible part of a Window."
    assert source == f"Called by draw and Pen of the manual. {SCREENS}"


@pytest.mark.parametrize(
    "section",
    [
        "Parameters\n----------\nwindow : Window\n    What to copy.",
        "Args:\n    window: what to copy.",
        ":param window: What to copy.",
        "@param window: What to copy.",
        ">>> copy(window)",
        "```python\ncopy(window)\n```",
        "# Details",
        "Example::\n\n    copy(window)",
    ],
)
def test_a_section_ends_the_source(section: str) -> None:
    assert pair_of("Copy the visible part of a window.", SCREENS, section, BOATS)[0] == SCREENS


@pytest.mark.parametrize(
    "block",
    [
        "The rules of drawing are:\n\n* one\n* two",
        "As in\n\n.. code-block:: python\n\n    copy(window)",
        "It is drawn with::\n\n    copy(window)",
        ".. note::\n    Only a note.",
        "| a | b |\n| 1 | 2 |",
        "The area is :math:`a b`.",
    ],
)
def test_lists_code_directives_tables_and_formulas_are_left_out(block: str) -> None:
    assert pair_of("Copy the visible part of a window.", SCREENS, block, BOATS)[0] == f"{SCREENS} {BOATS}"


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("Copy it.", SCREENS),  # too short
        ("Copy the visible part of a window.", "Too short to be worth a summary."),
        ("copy(window: Window) -> Window", SCREENS),
        ("Copy the visible part, a function given by", SCREENS),
        ("Deprecated alias of another function.", SCREENS),
        ("Copy the visible part of a window.", SCREENS.replace(" ", " x_1=f(2) ")),
        ("Copy the visible part of a window.", "Ein Fenster wird kopiert, wenn sich der Zeiger bewegt. " * 5),
        ("Copy the visible part of a window.", "Released under the licence of the project. " * 10),
    ],
)
def test_text_that_is_not_prose_gives_no_pair(target: str, source: str) -> None:
    assert docstrings.pair_of(f"{target}\n\n{source}") is None


def test_modules_classes_and_methods_are_read_and_tests_are_left_out(
    make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "sea/__init__.py": f'"""Everything about boats at sea.\n\n{BOATS}\n"""\n',
        "sea/time.py": f'class Clock:\n    def tick(self):\n        """Count one tick of the clock.\n\n        {CLOCKS}\n        """\n',
        "sea/tests/test_screen.py": function("copy", "Copy the visible part of a window.", SCREENS),
    }
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [make_wheel("sea", files)]})
    assert docstrings.table().select(["package", "name", "target"]).to_pylist() == [
        {"package": "sea", "name": "sea", "target": "Everything about boats at sea."},
        {"package": "sea", "name": "sea.time.Clock.tick", "target": "Count one tick of the clock."},
    ]


def test_a_near_duplicate_of_a_test_pair_is_dropped_from_train(
    make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_wheel("theirs", {"a.py": function("copy", "Copy the visible part of a window.", SCREENS)})
    copied = function("draw", "Draw a window that is seen.", SCREENS.replace("pointer", "mouse").upper().capitalize())
    ours = make_wheel("ours", {"b.py": copied + function("tick", "Count one tick of the clock.", CLOCKS)})
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [ours], "validation": [], "test": [theirs]})
    rows = docstrings.table().to_pylist()
    assert [(row["split"], row["name"]) for row in rows] == [("train", "b.tick"), ("test", "a.copy")]


def test_a_target_that_many_bodies_share_is_dropped(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [SCREENS, CLOCKS, BOATS, " ".join(reversed(BOATS[:-1].split())) + "."]
    code = "".join(function(f"f{number}", "Do what is needed.", body) for number, body in enumerate(bodies))
    code += function("kept", "Name the parts of a letter.", " ".join(reversed(CLOCKS[:-1].split())) + ".")
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [make_wheel("many", {"many.py": code})]})
    assert docstrings.table()["name"].to_pylist() == ["many.kept"]


def test_code_in_a_wheel_is_not_run_and_broken_files_are_counted(
    make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "evil.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n" + function("tick", "Count one tick of the clock.", CLOCKS),
        "broken.py": "def (:\n",
        "null.py": "\0",
        "deep.py": "x = " + "-" * 100_000 + "1\n",
        "noisy.py": "x = '\\d'\n",
    }
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [make_wheel("evil", files)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert docstrings.table()["name"].to_pylist() == ["evil.tick"]
    assert not (tmp_path / "ran").exists()
    assert "skipped 3 files" in capsys.readouterr().err


def test_the_source_has_the_pairs_of_each_split(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_wheel("theirs", {"a.py": function("copy", "Copy the visible part of a window.", SCREENS)})
    ours = make_wheel("ours", {"b.py": function("tick", "Count one tick of the clock.", CLOCKS)})
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [ours], "validation": [], "test": [theirs]})
    source = open_source("docstrings", known={"docstrings": docstrings.source})
    assert (source.name, source.key) == ("docstrings", docstrings.key())
    tables = source.open()
    assert list(tables) == ["train", "validation", "test"]
    rows = read(tables["test"], {"data.text": "text", "data.summary": "summary"})
    assert [column.to_pylist() for column in rows.texts] == [[SCREENS], ["Copy the visible part of a window."]]
    with pytest.raises(BadInput, match=r"^docstrings, split validation has no rows"):
        read(tables["validation"], {"data.text": "text"})


def test_a_second_call_reads_the_cache(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel("sea", {"sea.py": function("tick", "Count one tick of the clock.", CLOCKS)})
    monkeypatch.setattr(docstrings, "PACKAGES", {"train": [package]})
    first = docstrings.table()
    (cache_folder() / "packages" / package.wheel).unlink()
    assert docstrings.table().equals(first)


def test_the_key_changes_with_a_package_its_split_and_the_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Package(name, "1.0", f"{name}.whl", name * 64) for name in "ab")
    keys = []
    for splits in ({"train": [first]}, {"train": [second]}, {"train": [first, second]}, {"train": [], "test": [first]}):
        monkeypatch.setattr(docstrings, "PACKAGES", splits)
        keys.append(docstrings.key())
    monkeypatch.setattr(docstrings, "CLEANING", docstrings.CLEANING + 1)
    keys.append(docstrings.key())
    assert len(set(keys)) == 5


def test_the_pairs_do_not_depend_on_the_order_of_sets(make_wheel: MakeWheel) -> None:
    texts = [SCREENS, CLOCKS, BOATS, SCREENS.replace("window", "pane"), CLOCKS.replace("ticks", "beats")]
    code = "".join(function(f"f{n}", f"Say what number {n} is about.", text) for n, text in enumerate(texts))
    package = make_wheel("sea", {"z.py": code, "a.py": code.replace("about", "for")})
    script = (
        "from litlab.files import cache_folder\n"
        "from litlab.sources.wheels import Package\n"
        "from project.data import docstrings\n"
        f"docstrings.PACKAGES = {{'train': [{package!r}]}}\n"
        "print(docstrings.table().to_pylist())\n"
        "(cache_folder() / 'docstrings' / f'{docstrings.key()}.parquet').unlink()\n"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("0", "1", "2")
    ]
    assert [output.returncode for output in outputs] == [0, 0, 0], outputs[0].stderr
    assert len({output.stdout for output in outputs}) == 1 and b"a.f0" in outputs[0].stdout


def test_every_package_is_pinned_in_one_split() -> None:
    packages = [package for split in docstrings.PACKAGES.values() for package in split]
    assert list(docstrings.PACKAGES) == ["train", "validation", "test"]
    assert len({package.name for package in packages}) == len(packages)
    for package in packages:
        assert package.wheel.startswith(f"{package.name.replace('-', '_')}-{package.version}-py")
        assert package.wheel.endswith("-none-any.whl") and len(package.sha256) == 64


@pytest.mark.slow
@pytest.mark.network
def test_the_real_pairs_are_many_and_clean_and_each_is_in_one_split() -> None:
    try:
        rows = docstrings.table().to_pylist()
    except BadInput as error:
        if "could not download" not in str(error):
            raise
        pytest.skip("the package index is not reachable")
    splits = {split: [row for row in rows if row["split"] == split] for split in docstrings.PACKAGES}
    assert len(rows) >= 8000
    assert all(800 <= len(splits[split]) <= 1200 for split in ("validation", "test"))
    for columns in (["source"], ["source", "target"], ["package"]):
        first, second, third = (
            {" ".join(" ".join(row[column] for column in columns).lower().split()) for row in splits[split]}
            for split in splits
        )
        assert not (first & second or first & third or second & third)
    for row in rows:
        assert 3 <= len(row["target"].split()) <= 20 and len(row["source"].split()) >= 30
        assert row["target"].endswith(".") and row["source"].isascii() and "`" not in row["source"] + row["target"]
