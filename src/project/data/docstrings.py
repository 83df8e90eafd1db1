"""Pairs for summarization out of open-source Python: the first sentence of a docstring is the target, the rest the source.

The docstrings are read from pinned wheels with `ast`: nothing is imported, installed or unpacked to disk. The splits
are made by package, so a model is evaluated on projects whose code and authors it has not read.
"""

import ast
import hashlib
import re
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from litlab.files import build_once, cache_folder
from litlab.progress import progress
from litlab.sources import wheels
from litlab.sources.wheels import Package

CLEANING = 1  # raise it whenever the same wheels would give other pairs
MIN_SOURCE_WORDS, MIN_TARGET_WORDS, MAX_TARGET_WORDS = 30, 3, 20
MAX_SAME_TARGET = 3
SEQUENCE_WORDS, MAX_SHARED = 5, 0.4
COLUMNS = ("split", "source", "target", "package", "name")


def package_of(wheel: str, sha256: str) -> Package:
    """The package of a wheel, whose file name holds name and version."""
    name, version, *_ = wheel.split("-")
    return Package(name.replace("_", "-"), version, wheel, sha256)


def _packages(wheels: str) -> list[Package]:
    """Lines of a wheel's file name and its sha256."""
    return [package_of(*line.split()) for line in wheels.strip().splitlines()]


