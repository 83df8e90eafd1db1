"""Summarization pairs from docstrings of Python packages: the target is the first sentence, the source is the rest.

The docstrings are parsed from pinned wheels with `ast`; nothing is imported, installed or unpacked to disk. Each
package is in one split only, so models are evaluated on unseen projects and authors.
"""

import ast
import hashlib
import re
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from litlab.data.readers import Source, Table, arrow_reader
from litlab.files import build_once, cache_folder
from litlab.progress import progress
from litlab.sources import wheels
from litlab.sources.wheels import Package

CLEANING = 1  # increase when the same wheels would give different pairs
MIN_SOURCE_WORDS, MIN_TARGET_WORDS, MAX_TARGET_WORDS = 30, 3, 20
MAX_SAME_TARGET = 3  # most pairs with the same target
SEQUENCE_WORDS, MAX_SHARED = 5, 0.4  # near-duplicates share more than this fraction of their five-word sequences
COLUMNS = ("split", "source", "target", "package", "name")


def _read_packages() -> dict[str, list[Package]]:
    packages: dict[str, list[Package]] = {"train": [], "validation": [], "test": []}
    for package, split in wheels.read_package_list(Path(__file__).with_name("docstrings_packages.txt")):
        packages[split].append(package)
    return packages


PACKAGES = _read_packages()
"""The wheels of each split."""

Pair = dict[str, str]

# not the project's own code: tests, copies of other projects, migrations, generated copies (tensorflow-probability)
NOT_THE_PROJECT = re.compile(
    r"(^|/)(tests?|testing|testsuite|conftest\.py|test_[^/]*|[^/]*_test\.py|examples?|_?vendor(ed)?|_?extern(al|als)?|migrations|substrates|[^/]*\.(data|dist-info))(/|$)"
)
# the prose ends at a titled section, a field, a doctest, fenced code or an underline
SECTION = re.compile(
    r"\s*(>>>|```|#+\s|@\w|:[^`:]+:(\s|$)|([^\w\s])\3{2,}|[-=~*^]{2,}$|[A-Z][\w/-]*( [\w/-]+){0,2}:+$"
    r"|(Notes?|Usage|See Also|References|Methods)\W*$"
    r"|(Parameters?|Arguments|Args|Returns?|Yields|Raises|Examples?|Attributes)(\W*$|:))"
)
# these interrupt the prose until the next empty line: an indented block, directive, list, table or command
INTERRUPTION = re.compile(r"\s+\S|\.\.\s|[-*+•]\s|[|%]|\$\s|\(?\d{1,2}[.)]\s|\(?[a-z]\)\s")
MATHEMATICS = re.compile(r":math:|\$|\\[a-z({]|\\\\")
MARKUP = [
    (r"\[([^\]]+)\](?:\([^)\s]+\)|\[[^\]]*\])", r"\1"),  # [text](link)
    (r"\[`([^`\]]+)`\]", r"`\1`"),  # [`Name`]
    (r"(?<!\w)[LCIBMUF]\{([^{}<]*?)(?:\s*<[^{}]*>)?\}", r"\1"),  # epytext: L{text<target>}
    (r"\s*\[[\w#*.,-]+\]_", ""),  # a citation
    (r"(?::[\w+.-]+)+:(?=`)", ""),  # the name of a role
    (r"`([^`<>]+?)\s*<[^`>]+>`_{0,2}", r"\1"),  # `text <target>`
    (r"~(?:[\w.]*\.)?([A-Za-z_]\w*)", r"\1"),  # ~package.Name
    (r"(``|`)!?(.+?)\1_{0,2}", r"\2"),
    (r"(?<![\w*])(\*{1,3})(?![\s*])([^*]+?)(?<!\s)\1(?![\w*])", r"\2"),
    (r"(?<!\w)_([A-Za-z][\w -]*[A-Za-z])_(?!\w)", r"\1"),
    (r"\|(\w[\w .-]*)\|", r"\1"),
    (r"\\(?=[^\w\s])", ""),
    (r"\s+", " "),
    (r" (?=[,.;:!?)](?:\s|$))", ""),
]
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u00a0", "''\"\"-- ")  # typographic quotes, dashes and space
SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\bal\.)(?<!\b[A-Z]\.)[\"')]*\s+(?=[\"'(]?[A-Z])"
)
COMPLETE = (".", "!", "?", '."', ".)", ".'")
POINTER = re.compile(
    r"(see|refer to|read more|consult|please|for (more|further|details)|more (info|details)|references?:|(?-i:where|and|which))\b",
    re.I,
)
BOILERPLATE = re.compile(
    r"deprecat|copyright|licen[sc]e|auto-?generated|automatically generated|todo\b|fixme|https?:|www\.|\S@\S+\.\w|docstring|"
    r"added in|changed in|backward.compat|for internal use|do not edit|arxiv|doi:|proceedings|\bpp\.|\bvol\.|^\[?\d+\]|^@",
    re.I,
)
ENGLISH = re.compile(
    r"(a|an|and|are|as|at|be|been|by|can|each|for|from|has|have|if|in|into|is|it|its|may|not|of|on|one|only|or|other|should|so"
    r"|such|than|that|the|their|them|then|there|these|they|this|to|used|using|was|when|where|which|will|with|you)[,.;:]?",
    re.I,
)
WORD = re.compile(r"[\"'(\[]*[A-Za-z]+(['/-][A-Za-z]+)*[\"')\].,;:!?]*|[\"'(]*\d+[\d.,%]*[\"')\].,;:!?]*|--?")


