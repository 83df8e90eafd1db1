"""Pretraining data: English prose from open-source packages (docstrings, guides, descriptions of web services).

`prepare` writes the three files that the configurations of this recipe read:

- `texts()`: documents.
- `gap_sentences()`: passages with one sentence removed, and that sentence.
- `pairs()`: texts and the first sentences that precede them, as in `docstrings`, but from other projects.

All text comes from pinned wheels. No wheel is imported, installed or unpacked to disk. The projects in the validation
and test splits of `docstrings` are left out, and so is text that resembles these splits.
"""

import gzip
import hashlib
import html
import inspect
import json
import multiprocessing
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from litlab.errors import BadInput
from litlab.files import build_once, cache_folder
from litlab.progress import progress
from litlab.sources.wheels import Package, fetch_all, read_package_list
from project.data import docstrings
from project.data.docstrings import (
    BOILERPLATE,
    ENGLISH,
    MAX_SAME_TARGET,
    NOT_THE_PROJECT,
    SENTENCE_END,
    SEQUENCE_WORDS,
    WORD,
    normal_words,
    pair_of,
    share_of,
    without_markup,
)

CLEANING = 2  # version of the cleaning; increase it when the same wheels would give other texts, pairs or gap sentences
LISTED = Path(__file__).with_name("packages.txt")
FOR_PAIRS = Path(__file__).with_name("packages_for_pairs.txt")  # additional packages for pairs()
DATA = Path(__file__).resolve().with_name("data")  # folder of the files that the configurations name; not in git
MIN_WORDS = 6  # words of a paragraph
MIN_PAIR_WORDS = 12  # words of the text after a first sentence; fewer than in docstrings, for twice as many pairs
MAX_SHARED = 0.2  # share of a text's five-word sequences that may occur in docstrings' validation and test splits
MAX_PROCESSES = 8  # processes that read wheels; more do not help: the largest wheel takes 1/8 of the total time
PASSAGE_WORDS = 90  # maximum words of a passage, from which one sentence is removed
MIN_GAP_WORDS, MAX_GAP_WORDS = 4, 25  # words of the removed sentence
MIN_GAP_SHARE = 0.5  # share of the removed sentence's content words that occur in the rest of the passage
MAX_FILE = 3_000_000  # bytes of a plain text file; longer ones are word lists and logs

# start of a paragraph: after an empty line, at a list item, at a field, at "name (type): "
BEGINS = re.compile(
    r"\n\s*\n|\n(?=\s*(?:[-*+•]|\d{1,2}[.)])\s)|\n(?=\s*[:@]\w)|\n(?=\s*\*{0,2}\w[\w.]*(?: ?\([^)\n]*\))?:\s)"
)
LABEL = re.compile(
    r"\s*(?:[-*+•]\s+|\d{1,2}[.)]\s+|:[\w ,.`\[\]-]+:\s+|@\w+\s+\w+\s+|#+\s+|\*{0,2}\w[\w.]*(?: ?\([^)\n]*\))?:\s+|\.\.\s+\w+::\s*)"
)
SENTENCES = re.compile(r"[\"'(]?[A-Z][^`{}<>|\\=_@#~^\[\]]{25,}[.!?][\"')]?")
STRING = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
DESCRIPTION = re.compile(
    r'"(?:description|documentation|Description|longDescription|text)"\s*:\s*"((?:[^"\\]|\\.){30,})"'
)
LINE_TAG = re.compile(r"</(?:p|li|h\d|dd|dt)>|<br ?/?>", re.IGNORECASE)
TAG = re.compile(r"<[^<>]{1,200}>")

Pair = tuple[str, str]


