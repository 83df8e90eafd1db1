"""YAML files and command-line options are merged into one configuration."""

from pathlib import Path

import pytest
import yaml

from litlab.cli.lightning_cli import LitlabCLI
from litlab.cli.settings import runs_folder
from litlab.errors import BadInput
from litlab.files import cache_folder

EXPERIMENT = "configs/experiment/small.yaml"


def test_later_files_and_options_take_precedence_and_lists_can_be_extended(inside: Path) -> None:
    Path("overlay.yaml").write_text(
        "trainer:\n  max_epochs: 7\n  log_every_n_steps: 3\nmodel:\n  init_args:\n    hidden: 16\n"
    )
    cli = LitlabCLI(["-c", EXPERIMENT, "-c", "overlay.yaml", "--trainer.max_epochs=9", "--trainer.callbacks+=Timer"])
    config = yaml.safe_load(cli.config_yaml())
    assert config["trainer"]["max_epochs"] == 9 and config["trainer"]["log_every_n_steps"] == 3
    assert config["model"]["init_args"]["hidden"] == 16 and config["model"]["init_args"]["weight_decay"] == 0.3
    names = [callback["class_path"].split(".")[-1] for callback in config["trainer"]["callbacks"]]
    assert names == ["Throughput", "TrainingLog", "ProgressBar", "LearningRateMonitor", "Timer"]


def test_num_classes_is_derived_from_the_data_and_the_seed_from_the_run(inside: Path) -> None:
    cli = LitlabCLI(["-c", EXPERIMENT, "--seed_everything=5"])
    assert cli.model.num_classes == cli.datamodule.num_classes == 10
    assert cli.datamodule.seed == 5


def test_the_tokenizer_is_that_of_the_pretrained_model(inside: Path) -> None:
    cli = LitlabCLI(["-c", "configs/experiment/speller.yaml", "--model.pretrained=german"])
    assert cli.datamodule.tokenizer == cli.model.pretrained == "german"


def test_a_users_own_model_and_data_need_neither_seed_nor_classes(inside: Path, monkeypatch) -> None:
    demos = "lightning.pytorch.demos.boring_classes"
    Path("own.yaml").write_text(f"model: {demos}.BoringModel\ndata: {demos}.BoringDataModule\n")
    assert LitlabCLI(["-c", "own.yaml"]).config.experiment == "own"


# inputs that the fuzz tests found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([""], r"^'': this is not an option"),
        (["--model=os.path"], r"^--model=os\.path: os\.path is not accepted, expected a LightningModule\.$"),
        (["--model=.a.Model"], r"^--model=\.a\.Model: \.a\.Model is not accepted, expected a LightningModule"),
        (["--data=builtins.dict"], r"^--data=builtins\.dict: .* is not accepted, expected a LightningDataModule\.$"),
        (["--trainer.num_nodes=\t\u2028x"], r"^--trainer\.num_nodes=  x: +x is not accepted, expected int\.$"),
        (
            [f"--trainer.accelerator={'x' * 3000}"],
            r"do not work here: You selected an invalid accelerator .*xxx\.\.\.$",
        ),
        (["--config="], r"^\. is not a file: -c takes a YAML file"),
        (["-c", "x" * 300 + "/a.yaml"], r"^x{200}.* is not a file: -c takes a YAML file"),
    ],
    ids=lambda value: ascii(value)[:40],
)
@pytest.mark.filterwarnings(r"ignore:\s+Importing 'os\.path' is not allowed")  # one of these options names it
def test_an_unusual_option_gives_one_short_line(options: list[str], message: str, inside: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        LitlabCLI(["-c", EXPERIMENT, *options])
    assert len(str(caught.value)) <= 600 and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed_everything: !!timestamp now\n", r"^overlay\.yaml: invalid YAML value \("),
        (
            "seed_everything: !!bool maybe\n",
            r"^overlay\.yaml: invalid YAML value \('maybe'\); quote it if it is a string\.$",
        ),
        ('"\\e[31m\\n": 1\n', r"^overlay\.yaml, line 1,  \[31m : there is no such setting"),
        ("trainer:\n  <<: {max_epoch: 3}\n", r"line 2, trainer\.<<\.max_epoch: .*did you mean 'trainer\.max_epochs'"),
    ],
)
def test_an_unusual_line_of_a_file_gives_one_sentence(content: str, message: str, inside: Path) -> None:
    Path("overlay.yaml").write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        LitlabCLI(["-c", EXPERIMENT, "-c", "overlay.yaml"])
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loop.yaml", "x" * 300 + "/a.yaml"])
def test_a_first_file_that_cannot_be_opened_gives_one_sentence(name: str, inside: Path) -> None:
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(BadInput, match=r"^x{200}.* is not a file|loop\.yaml does not exist"):
        LitlabCLI(["-c", name])


def test_the_home_of_an_unknown_user_is_a_folder_of_that_name(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITLAB_RUNS", "~nobody-here/a")
    monkeypatch.setenv("LITLAB_CACHE", "~nobody-here/a")
    assert runs_folder([]) == cache_folder() == inside / "~nobody-here/a"