def source() -> Source:
    """Return the data set for `open_source`: three splits with the columns text and summary."""
    return Source("docstrings", key(), _tables)


def _tables() -> dict[str, Table]:
    pairs = table().rename_columns({"source": "text", "target": "summary"})
    parts = {split: pairs.filter(pyarrow.compute.equal(pairs["split"], split)) for split in PACKAGES}
    return {split: Table(f"docstrings, split {split}", arrow_reader(part)) for split, part in parts.items()}


def key() -> str:
    """Return a hash of the packages and of the version of the cleaning."""
    pinned = [(split, package.sha256) for split, packages in sorted(PACKAGES.items()) for package in packages]
    return hashlib.sha256(repr((CLEANING, pinned)).encode()).hexdigest()[:16]


def table() -> pyarrow.Table:
    """Return all pairs as strings in the columns split, source, target, package and name; built once, then cached.

    Raises:
        BadInput: if a wheel is unavailable or the cache cannot be written.
    """
    file = cache_folder() / "docstrings" / f"{key()}.parquet"
    with build_once(file, "caching the docstrings") as scratch:
        if scratch:
            pairs = _without_repeats(_read_wheels())
            pyarrow.parquet.write_table(
                pyarrow.table({name: [pair[name] for pair in pairs] for name in COLUMNS}), scratch
            )
    return pyarrow.parquet.read_table(file)


def _read_wheels() -> list[Pair]:
    paths = [(split, package, wheels.fetch(package)) for split in PACKAGES for package in PACKAGES[split]]
    pairs: list[Pair] = []
    unreadable = 0
    for split, package, path in progress(paths, "reading docstrings (once)", unit="package"):
        with zipfile.ZipFile(path) as wheel:
            for member in sorted(name for name in wheel.namelist() if name.endswith(".py")):
                if NOT_THE_PROJECT.search(member):
                    continue
                module = member.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                try:
                    found = docstrings_in(wheel.read(member), module)
                except (SyntaxError, ValueError, RecursionError, MemoryError):
                    unreadable += 1
                    continue
                for name, text in found:
                    if pair := pair_of(text):
                        pairs.append(dict(zip(COLUMNS, (split, *pair, package.name, name), strict=True)))
    if unreadable:
        print(f"skipped {unreadable} files that Python cannot parse", file=sys.stderr)
    return pairs