def prepare(source: str) -> None:
    """Create a file in `DATA` if it is missing; concurrent processes create it only once.

    Args:
        source: `data.source`. Does nothing if this is not the path of a file in `FILES`.

    Raises:
        BadInput: if a wheel is unavailable, the file or the cache cannot be written, or the lists have changed since.
    """
    file = Path(os.path.abspath(source))
    if file.parent != DATA or file.name not in FILES:
        return
    table_of, lists = FILES[file.name]
    version = {b"litlab": key(*lists).encode()}
    with build_once(file, f"writing {file.name}") as scratch:
        if scratch:
            pyarrow.parquet.write_table(table_of().replace_schema_metadata(version), scratch)
    if pyarrow.parquet.read_schema(file).metadata != version:
        raise BadInput(f"{file} was made from other packages than those listed now: delete it to create it again.")


def packages(listed: Path) -> list[Package]:
    """The wheels in a list."""
    return [package for package, _ in read_package_list(listed)]


def key(*lists: Path) -> str:
    """A hash of all wheels in these lists and of the version of the cleaning."""
    wheels = [package.sha256 for listed in lists for package in packages(listed)]
    return hashlib.sha256(repr((CLEANING, docstrings.key(), wheels)).encode()).hexdigest()[:16]


def texts() -> pyarrow.Table:
    """Documents, in the column text: the prose of one file each, one paragraph per line, without duplicate paragraphs.

    Raises:
        BadInput: if a wheel is unavailable or the cache cannot be written.
    """
    return pyarrow.parquet.read_table(_read_listed() / "texts.parquet")


def pairs() -> pyarrow.Table:
    """First sentences (column summary) and the text that follows them (column text), from the wheels of both lists.

    Raises:
        BadInput: if a wheel is unavailable or the cache cannot be written.
    """
    file = cache_folder() / "documentation_pairs" / f"{key(LISTED, FOR_PAIRS)}.parquet"
    with _build_once(file) as scratch:
        if scratch:
            first = pyarrow.parquet.read_table(_read_listed() / "pairs.parquet")
            known = zip(first["text"].to_pylist(), first["summary"].to_pylist(), strict=True)
            wheels = _read_wheels(packages(FOR_PAIRS), scratch.parent, with_paragraphs=False)
            more = (pair for _, of_wheel in wheels for pair in of_wheel)
            pyarrow.parquet.write_table(_table_of(list(_without_repeats(chain(known, more)))), scratch)
    return pyarrow.parquet.read_table(file)


def gap_sentences() -> pyarrow.Table:
    """Sentences removed from passages (column summary) and the rest of each passage (column text).

    The removed sentence is the one with the largest share of content words that also occur in the other sentences: it
    can be inferred from them. After PEGASUS (Zhang et al., 2020), which scores sentences by ROUGE-1 and marks the gap.

    Raises:
        BadInput: if a wheel is unavailable or the cache cannot be written.
    """
    times: Counter[str] = Counter()
    found: list[Pair] = []
    for document in progress(texts()["text"].to_pylist(), "removing sentences", unit="document"):
        for text, sentence in filter(None, map(_gap_in, _passages(document))):
            times[sentence] += 1
            if times[sentence] <= MAX_SAME_TARGET:
                found.append((text, sentence))
    return _table_of(found)


FILES: dict[str, tuple[Callable[[], pyarrow.Table], tuple[Path, ...]]] = {
    "texts.parquet": (texts, (LISTED,)),
    "gap_sentences.parquet": (gap_sentences, (LISTED,)),
    "pairs.parquet": (pairs, (LISTED, FOR_PAIRS)),
}
"""The files in `DATA`: name -> function that creates the table, package lists that it reads."""


def _table_of(found: list[Pair]) -> pyarrow.Table:
    return pyarrow.table({"text": [source for source, _ in found], "summary": [target for _, target in found]})


def _passages(document: str) -> Iterator[list[str]]:
    """Split a document into passages: lists of sentences with at most `PASSAGE_WORDS` words in total."""
    passage: list[str] = []
    words = 0
    for sentence in SENTENCE_END.split(document.replace("\n", " ")):
        count = len(sentence.split())
        if passage and words + count > PASSAGE_WORDS:
            yield passage
            passage, words = [], 0
        passage.append(sentence)
        words += count
    yield passage


