"""The experiments that need the Hugging Face Hub, with a small Hub that serves tiny models and a few rows.

The real clients download from it. Its repositories have the layout of the real ones: the same ids, commits,
configurations, splits, columns, types and class names. Only steps and beams are fewer than in the YAML.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest
import yaml
from hub_server import HubServer

from litlab.sources import hub as hub_client

PROJECT = Path(__file__).resolve().parents[2]
BERT, T5 = ("bert_mrpc", "bert_sst2", "bert_imdb", "bert_chnsenticorp"), ("t5_cnn_dailymail", "t5_xsum", "t5_samsum")
SIZES = {"train": 100, "validation": 6, "test": 5, "unsupervised": 7}
WORDS = ("the", "film", "story", "is", "very", "good", "bad", "and", "not", "dull", "river", "town", "says", "new")
CHARACTERS = "这个酒店很好不房间大早餐差服务书电脑"
SHORT = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"),
    *("--trainer.accelerator=cpu", "--trainer.logger=false"),
)


def settings(experiment: str) -> dict[str, Any]:
    """The arguments of model and data that an experiment's YAML sets."""
    content = yaml.safe_load((PROJECT / "configs" / "experiment" / f"{experiment}.yaml").read_text())
    return {**content["model"]["init_args"], **content["data"]["init_args"]}


def sentence(source: random.Random, most: int = 12) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(3, most))).capitalize() + "."


