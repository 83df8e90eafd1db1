import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer

PAIRS = """---
configs:
- config_name: mrpc
  data_files:
  - split: train
    path: mrpc/train-*
  - split: test
    path: mrpc/test-*
- config_name: sst2
  data_files:
  - split: train
    path: sst2/train-*
dataset_info:
- config_name: mrpc
  features:
  - name: sentence1
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': not_equivalent
          '1': equivalent
- config_name: sst2
  features:
  - name: sentence
    dtype: string
---
"""


@pytest.fixture
def hub(tmp_path: Path):
    folder = tmp_path / "hub"
    pairs, reviews, dialogues = (folder / "datasets" / "org" / name for name in ("pairs", "reviews", "dialogues"))
    for file, columns in (
        ("mrpc/train-00000-of-00001.parquet", {"sentence1": ["a", "b", "c"], "label": [0, 1, 1]}),
        ("mrpc/test-00000-of-00001.parquet", {"sentence1": ["d"], "label": [-1]}),
        ("sst2/train-00000-of-00001.parquet", {"sentence": ["e", "f"]}),
    ):
        (pairs / file).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), pairs / file)
    (pairs / "README.md").write_text(PAIRS)
    reviews.mkdir()
    (reviews / "train.csv").write_text("text,label\ngood,1\nbad,0\n")
    dialogues.mkdir()
    (dialogues / "train.jsonl").write_text('{"dialogue": "Hi!", "summary": "A greeting."}\n')
    with HubServer(folder) as server:
        yield server


Client = Callable[..., Any]


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    """A function that runs code in its own process with this Hub and an empty cache; returns the last line as JSON."""

    def run(code: str, **environment: str) -> Any:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", **environment}
        done = subprocess.run(
            [sys.executable, "-c", f"import json\n{code}"],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("HF_")} | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_data_sets_of_parquet_csv_and_jsonl_files_load_by_name(hub: HubServer, client: Client) -> None:
    answer = client(f"""
from datasets import load_dataset
pairs, pinned = load_dataset("org/pairs", "mrpc"), load_dataset("org/pairs", "sst2", revision="{hub.commit}")
label = pairs["train"].features["label"]
print(json.dumps([pairs["train"].to_dict(), label.names, pairs["test"]["label"][:], pinned["train"]["sentence"][:],
    load_dataset("org/reviews")["train"].to_list(), load_dataset("org/dialogues", split="train").to_list()]))
""")
    assert answer == [
        {"sentence1": ["a", "b", "c"], "label": [0, 1, 1]},
        ["not_equivalent", "equivalent"],
        [-1],
        ["e", "f"],
        [{"text": "good", "label": 1}, {"text": "bad", "label": 0}],
        [{"dialogue": "Hi!", "summary": "A greeting."}],
    ]
    assert f"GET /datasets/org/reviews/resolve/{hub.commit}/train.csv" in hub.requests


def test_the_builder_gives_the_commit_even_without_the_hub(hub: HubServer, client: Client) -> None:
    hub.commits["org/reviews"] = "1" * 40
    ask = 'import datasets; print(json.dumps(datasets.load_dataset_builder("org/reviews").hash))'
    client('import datasets; datasets.load_dataset("org/reviews"); print("null")')
    assert client(ask) == "1" * 40
    hub.die()
    assert client(ask, HF_HUB_OFFLINE="1") == "1" * 40


def test_models_load_by_name_from_the_branch_and_from_the_commit(hub: HubServer, client: Client) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, T5Config
    from transformers import T5ForConditionalGeneration as T5

    bert, t5 = (hub.folder / "models" / "org" / name for name in ("tiny-bert", "tiny-t5"))
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=7, num_labels=3, **size)).save_pretrained(bert)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(bert)
    T5(T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(t5)
    answer = client(f"""
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file
def load(**options):
    model = AutoModelForSequenceClassification.from_pretrained("org/tiny-bert", use_safetensors=True, **options)
    t5 = AutoModelForSeq2SeqLM.from_pretrained("org/tiny-t5", use_safetensors=True, **options)
    words = AutoTokenizer.from_pretrained("org/tiny-bert", **options)("bad good").input_ids
    kind = AutoConfig.from_pretrained("org/tiny-bert", **options).model_type
    commit = cached_file("org/tiny-bert", "config.json", **options).split("/")[-2]
    return [words, kind, model.num_labels, t5.config.d_model, commit]
print(json.dumps([load(), load(revision="{hub.commit}")]))
""")
    assert answer == [[[2, 6, 5, 3], "bert", 3, 8, hub.commit]] * 2
    assert [request for request in hub.requests if request.startswith("GET") and "model.safetensors" in request] == [
        f"GET /org/{name}/resolve/{hub.commit}/model.safetensors" for name in ("tiny-bert", "tiny-t5")
    ]


ERROR = """
from huggingface_hub import HfApi
def error(name, revision=None):
    try:
        HfApi().dataset_info(name, revision=revision, timeout=2)
        HfApi().hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
    except Exception as reason:
        return type(reason).__name__
print(json.dumps([error("org/pairs"), error("org/pairs", "2" * 40), error("org/nothing"), error("org/reviews")]))
"""


def test_errors_are_those_of_the_real_hub(hub: HubServer, client: Client) -> None:
    missing = ["RevisionNotFoundError", "RepositoryNotFoundError", "RemoteEntryNotFoundError"]
    assert client(ERROR) == [None, *missing]
    hub.gated.add("org/pairs")
    assert client(ERROR, HF_HOME="empty") == ["GatedRepoError", *missing]
    assert client(ERROR, HF_HOME="empty", HF_TOKEN="hf_token") == ["GatedRepoError", *missing]


def test_a_hub_that_is_down(hub: HubServer, client: Client) -> None:
    hub.status = 500
    assert client(ERROR) == ["HfHubHTTPError"] * 4
    hub.status = None
    hub.hang()
    assert client(ERROR.replace("timeout=2", "timeout=0.2")) == ["ReadTimeout"] * 4
    hub.die()
    assert client(ERROR) == ["ConnectError"] * 4


def test_a_range_request_gives_a_part_of_the_file(hub: HubServer, client: Client) -> None:
    assert client("""
from huggingface_hub import HfFileSystem
with HfFileSystem().open("datasets/org/reviews/train.csv", block_size=4) as file:
    file.seek(5)
    print(json.dumps([file.read(5).decode(), HfFileSystem().glob("datasets/org/pairs/**/test-*")]))
""") == ["label", ["datasets/org/pairs/mrpc/test-00000-of-00001.parquet"]]