def _gap_in(passage: list[str]) -> Pair | None:
    """The rest of a passage and the removed sentence.

    None if too few of the sentence's words occur in the rest, or if the rest contains the whole sentence.
    """
    # content words: all except frequent English words
    content = [{word for word in normal_words(sentence) if not ENGLISH.fullmatch(word)} for sentence in passage]
    times = Counter(word for words in content for word in words)
    shares = [
        sum(times[word] > 1 for word in words) / len(words)
        if len(words) > 1 and MIN_GAP_WORDS <= len(sentence.split()) <= MAX_GAP_WORDS and sentence.endswith(".")
        else 0.0
        for sentence, words in zip(passage, content, strict=True)
    ]
    best = shares.index(max(shares))
    text, sentence = " ".join(passage[:best] + passage[best + 1 :]), passage[best]
    copied = " ".join(normal_words(sentence)) in " ".join(normal_words(text))
    return (text, sentence) if len(passage) > 2 and shares[best] >= MIN_GAP_SHARE and not copied else None


def _read_listed() -> Path:
    """The cache folder with the texts and the pairs from the wheels of the first list; reads the wheels only once."""
    folder = cache_folder() / "documentation" / key(LISTED)
    with _build_once(folder) as scratch:
        if scratch:
            documents: list[str] = []
            found: list[Pair] = []
            seen: set[bytes] = set()
            for paragraphs_of_files, of_wheel in _read_wheels(packages(LISTED), scratch.parent, with_paragraphs=True):
                found += of_wheel
                for paragraphs in paragraphs_of_files:
                    if fresh := [paragraph for paragraph in paragraphs if _is_new(paragraph, seen)]:
                        documents.append("\n".join(fresh))
            scratch.mkdir()
            pyarrow.parquet.write_table(pyarrow.table({"text": documents}), scratch / "texts.parquet")
            pyarrow.parquet.write_table(_table_of(list(_without_repeats(found))), scratch / "pairs.parquet")
    return folder


def _build_once(target: Path) -> AbstractContextManager[Path | None]:
    """Like `build_once`, but raises BadInput in a process that is still being spawned."""
    # every spawned process runs a script without the guard again, and would wait for its parent process forever;
    # only a private attribute shows that a process is still starting
    if getattr(multiprocessing.current_process(), "_inheriting", False) and not target.exists():
        raise BadInput("a script that prepares data must do so below `if __name__ == '__main__':`.")
    return build_once(target, "caching the documentation")


def _read_wheels(
    wheels: list[Package], room: Path, with_paragraphs: bool
) -> Iterator[tuple[list[list[str]], list[Pair]]]:
    """The results of `read_wheel` for each wheel, in order. `room` is an empty folder for the downloads."""
    docstrings.table()  # build it once here, not in each process
    paths = fetch_all(wheels, room)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # spawn, because forking a process with threads can deadlock
    context = multiprocessing.get_context("spawn")
    with _explain_killed_process(), ProcessPoolExecutor(min(cores, MAX_PROCESSES), context) as processes:
        yield from progress(
            processes.map(partial(read_wheel, with_paragraphs=with_paragraphs), paths),
            "reading documentation (once)",
            unit="package",
            total=len(wheels),
        )


def _without_repeats(found: Iterable[Pair]) -> Iterator[Pair]:
    """Drop pairs whose text occurred before or whose first sentence occurred often."""
    times: Counter[str] = Counter()
    seen: set[bytes] = set()
    for source, target in found:
        times[target] += 1
        keep = times[target] <= MAX_SAME_TARGET and _is_new(source, seen)
        # "[Required] Gets the name of this" and the like occur thousands of times
        if keep and not target.startswith("["):
            yield source, target