# pure Python under the BSD, MIT or Apache licence, chosen for many docstrings with prose; no project is in two splits
PACKAGES: dict[str, list[Package]] = {
    "train": _packages("""
        allennlp-2.10.1-py3-none-any.whl d840f2cb285ded77f48fbe5c8f52fe955dc48d4462cae2baf4668eca10dd42fb
        boto-2.49.0-py2.py3-none-any.whl 147758d41ae7240dc989f0039f27da8ca0d53734be0eb869ef16e3adcfa462e8
        cinder-29.0.0-py3-none-any.whl da8b1441740fb2dcfd76138607c6a96fc14d2548826741a6246bbd0d73f88860
        scitools_iris-3.14.1-py3-none-any.whl aabc44e347c82dacb188f0d0e577055feef3b643bd5fc58c09fe78b334866f80
        jax-0.10.2-py3-none-any.whl 724d73c4678d8b06f6a6ab4db1b8a2fea8cd4f1e2c2564f99601634ec7b8d1c6
        keras-3.15.1-py3-none-any.whl 836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20
        kornia-0.9.0-py3-none-any.whl 7a1632fe004a305c94f2b979fc6ab4df26e01f925e74bdb9f8b8a03a1229caaf
        langchain_core-1.8.2-py3-none-any.whl 11f1047c4b243df746c01c10208082f580bb55f5fbf17bdb38355b6b63c4f63b
        mlflow_skinny-3.17.2-py3-none-any.whl 31be9190494212ccd94774170fd06f6fe04d209aae3923eefd16f9bf7830d63c
        monai-1.6.1-py3-none-any.whl dbd3b1dd309e752e0477ed73fde03b92f80ac74bfb8a8c4260f018b5d6ab2b0b
        napari-0.9.2-py3-none-any.whl a67f7add584c8d2560096a0ae0b5322eceba046db42f4c130c8e622c5c72a04f
        nemo_toolkit-3.0.0-py3-none-any.whl f1d8238e35909464cf426e5792af3113a7060de419f194b83bedd81cbe909394
        netket-3.23.0-py3-none-any.whl 760d2a02daa4e00cd27d4afa25ac3c8d83ba66f00c3d535c1a0fe6269408097a
        nova-34.0.0-py3-none-any.whl 8b46997836961762608e6e46e6d4945325d8a1fb8004e79e552e55839061f10c
        python_pptx-1.0.2-py3-none-any.whl 160838e0b8565a8b1f67947675886e9fea18aa5e795db7ae531606d68e785cba
        pyvista-0.49.1-py3-none-any.whl e4bd78c829051207e885281c45d03280dcde25445e1885c0824518ea7849b1c8
        pywikibot-11.9.0-py3-none-any.whl 398fa8974bf7ae70c57872f2f0390610d29ae18ed987d29b6c9a1bb65851a35b
        sentence_transformers-6.2.0-py3-none-any.whl ffb51ccfef65427cfa61776d0eeeb257600b0099cf0c7533ae9a6856d31e4665
        sktime-1.2.0-py3-none-any.whl dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae
        snowflake_snowpark_python-1.56.0-py3-none-any.whl 281a05a49e620a6054e382d7371ae5449b2db6bd312f6c4c5dd08ff4c9b93b3d
        speechbrain-1.1.2-py3-none-any.whl 9fea4144c917ea58bcf13f17a1a1759179ed7472a30ec8416e7c7c8cf21d9c9a
        spikeinterface-0.105.3-py3-none-any.whl e461ed690c60a6beb3f7519ba7ef649eda82579b358c90824bdfedfb4173fc33
        swift-2.38.3-py3-none-any.whl d8db9539f998b36da4cb3bd4ab93981409a5791ef4aa09efe68956c61acca312
        sympy-1.14.0-py3-none-any.whl e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5
        tensorflow_probability-0.25.0-py2.py3-none-any.whl f3f4d6431656c0122906888afe1b67b4400e82bd7f254b45b92e6c5b84ea8e3e
        tf_agents-0.19.0-py3-none-any.whl ff27f3020c486746faff2046abea1fbd8b16fb93984ff685d8ee34a17f9f84f8
        tf_keras-2.21.0-py3-none-any.whl f858bf3d97f892304e7fbcf5eb0942ed91674e27204f940a85de8c93cf07fe62
        tf_models_official-2.20.0-py2.py3-none-any.whl 0bf173f9ea83e1a83f983b35fe515e9d9bfd294b27538f6e8806afeb5a069150
        twisted-26.10.0-py3-none-any.whl 3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8
    """),
    "validation": _packages("""
        dagster-1.13.29-py3-none-any.whl 65f7bf2f52c0c1219cb1ca63a1f0f95a1af83d12e94ebec7598e47ee49889859
        ipython-9.18.1-py3-none-any.whl 997ce9140d374531a61069c70c0f9ef299d6dd3559ea0f94b8af589726e3c1d5
        networkx-3.6.1-py3-none-any.whl d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762
        pyglet-2.1.19-py3-none-any.whl 5ba6e8cb0b5ac56a284e43ab411e2bbd504191c32a765abdbd6a6c4b7f1ca317
    """),
    "test": _packages("""
        cirq_core-1.7.0-py3-none-any.whl 9d2e9610b06e2b2b2195184f44c0df4e94f31485831f8e1c6a96c858b7897bce
        evennia-5.0.1-py3-none-any.whl 471d5259f089d2f32e09cd9f383390c076093b9e2a6f661e0cd91eed59d67bcf
        nltk-3.10.4-py3-none-any.whl 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51
    """),
}

Pair = dict[str, str]

# tests, copies of other projects, migrations, and the copies that tensorflow-probability generates of itself
NOT_THE_PROJECT = re.compile(
    r"(^|/)(tests?|testing|testsuite|conftest\.py|test_[^/]*|[^/]*_test\.py|examples?|_?vendor(ed)?|_?extern(al|als)?|migrations|substrates|[^/]*\.(data|dist-info))(/|$)"
)
# where the prose ends for good: a titled section, a field, a doctest, fenced code, an underline
SECTION = re.compile(
    r"\s*(>>>|```|#+\s|@\w|:[^`:]+:(\s|$)|([^\w\s])\3{2,}|[-=~*^]{2,}$|[A-Z][\w/-]*( [\w/-]+){0,2}:+$"
    r"|(Notes?|Usage|See Also|References|Methods)\W*$"
    r"|(Parameters?|Arguments|Args|Returns?|Yields|Raises|Examples?|Attributes)(\W*$|:))"
)
# what only interrupts it, up to the next empty line: an indented block, directive, list, table or command
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
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u00a0", "''\"\"-- ")  # quotes, dashes and a space
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