def labels(split: str, size: int, hidden: tuple[str, ...] = ()) -> list[int]:
    """Labels sorted by class, like those of IMDB; -1 in splits whose labels are not public."""
    return [-1 if split in hidden else 2 * row // size for row in range(size)]


def write_data_sets(folder: Path) -> None:
    """Write the files and cards of the data sets."""
    from datasets import ClassLabel, Dataset, Features, Value

    source, text = random.Random(0), Value("string")

    # functions that write one repository: its features, rows, parquet files and card

    def pairs(*names: str, **other: Any) -> Features:
        return Features({**dict.fromkeys(names, text), **other})

    def binary(*names: str) -> ClassLabel:
        return ClassLabel(names=list(names))

    def columns(features: Features, split: str, hidden: tuple[str, ...]) -> dict[str, list[Any]]:
        size, made = SIZES[split], {}
        for name, kind in features.items():
            if name == "label":
                made[name] = labels(split, size, hidden)
            elif name in ("idx", "id"):
                made[name] = [row if kind.dtype == "int32" else f"{split}{row:034x}" for row in range(size)]
            elif name == "highlights":
                made[name] = [f"{sentence(source)}\n{sentence(source)}" for _ in range(size)]
            else:
                made[name] = [" ".join(sentence(source) for _ in range(source.randint(1, 4))) for _ in range(size)]
        return made

    def repository(
        name: str,
        configurations: dict[str, Features],
        files: str,
        splits: tuple[str, ...] = (),
        hidden: tuple[str, ...] = (),
    ) -> None:
        info, data_files = [], []
        for configuration, features in configurations.items():
            info.append({"config_name": configuration, "features": features._to_yaml_list()})
            places = [
                {"split": split, "path": files.format(configuration=configuration, split=split) + "-*"}
                for split in splits
            ]
            data_files.append({"config_name": configuration, "data_files": places})
            for place in places:
                file = folder / name / place["path"].replace("*", "00000-of-00001.parquet")
                file.parent.mkdir(parents=True, exist_ok=True)
                rows = columns(features, place["split"], hidden)
                if configuration == "1.0.0":  # not the requested configuration
                    rows = {name: values[:1] for name, values in rows.items()}
                Dataset.from_dict(rows, features).to_parquet(file)
        card = yaml.safe_dump({"license": "other", "dataset_info": info, "configs": data_files}, sort_keys=False)
        (folder / name / "README.md").write_text(f"---\n{card}---\n# {name}\n")

    # repositories with a card

    usual = ("train", "validation", "test")
    idx = Value("int32")
    mrpc = pairs("sentence1", "sentence2", label=binary("not_equivalent", "equivalent"), idx=idx)
    sst2 = pairs("sentence", label=binary("negative", "positive"), idx=idx)
    repository("nyu-mll/glue", {"mrpc": mrpc, "sst2": sst2}, "{configuration}/{split}", usual)
    hide_labels(folder / "nyu-mll" / "glue" / "sst2" / "test-00000-of-00001.parquet", sst2)
    imdb = {"plain_text": pairs("text", label=binary("neg", "pos"))}
    repository(
        "stanfordnlp/imdb", imdb, "{configuration}/{split}", ("train", "test", "unsupervised"), ("unsupervised",)
    )
    news = pairs("article", "highlights", "id")
    repository("abisee/cnn_dailymail", {"1.0.0": news, "3.0.0": news}, "{configuration}/{split}", usual)
    repository("EdinburghNLP/xsum", {"default": pairs("document", "summary", "id")}, "data/{split}", usual)

    # repositories without a card

    chinese = folder / "lansinuote" / "ChnSentiCorp" / "data"  # the splits follow from the file names
    chinese.mkdir(parents=True)
    for split in usual:
        texts = ["".join(source.choices(CHARACTERS, k=source.randint(4, 30))) for _ in range(SIZES[split])]
        table = pyarrow.table({"text": texts, "label": labels(split, SIZES[split])})
        pyarrow.parquet.write_table(table, chinese / f"{split}-00000-of-00001-02f200ca5f2a7868.parquet")

    samsum = folder / "knkarthick" / "samsum"
    samsum.mkdir(parents=True)
    for split in usual:
        lines = ["id,dialogue,summary"]
        for row in range(SIZES[split]):
            chat = "\r\n".join(f"{who}: {sentence(source)}" for who in ("Amanda", "Jerry", "Amanda"))
            chat = "" if (split, row) == ("train", 3) else f'"{chat}"'
            lines.append(f"{13818513 + row},{chat},{sentence(source)}")
        (samsum / f"{split}.csv").write_text("\n".join(lines) + "\n", newline="")


def hide_labels(file: Path, features: Any) -> None:
    from datasets import Dataset

    rows = pyarrow.parquet.read_table(file).to_pydict()
    Dataset.from_dict({**rows, "label": [-1] * len(rows["label"])}, features).to_parquet(file)


def write_models(folder: Path) -> None:
    """Write the files of the models, and files in other formats, which must not be downloaded."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertTokenizer,
        T5Config,
        T5ForConditionalGeneration,
        T5Tokenizer,
    )

    # two BERTs, a T5, and files in other formats
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz.", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    for name, known in (("bert-base-uncased", [*letters, *WORDS]), ("bert-base-chinese", list(CHARACTERS))):
        bert = folder / "google-bert" / name
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]
        BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}).save_pretrained(bert)
        (bert / "vocab.txt").write_text("\n".join(vocabulary))
        (bert / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(bert)
    t5 = folder / "google-t5" / "t5-small"
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyzAJSTFGBIVRN.:",
        *(f"▁{word}" for word in WORDS),
    ]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])
    tokenizer.save_pretrained(t5)
    tiny = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer) + 28, **tiny)).save_pretrained(t5)
    for model in folder.glob("*/*"):
        (model / "onnx").mkdir()
        for other in ("pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md", "onnx/config.json"):
            (model / other).write_text("not needed")


class Done(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str


DRIVER = """
import contextlib, io, json, os, sys
import datasets, huggingface_hub, project.models.bert_classifier, project.models.t5_summarizer, litlab.training
from litlab.cli import main as __main__
from litlab.sources import hub
for line in sys.stdin:
    request = json.loads(line)
    sys.argv[1:], hub.TIMEOUT, os.environ["LITLAB_CACHE"] = request["arguments"], request["patience"], request["cache"]
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = request["offline"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = __main__.main()
    print("done", json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


class Lab:
    """A Hub with all data sets and models, and a process that runs commands of a project with this Hub.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.hub = HubServer(folder / "hub")
        self.project = folder / "project"
        shutil.copytree(PROJECT / "configs", self.project / "configs")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LITLAB_", "WANDB_"))},
            **{"HOME": str(folder), "LITLAB_CACHE": str(folder / "litlab"), "HF_HOME": str(folder / "hugging face")},
            "HF_ENDPOINT": self.hub.url,
        }
        with (folder / "driver.log").open("w") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log},
                cwd=self.project,
                env=self.environment,
                text=True,
            )
        write_data_sets(folder / "hub" / "datasets")  # meanwhile, the other process imports its libraries
        write_models(folder / "hub" / "models")
        for experiment in BERT + T5:
            for name in (settings(experiment)["pretrained"], settings(experiment)["source"]):
                repository, commit = name.split("@")
                self.hub.commits[repository] = commit
        self._trained: dict[str, Done] = {}
        self.records: dict[str, dict[str, Any]] = {}

    def run(
        self,
        *arguments: str,
        patience: float = hub_client.TIMEOUT,
        offline: bool = False,
        cache: Path | None = None,
    ) -> Done:
        """Run a command in the long-running process.

        Args:
            arguments: command line after `litlab`.
            patience: seconds in which the Hub must answer.
            offline: behave as with HF_HUB_OFFLINE=1.
            cache: folder of litlab's cache; the cache of the Hub's clients is always the same.
        """
        assert self.driver.stdin and self.driver.stdout
        request = {"arguments": arguments, "patience": patience, "offline": offline}
        request["cache"] = str(cache or self.environment["LITLAB_CACHE"])
        self.driver.stdin.write(json.dumps(request) + "\n")
        self.driver.stdin.flush()
        for line in self.driver.stdout:
            if line.startswith("done "):
                return Done(*json.loads(line[5:]))
        raise AssertionError("the process that runs the commands has ended; see driver.log")

    def command(self, *arguments: str, **environment: str) -> Done:
        """Run the litlab command in its own process."""
        done = subprocess.run(
            [sys.executable, "-m", "litlab", *arguments],
            cwd=self.project,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def trained(self, experiment: str) -> Done:
        """The result of a short training of an experiment, which is trained only once."""
        if experiment not in self._trained:
            self._trained[experiment] = self.run(*fit(experiment))
            if self._trained[experiment].status == 0:  # keep it, because other tests evaluate the run
                self.records[experiment] = json.loads((self.newest(experiment) / "run.json").read_text())
        return self._trained[experiment]

    def newest(self, experiment: str) -> Path:
        """The run directory of the newest run."""
        runs = [path for path in (self.project / "runs" / experiment).iterdir() if not path.is_symlink()]
        return max(runs, key=lambda path: path.stat().st_mtime)


def fit(experiment: str, *options: str) -> list[str]:
    fewer = ["--model.num_beams=2", "--model.max_new_tokens=8"] if experiment in T5 else []
    return ["fit", "-c", f"configs/experiment/{experiment}.yaml", *SHORT, *fewer, *options]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    with made.hub, made.driver:
        yield made
        assert made.driver.stdin
        made.driver.stdin.close()


@pytest.mark.parametrize("experiment", BERT + T5)
def test_the_experiment_trains_and_evaluates(lab: Lab, experiment: str) -> None:
    done = lab.trained(experiment)
    assert done.status == 0, done.err
    run = lab.newest(experiment)
    record = lab.records[experiment]
    assert record["status"] == "finished" and record["steps"] == 1 and record["test_evaluations"] == 0
    result = json.loads((run / "eval.json").read_text())["val"]
    held_out = settings(experiment).get("validation", "validation")
    rows = SIZES[held_out] if isinstance(held_out, str) else round(held_out * SIZES["train"])
    assert result["examples"] == rows
    monitored = yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["monitor"]
    assert 0 <= result["metrics"][monitored] <= 1 and result["metrics"]["val/loss"] > 0
    table = pyarrow.parquet.read_table(run / "predictions" / "val.parquet").to_pydict()
    assert len(set(table["id"])) == rows
    if experiment in BERT:
        assert set(table["target"]) == {0, 1}
    else:
        assert all(target.strip() == target != "" for target in table["target"])


def test_class_names_are_those_of_the_hub(lab: Lab) -> None:
    said = {name: lab.trained(name).out + lab.trained(name).err for name in BERT}
    assert "classes    not_equivalent, equivalent\n" in said["bert_mrpc"]
    assert "classes    negative, positive\n" in said["bert_sst2"]
    assert "classes    neg, pos\n" in said["bert_imdb"]
    assert "classes    0, 1\n" in said["bert_chnsenticorp"]


@pytest.mark.parametrize(
    ("experiment", "counts"),
    [
        ("bert_mrpc", "90 train, 10 validation, 6 test"),
        ("bert_sst2", "98 train, 2 validation, 6 test"),
        ("bert_imdb", "90 train, 10 validation, 5 test"),
        ("bert_chnsenticorp", "100 train, 6 validation, 5 test"),
        ("t5_cnn_dailymail", "100 train, 6 validation, 5 test"),
        ("t5_xsum", "100 train, 6 validation, 5 test"),
        ("t5_samsum", "99 train, 6 validation, 5 test"),
    ],
)
def test_the_splits_are_those_of_the_hub_or_held_out_by_the_experiment(lab: Lab, experiment: str, counts: str) -> None:
    done = lab.trained(experiment)
    assert f": {counts}\n" in done.out + done.err


def test_a_missing_dialogue_is_left_out_and_counted(lab: Lab) -> None:
    assert "split train: 1 of 100 rows have no text and are skipped\n" in lab.trained("t5_samsum").err


def test_only_needed_files_are_downloaded_from_the_pinned_commits(lab: Lab) -> None:
    for experiment in BERT + T5:
        lab.trained(experiment)
    files = [request.split("/resolve/")[1] for request in lab.hub.requests if "/resolve/" in request]
    assert {file.split("/")[0] for file in files} <= set(lab.hub.commits.values())
    assert not [file for file in files if file.endswith((".bin", ".h5", ".ot")) or "onnx" in file]
    assert not [file for file in files if "/1.0.0/" in file]


@pytest.mark.parametrize(("experiment", "rows"), [("bert_mrpc", 6), ("bert_sst2", 6), ("t5_samsum", 5)])
def test_eval_uses_the_split_of_published_results(lab: Lab, experiment: str, rows: int) -> None:
    """For GLUE this is the validation split; the test labels of SST-2 are all -1 and would be refused."""
    lab.trained(experiment)
    done = lab.run("eval", experiment, "--split=test")
    assert done.status == 0, done.err
    run = lab.newest(experiment)
    result = json.loads((run / "eval.json").read_text())["test"]
    assert result["examples"] == rows and result["metrics"]["test/loss"] > 0
    assert f"over {rows} examples of the test split" in done.out and "evaluated 1 time\n" in done.out
    table = pyarrow.parquet.read_table(run / "predictions" / "test.parquet").to_pydict()
    assert table["id"] == list(range(rows))
    if experiment in BERT:
        assert table["target"] == labels("validation", rows)


def refusal(done: Done) -> str:
    """The message with which a command refused its input, one sentence on the last line of stderr."""
    assert done.status == 2 and "Traceback" not in done.err, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("litlab: ") and last.endswith("."), last
    return last.removeprefix("litlab: ")


def test_hidden_labels_are_refused(lab: Lab) -> None:
    message = refusal(lab.run(*fit("bert_sst2", "--data.test=test")))
    assert "split test, row 1: the label -1 is not in the training split, which has 0, 1" in message


@pytest.mark.parametrize(
    ("source", "configuration", "reason"),
    [
        ("nyu-mll/glue", "cola", "BuilderConfig 'cola' not found. Available: ['mrpc', 'sst2']"),
        ("nyu-mll/glue", "null", "Config name is missing"),
        ("nyu-mll/glue@" + "1" * 40, "mrpc", "it has no revision '1111"),
        ("nyu-mll/nothing", "mrpc", "it does not exist or is private; check the name"),
        ("nyu-mll/nothing@" + "1" * 40, "mrpc", "it does not exist or is private; check the name"),
        ("org/gated", "null", "its owner grants access by request; ask for it on its page"),
    ],
)
def test_for_an_unavailable_data_set_the_message_gives_the_reason(
    lab: Lab, source: str, configuration: str, reason: str
) -> None:
    shutil.copytree(
        lab.hub.folder / "datasets/stanfordnlp/imdb", lab.hub.folder / "datasets/org/gated", dirs_exist_ok=True
    )
    lab.hub.gated.add("org/gated")
    done = lab.run(*fit("bert_mrpc", f"--data.source={source}", f"--data.configuration={configuration}"))
    message = refusal(done)
    assert (
        message.startswith(f"the dataset {source}") and "could not be downloaded from the Hugging Face Hub: " in message
    )
    assert reason in message
    if "onfig" in reason:
        assert "; choose one with --data.configuration." in message


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("org/nothing", "it does not exist or is private; check the name"),
        ("google-bert/bert-base-uncased@no-such-branch", "it has no revision 'no-such-branch'"),
        ("org/gated-model", "its owner grants access by request; ask for it on its page"),
    ],
)
def test_for_an_unavailable_model_the_message_gives_the_reason(lab: Lab, model: str, reason: str) -> None:
    models = lab.hub.folder / "models"
    shutil.copytree(models / "google-bert/bert-base-uncased", models / "org/gated-model", dirs_exist_ok=True)
    lab.hub.gated.add("org/gated-model")
    message = refusal(lab.run(*fit("bert_mrpc", f"--model.pretrained={model}")))
    assert message.startswith(f"the model {model} could not be downloaded from the Hugging Face Hub: {reason}")


UNSEEN = {
    "model": (
        "--model.pretrained=org/unseen@" + "2" * 40,
        "a packaged model (all-MiniLM-L6-v2) or a folder",
    ),
    "dataset": (
        "--data.source=org/unseen@" + "2" * 40,
        "a packaged data set (rotten_tomatoes) or a local file",
    ),
}


def asked_for_unseen(lab: Lab) -> int:
    """The number of requests for the repository that does not exist."""
    return sum("org/unseen" in request for request in lab.hub.requests)


@pytest.mark.parametrize("kind", UNSEEN)
@pytest.mark.parametrize("status", [404, 429, 500])
def test_a_hub_that_answers_with_an_error_is_asked_once(lab: Lab, kind: str, status: int) -> None:
    lab.trained("bert_mrpc")
    asked, (option, offline) = asked_for_unseen(lab), UNSEEN[kind]
    lab.hub.status = status
    try:
        done = lab.run(*fit("bert_mrpc", option))
    finally:
        lab.hub.status = None
    assert refusal(done) == (
        f"the {kind} {option.split('=')[1]} could not be downloaded from the Hugging Face Hub: HfHubHTTPError; check the network and "
        f"HF_ENDPOINT, set HF_HUB_OFFLINE=1 if it is in the Hub's cache, or use {offline}."
    )
    assert asked_for_unseen(lab) == asked + 1


@pytest.mark.parametrize("kind", UNSEEN)
def test_a_hub_that_never_answers_is_asked_once_for_ten_seconds(lab: Lab, kind: str) -> None:
    assert hub_client.TIMEOUT == 10
    lab.trained("bert_mrpc")
    asked, (option, offline) = asked_for_unseen(lab), UNSEEN[kind]
    lab.hub.hang()
    try:
        done = lab.run(*fit("bert_mrpc", option), patience=0.5)
    finally:
        lab.hub._answers.set()
    assert "ReadTimeout; check the network" in refusal(done) and refusal(done).endswith(f"or use {offline}.")
    assert asked_for_unseen(lab) == asked + 1


def test_data_in_the_hubs_cache_are_prepared_again_without_a_request(lab: Lab, tmp_path: Path) -> None:
    first = lab.trained("bert_imdb")
    asked = len(lab.hub.requests)
    again = lab.run(*fit("bert_imdb"), offline=True, cache=tmp_path)
    assert again.status == 0 and again.out.splitlines()[:2] == first.out.splitlines()[:2], again.err
    assert len(lab.hub.requests) == asked


def test_offline_a_cached_commit_is_not_used_instead_of_another_one(lab: Lab, tmp_path: Path) -> None:
    """The Hub's client itself would use the newest cached commit."""
    lab.trained("bert_imdb")
    other = "stanfordnlp/imdb@" + "3" * 40
    message = refusal(lab.run(*fit("bert_imdb", f"--data.source={other}"), offline=True, cache=tmp_path))
    here = settings("bert_imdb")["source"].split("@")[1]
    assert f"the Hub's cache has stanfordnlp/imdb at {here}, not at {'3' * 40}: download it once online." in message


@pytest.mark.parametrize("kind", UNSEEN)
def test_offline_a_repository_that_is_not_cached_gives_one_sentence(lab: Lab, kind: str) -> None:
    lab.trained("bert_mrpc")
    option, offline = UNSEEN[kind]
    assert refusal(lab.run(*fit("bert_mrpc", option), offline=True)) == (
        f"the {kind} {option.split('=')[1]} could not be downloaded from the Hugging Face Hub: HF_HUB_OFFLINE is set and it is not in "
        f"the Hub's cache; download it once online, or use {offline}."
    )


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_the_litlab_command_trains_with_an_empty_cache_and_again_without_the_hub(lab: Lab, tmp_path: Path) -> None:
    cache = {"HF_HOME": str(tmp_path / "hugging face"), "LITLAB_CACHE": str(tmp_path / "litlab")}
    first = lab.command(*fit("t5_samsum"), **cache)
    assert first.status == 0, first.err
    asked = len(lab.hub.requests)
    again = lab.command(*fit("t5_samsum"), **cache, HF_ENDPOINT=closed_port())
    assert again.status == 0, again.err
    assert len(lab.hub.requests) == asked


def test_without_a_network_the_message_says_what_works(lab: Lab, tmp_path: Path) -> None:
    done = lab.command(*fit("t5_xsum"), HF_HOME=str(tmp_path), HF_ENDPOINT=closed_port())
    name = settings("t5_xsum")["pretrained"]
    assert refusal(done) == (
        f"the model {name} could not be downloaded from the Hugging Face Hub: ConnectError; check the network and HF_ENDPOINT, set "
        "HF_HUB_OFFLINE=1 if it is in the Hub's cache, or use a packaged model (all-MiniLM-L6-v2) or a folder."
    )
    assert "Retrying" not in done.err  # the clients' own retries take most of a minute