@contextmanager
def _explain_killed_process() -> Iterator[None]:
    """Turn the error of a killed worker process into one sentence.

    Raises:
        BadInput: if a process that reads wheels was killed.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise BadInput(
            "a process that reads documentation was killed, because memory ran out or the main program is not a file: free some "
            "memory, or start from litlab or from a script that has `if __name__ == '__main__':`."
        ) from error


def _is_new(text: str, seen: set[bytes]) -> bool:
    """Whether a text differs from all texts in `seen`, apart from case and punctuation; adds it to `seen`."""
    digest = hashlib.blake2b(" ".join(normal_words(text)).encode(), digest_size=8).digest()
    known = len(seen)
    seen.add(digest)
    return len(seen) > known


def read_wheel(path: Path, with_paragraphs: bool) -> tuple[list[list[str]], list[Pair]]:
    """The paragraphs and the pairs in a wheel.

    Args:
        path: the wheel.
        with_paragraphs: whether to read the paragraphs.

    Returns:
        The paragraphs of each file that has any, and the pairs of all files.
    """
    files, found = [], []
    with zipfile.ZipFile(path) as wheel:
        for member in sorted(wheel.infolist(), key=lambda member: member.filename):
            paragraphs = []
            for text in _texts_in(wheel, member):
                if with_paragraphs:
                    paragraphs += [
                        paragraph for paragraph in paragraphs_of(text) if not resembles_evaluation(paragraph)
                    ]
                pair = pair_of(text, MIN_PAIR_WORDS)
                if pair and not resembles_evaluation(" ".join(pair)):
                    found.append(pair)
            if paragraphs:
                files.append(paragraphs)
    return files, found


def _texts_in(wheel: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[str]:
    """The strings in a file that may contain prose."""
    name = member.filename
    if NOT_THE_PROJECT.search(name):
        return
    if name.endswith(".py"):
        code = wheel.read(member).decode(errors="replace")
        yield from (inspect.cleandoc(one or other) for one, other in STRING.findall(code))
    elif name.endswith((".rst", ".md", ".txt")) and member.file_size <= MAX_FILE:
        yield wheel.read(member).decode(errors="replace")
    elif name.endswith((".json", ".json.gz")):
        content = wheel.read(member)
        content = gzip.decompress(content) if name.endswith(".gz") else content
        for string in DESCRIPTION.findall(content.decode(errors="replace")):
            try:
                text = html.unescape(json.loads(f'"{string}"', strict=False))
            except ValueError:
                continue
            yield TAG.sub(" ", LINE_TAG.sub("\n\n", text))


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs that consist of English sentences only, without markup; each list item or field is a paragraph."""
    found = []
    for part in BEGINS.split(text):
        paragraph = without_markup(LABEL.sub("", part, count=1)) if len(part) > 5 * MIN_WORDS else ""
        if (
            SENTENCES.fullmatch(paragraph)
            and paragraph.isascii()
            and len(paragraph.split()) >= MIN_WORDS
            and share_of(paragraph, ENGLISH) >= 0.2
            and share_of(paragraph, WORD) >= 0.9
            and not BOILERPLATE.search(paragraph)
        ):
            found.append(paragraph)
    return found


def resembles_evaluation(text: str) -> bool:
    """Whether over a fifth of the text's five-word sequences occur in the validation and test splits of docstrings."""
    sequences = _sequences(text)
    return len(sequences & _evaluation_sequences()) > MAX_SHARED * len(sequences)


@lru_cache(maxsize=1)
def _evaluation_sequences() -> set[str]:
    table = docstrings.table()
    table = table.filter(pyarrow.compute.not_equal(table["split"], "train"))
    return set().union(*(map(_sequences, [*table["source"].to_pylist(), *table["target"].to_pylist()])))


def _sequences(text: str) -> set[str]:
    words = normal_words(text)
    return {" ".join(words[at : at + SEQUENCE_WORDS]) for at in range(len(words) - SEQUENCE_WORDS + 1)}