def key() -> str:
    """Names this data set: changes with any package and with the cleaning."""
    wheels = [(split, package.sha256) for split, packages in sorted(PACKAGES.items()) for package in packages]
    return hashlib.sha256(repr((CLEANING, wheels)).encode()).hexdigest()[:16]


def table() -> pyarrow.Table:
    """All pairs, as strings in the columns split, source, target, package and name; built once, then read from the cache.

    Raises:
        BadInput: if a wheel cannot be had or the cache cannot be written.
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
    """The dotted name and docstring of a module and of each class, method and function in it, in the file's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        # feature_version: as nearly as possible the same on every Python
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
    """The source and target that a docstring gives, cleaned of markup; None if it does not give good ones.

    The target is the first sentence. The source is the prose after it, up to the first section, list, table or code,
    without sentences that only point elsewhere; it has at least `min_source_words`.
    """
    if len(docstring.split()) < min_source_words:
        return None  # most docstrings are one line
    paragraphs = _prose(docstring).split("\n\n")
    target, *sentences = SENTENCE_END.split(without_markup(paragraphs[0]).lstrip("\"'- "))
    if target[-1:].isalnum():
        if ENGLISH.fullmatch(target.split()[-1]):
            return None  # "the distribution given by", then a formula
        target += "."
    if (
        not MIN_TARGET_WORDS <= len(target.split()) <= MAX_TARGET_WORDS
        or not target.endswith(".")
        or POINTER.match(target)
        or BOILERPLATE.search(target)
        or share_of(target, WORD) < 0.8
    ):
        return None
    for paragraph in paragraphs[1:]:
        sentences += SENTENCE_END.split(without_markup(paragraph))
    source = " ".join(
        sentence
        for sentence in sentences
        if sentence.endswith(COMPLETE)
        and not POINTER.match(sentence)
        and not BOILERPLATE.search(sentence)
        and " ".join(normal_words(target)) not in " ".join(normal_words(sentence))  # would be copied, not summarized
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
    """A text without the markup of docstrings, in one line."""
    text = text.translate(PLAIN)
    for pattern, replacement in MARKUP:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def share_of(text: str, pattern: re.Pattern[str]) -> float:
    """The share of a text's words that match; 0 to 1."""
    words = text.split()
    return sum(bool(pattern.fullmatch(word)) for word in words) / len(words)


def _without_repeats(pairs: list[Pair]) -> list[Pair]:
    """Drop near-duplicates, first of all from train, and targets that many bodies share.

    Two pairs are near-duplicates if they share more than `MAX_SHARED` of the five-word sequences of the shorter one.
    Between train and the other splits nothing but copies shares more than a tenth, so the limit is not critical there;
    within a project it thins out siblings written from one template.
    """
    last_split_first = sorted(
        range(len(pairs)), key=lambda index: (-list(PACKAGES).index(pairs[index]["split"]), index)
    )
    kept: list[int] = []
    sizes: list[int] = []
    holders: dict[str, list[int]] = defaultdict(list)  # sequence -> positions in kept
    for index in last_split_first:
        words = normal_words(f"{pairs[index]['target']} {pairs[index]['source']}")
        sequences = {" ".join(words[at : at + SEQUENCE_WORDS]) for at in range(len(words) - SEQUENCE_WORDS + 1)}
        shared = Counter(position for sequence in sequences for position in holders.get(sequence, ()))
        if any(count > MAX_SHARED * min(len(sequences), sizes[position]) for position, count in shared.items()):
            continue
        for sequence in sequences:
            holders[sequence].append(len(kept))
        kept.append(index)
        sizes.append(len(sequences))
    unique = [pairs[index] for index in sorted(kept)]
    times = Counter(" ".join(normal_words(pair["target"])) for pair in unique)
    return [pair for pair in unique if times[" ".join(normal_words(pair["target"]))] <= MAX_SAME_TARGET]


def normal_words(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())