def docstrings_in(code: bytes, module: str) -> list[tuple[str, str]]:
    """Return the dotted names and docstrings of a module and its classes, methods and functions, in file order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the strings of these packages
        # feature_version: nearly the same result on every version of Python
        return list(_walk(module, ast.parse(code, feature_version=(3, 11))))


def _walk(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body if isinstance(node, ast.Module | ast.ClassDef) else ():
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(f"{name}.{child.name}", child)


def pair_of(docstring: str, min_source_words: int = MIN_SOURCE_WORDS) -> tuple[str, str] | None:
    """Return source and target of a docstring, without markup; None if the docstring is not usable.

    The target is the first sentence. The source is the prose after it, up to the first section, list, table or code,
    without sentences that only refer elsewhere; it has at least `min_source_words`.
    """
    if len(docstring.split()) < min_source_words:
        return None  # most docstrings are a single line
    # the target
    paragraphs = _prose(docstring).split("\n\n")
    target, *sentences = SENTENCE_END.split(without_markup(paragraphs[0]).lstrip("\"'- "))
    if target[-1:].isalnum():
        if ENGLISH.fullmatch(target.split()[-1]):
            return None  # incomplete: "the distribution given by", before a formula
        target += "."
    if (
        not MIN_TARGET_WORDS <= len(target.split()) <= MAX_TARGET_WORDS
        or not target.endswith(".")
        or POINTER.match(target)
        or BOILERPLATE.search(target)
        or share_of(target, WORD) < 0.8
    ):
        return None
    # the source
    for paragraph in paragraphs[1:]:
        sentences += SENTENCE_END.split(without_markup(paragraph))
    source = " ".join(
        sentence
        for sentence in sentences
        if sentence.endswith(COMPLETE)
        and not POINTER.match(sentence)
        and not BOILERPLATE.search(sentence)
        and " ".join(normal_words(target)) not in " ".join(normal_words(sentence))  # the target could be copied
    )
    if (
        len(source.split()) < min_source_words
        or share_of(source, WORD) < 0.9
        or share_of(source, ENGLISH) < 0.25
        or not (source + target).isascii()
        or "`" in source + target
    ):
        return None
    return source, target


def _prose(text: str) -> str:
    """Return the lines of prose before the first section."""
    lines: list[str] = []
    interrupted = False
    for line in text.splitlines():
        if SECTION.match(line):
            break
        interrupted = bool(line.strip()) and (interrupted or bool(INTERRUPTION.match(line) or MATHEMATICS.search(line)))
        if not interrupted:
            lines.append(line)
    return "\n".join(lines)


def without_markup(text: str) -> str:
    """Return a text on one line, without docstring markup."""
    text = text.translate(PLAIN)
    for pattern, replacement in MARKUP:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def share_of(text: str, pattern: re.Pattern[str]) -> float:
    """Return the fraction of a text's words that match the pattern, from 0 to 1."""
    words = text.split()
    return sum(bool(pattern.fullmatch(word)) for word in words) / len(words)


def _without_repeats(pairs: list[Pair]) -> list[Pair]:
    """Remove near-duplicates, from train first, and pairs whose target occurs more than `MAX_SAME_TARGET` times.

    Two pairs are near-duplicates if they share more than `MAX_SHARED` of the five-word sequences of the shorter pair.
    Between train and the other splits, only copies share more than a tenth, so the limit is not critical there. Within
    a project, it removes docstrings that follow the same template.
    """
    # remove near-duplicates; of two, the first in this order is kept
    last_split_first = sorted(
        range(len(pairs)), key=lambda index: (-list(PACKAGES).index(pairs[index]["split"]), index)
    )
    kept: list[int] = []
    sizes: list[int] = []
    positions: dict[str, list[int]] = defaultdict(list)  # positions in `kept` of the pairs with each sequence
    for index in last_split_first:
        words = normal_words(f"{pairs[index]['target']} {pairs[index]['source']}")
        sequences = {" ".join(words[at : at + SEQUENCE_WORDS]) for at in range(len(words) - SEQUENCE_WORDS + 1)}
        shared = Counter(position for sequence in sequences for position in positions.get(sequence, ()))
        if any(count > MAX_SHARED * min(len(sequences), sizes[position]) for position, count in shared.items()):
            continue
        for sequence in sequences:
            positions[sequence].append(len(kept))
        kept.append(index)
        sizes.append(len(sequences))
    # remove frequent targets
    unique = [pairs[index] for index in sorted(kept)]
    times = Counter(" ".join(normal_words(pair["target"])) for pair in unique)
    return [pair for pair in unique if times[" ".join(normal_words(pair["target"]))] <= MAX_SAME_TARGET]


def normal_words(text: str) -> list[str]:
    """Return the words of a text, in lower case and without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())
