import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow
import pytest
from conftest import PROJECT

from project.data import docstrings
from recipes.t5_documentation import documentation
from recipes.t5_documentation.documentation import paragraphs_of, read_wheel, resembles_evaluation

BOATS = "A boat that is moored for the night swings around its anchor whenever the tide turns or the wind rises again."
CLOCKS = (
    "The clock asks the other clocks on its network for the time, once in an hour, and believes what most of them say."
)
RIVERS = "Where a river leaves the hills it grows slow and wide, and it drops the sand that it has carried from there."
HIDDEN = (
    "When a tram reaches the last stop of its line, the driver walks through it and drives back from the other end."
)


@pytest.fixture(autouse=True)
def evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A docstrings data set with one training pair and one test pair."""
    rows = {
        "split": ["train", "test"],
        "source": [BOATS, HIDDEN],
        "target": ["Moor a boat for the night.", "Turn a tram around at the end of the line."],
    }
    monkeypatch.setattr(docstrings, "table", lambda: pyarrow.table(rows))
    documentation._evaluation_sequences.cache_clear()
    yield
    documentation._evaluation_sequences.cache_clear()


def wheel(folder: Path, files: dict[str, str | bytes]) -> Path:
    path = folder / "project-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{BOATS}\n\n{CLOCKS}", [BOATS, CLOCKS]),
        (f"Args:\n    boat: {BOATS}\n    clock (str, optional): {CLOCKS}", [BOATS, CLOCKS]),
        (f":param boat: {BOATS}\n:returns: {CLOCKS}", [BOATS, CLOCKS]),
        (f"- {BOATS}\n- {CLOCKS}", [BOATS, CLOCKS]),
        (BOATS.replace("night swings", "night\n    swings"), [BOATS]),
        (BOATS.replace("anchor", "``anchor``").replace("tide", ":class:`~sea.tide`"), [BOATS]),
        ("boats = {'moored': True, 'anchor': 12, 'tide': high or low or whatever it may be now.}", []),
        ("Copyright 2024 The Boat Authors, who permit whatever you would like to do with it.", []),
        ("Le bateau tourne autour de son ancre quand la marée monte et le vent se lève encore.", []),
        ("A boat.", []),
    ],
)
def test_paragraphs_are_whole_english_sentences_without_markup(text: str, expected: list[str]) -> None:
    assert paragraphs_of(text) == expected


def test_a_wheel_gives_its_docstrings_guides_and_descriptions(tmp_path: Path) -> None:
    service = {"operations": {"Moor": {"documentation": f"<p>{CLOCKS}</p><p>See <b>x</b></p>", "name": "Moor"}}}
    files: dict[str, str | bytes] = {
        "project/boat.py": f'def moor():\n    """Moor a boat for the whole night.\n\n    {BOATS} {RIVERS}\n    """\n',
        "project/service.json.gz": gzip.compress(json.dumps(service).encode()),
        "project/guide.md": f"# Rivers\n\n{RIVERS}\n",
        "project/tests/test_boat.py": f'"""{CLOCKS}"""',
        "project/picture.png": b"\x89PNG",
    }
    texts, pairs = read_wheel(wheel(tmp_path, files), with_paragraphs=True)
    moor = "Moor a boat for the whole night."
    assert texts == [[moor, f"{BOATS} {RIVERS}"], [RIVERS], [CLOCKS]]
    assert pairs == [(f"{BOATS} {RIVERS}", moor)]
    assert read_wheel(wheel(tmp_path, files), with_paragraphs=False) == ([], pairs)


def test_text_that_resembles_the_validation_and_test_splits_is_left_out(tmp_path: Path) -> None:
    altered = HIDDEN.replace("driver", "conductor")
    assert resembles_evaluation(HIDDEN) and resembles_evaluation(altered) and not resembles_evaluation(BOATS)
    tram = {"project/tram.py": f'"""Turn it around.\n\n{altered} {BOATS}\n"""\n"""{RIVERS}"""'}
    texts, pairs = read_wheel(wheel(tmp_path, tram), with_paragraphs=True)
    assert (texts, pairs) == ([[RIVERS]], [])


def test_every_package_is_pinned_and_none_is_in_the_validation_or_test_split() -> None:
    files = (documentation.LISTED, documentation.FOR_PAIRS)
    listed = [line.split() for file in files for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(listed) > 1000
    permissive = {
        "MIT",
        "MIT-0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "Apache-2.0",
        "ISC",
        "0BSD",
        "PSF-2.0",
        "Unlicense",
    }
    for name, sha256, licences in listed:
        assert name.endswith("-none-any.whl") and len(sha256) == 64
        assert permissive.issuperset(licences.split("-AND-"))
    packages = [package for file in files for package in documentation.packages(file)]
    projects = [re.sub("[-_.]+", "-", package.name).lower() for package in packages]
    assert len(set(projects)) == len(projects)
    kept_apart = {package.name for split in ("validation", "test") for package in docstrings.PACKAGES[split]}
    assert kept_apart and not kept_apart & set(projects)


def test_a_script_without_a_main_guard_fails_with_a_message_and_does_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "prepare.py"
    script.write_text(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from pathlib import Path\n"
        "from recipes.t5_documentation import documentation\n"
        "with documentation._build_once(Path(__file__).with_name('built')), documentation._explain_killed_process():\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as processes:\n"
        "        print(list(processes.map(len, ['work'])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, script]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert outcome.returncode and "a script that has `if __name__ == '__main__':`" in outcome.stderr


def test_pairs_come_from_both_lists_without_duplicate_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        documentation,
        "packages",
        lambda listed: [documentation.Package("project", "1.0", listed.name, "0" * 64)],
    )
    boat, clock, river = (f"Describe {number} things." for number in ("one", "two", "three"))
    of_wheels = {
        documentation.LISTED.name: ([[BOATS]], [(BOATS, boat), (CLOCKS, clock), (f"{BOATS}  ", river)]),
        documentation.FOR_PAIRS.name: ([[HIDDEN]], [(CLOCKS, river), (RIVERS, river), (HIDDEN, "[Required] A tram.")]),
    }
    monkeypatch.setattr(
        documentation,
        "_read_wheels",
        lambda wheels, room, with_paragraphs: [of_wheels[wheel.wheel] for wheel in wheels],
    )
    assert documentation.pairs().to_pylist() == [
        {"text": BOATS, "summary": boat},
        {"text": CLOCKS, "summary": clock},
        {"text": RIVERS, "summary": river},
    ]
    assert documentation.texts()["text"].to_pylist() == [BOATS]
    monkeypatch.setattr(documentation, "_read_wheels", lambda wheels, room, with_paragraphs: pytest.fail("read again"))
    assert documentation.pairs().num_rows == 3


def gaps_in(monkeypatch: pytest.MonkeyPatch, *documents: str) -> list[tuple[str, str]]:
    monkeypatch.setattr(documentation, "texts", lambda: pyarrow.table({"text": list(documents)}))
    table = documentation.gap_sentences()
    return list(zip(table["text"].to_pylist(), table["summary"].to_pylist(), strict=True))


def test_the_sentence_that_shares_most_words_with_the_others_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    about = "An anchor holds a moored boat against the tide."
    assert gaps_in(monkeypatch, f"{CLOCKS}\n{about} {BOATS}") == [(f"{CLOCKS} {BOATS}", about)]
    assert gaps_in(monkeypatch, f"{CLOCKS}\n{RIVERS} {HIDDEN}") == []  # no shared words
    assert gaps_in(monkeypatch, f"{about} {BOATS}") == []  # only one sentence would remain
    assert gaps_in(monkeypatch, f"{about} {BOATS} {about}") == []  # the rest contains the sentence


def test_the_same_sentence_is_removed_only_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    about = "An anchor holds a moored boat against the tide."
    others = ("The harbour opens at six.", "Visitors are welcome.", "It is closed in winter.", "Dogs stay outside.")
    documents = [f"{other} {about} {BOATS}" for other in others]
    assert [target for _, target in gaps_in(monkeypatch, *documents)] == [about] * docstrings.MAX_SAME_TARGET


def test_long_documents_give_a_sentence_per_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    about = "An anchor holds a moored boat against the tide."
    found = gaps_in(monkeypatch, "\n".join([CLOCKS, about, BOATS, RIVERS, HIDDEN, BOATS, "The boat and its tide."]))
    assert [target for _, target in found] == [about, "The boat and its tide."]
    assert all(len(text.split()) <= documentation.PASSAGE_WORDS for text, _ in found)
