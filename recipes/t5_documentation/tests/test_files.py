"""A data module of the recipe creates the file in data/ that it reads, once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from litlab.errors import BadInput
from project.data.summarization import Summarization
from recipes.t5_documentation import documentation
from recipes.t5_documentation.documentation import prepare
from recipes.t5_documentation.span_corruption import SpanCorruption
from recipes.t5_documentation.summarization import DocumentationSummarization

DATA = Path("recipes/t5_documentation/data")
COLUMNS = {
    "texts.parquet": ["text"],
    "gap_sentences.parquet": ["text", "summary"],
    "pairs.parquet": ["text", "summary"],
}


def pairs_options(tiny_t5: Path) -> dict[str, object]:
    return {"tokenizer": str(tiny_t5), "validation": 0.1, "test": 0.1, "max_length": 64, "batch_size": 8}


@pytest.mark.parametrize("name", COLUMNS)
def test_each_file_is_created_once_and_no_other_file_remains(files_made: list[str], name: str) -> None:
    for _ in range(2):
        prepare(f"{DATA}/{name}")
    table = pyarrow.parquet.read_table(DATA / name)
    assert table.column_names == COLUMNS[name] and table.num_rows == 60
    assert files_made == [name]
    assert {file.name for file in DATA.iterdir()} == {name, f".{name}.lock"}


def test_concurrent_processes_create_a_file_only_once(files_made: list[str]) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(prepare, [f"{DATA}/pairs.parquet"] * 4))
    assert files_made == ["pairs.parquet"]


@pytest.mark.parametrize(
    "source", ["docstrings", "owner/name@main", "pairs.parquet", f"{DATA}/own.parquet", f"{DATA}/more/texts.parquet"]
)
def test_any_other_source_is_left_alone(files_made: list[str], source: str) -> None:
    prepare(source)
    assert not files_made and not DATA.exists()


def test_a_file_from_other_packages_is_refused(files_made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(f"{DATA}/pairs.parquet")
    monkeypatch.setattr(documentation, "CLEANING", documentation.CLEANING + 1)
    with pytest.raises(
        BadInput, match=r"data/pairs.parquet was made from other packages than .*: delete it to create it"
    ):
        prepare(f"{DATA}/pairs.parquet")


def test_a_build_that_fails_leaves_no_file(files_made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> pyarrow.Table:
        raise BadInput("no index.")

    monkeypatch.setitem(documentation.FILES, "texts.parquet", (fail, (documentation.LISTED,)))
    with pytest.raises(BadInput, match="no index"):
        prepare(f"{DATA}/texts.parquet")
    assert {file.name for file in DATA.iterdir()} == {".texts.parquet.lock"}


def test_a_summarizer_reads_the_created_file_like_any_other(files_made: list[str], tiny_t5: Path) -> None:
    source = f"{DATA}/gap_sentences.parquet"
    made = DocumentationSummarization(source, **pairs_options(tiny_t5))  # type: ignore[arg-type]
    assert made.vocab_size and files_made == ["gap_sentences.parquet"]
    plain = Summarization(source, **pairs_options(tiny_t5))  # type: ignore[arg-type]
    plain.prepare_data()
    assert made.fingerprint == plain.fingerprint
    for one, other in zip(made.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"]) and torch.equal(one["labels"], other["labels"])


def test_a_summarizer_reads_the_users_own_texts(files_made: list[str], tiny_t5: Path) -> None:
    rows = "".join(f"words {number},{number}\n" for number in range(40))
    Path("own.csv").write_text(f"text,summary\n{rows}")
    data = DocumentationSummarization("own.csv", **pairs_options(tiny_t5))  # type: ignore[arg-type]
    data.prepare_data()
    assert len(data.splits["train"].array("id")) == 32 and not files_made


def test_span_corruption_reads_the_created_file_by_default(files_made: list[str]) -> None:
    data = SpanCorruption(validation=0.2, tokenizer_size=400, input_length=16)
    assert data.vocab_size <= 400 and files_made == ["texts.parquet"]
