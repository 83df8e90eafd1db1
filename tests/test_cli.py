"""Every wrong setting is answered with one sentence that names the place and the remedy."""

import re
from pathlib import Path

import pytest
import yaml

from litlab.__main__ import run as run_command
from litlab.cli import LitlabCLI
from litlab.errors import BadInput

EXPERIMENT = "configs/experiment/mnist_mlp.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"nothing says which data and model to use: name an experiment with -c"),
        (["-c"], r"-c needs a file"),
        (["-c", "configs/experiment/mnist_mpl.yaml"], r"no experiment 'mnist_mpl' .*did you mean 'mnist_mlp'; known are .*mnist_mlp"),
        (["-c", "configs/experiment/.yaml"], r"no experiment is named; known are .*mnist_mlp.*: make train EXP=<name>"),
        (["-c", EXPERIMENT, "-c", "configs/hardware/dpd.yaml"], r"no hardware 'dpd' .*did you mean 'ddp'; known are cpu, ddp, fsdp, gpu"),
        (["-c", EXPERIMENT, "--model.hiden=64"], r"^--model.hiden=64: MnistMLP has no option 'hiden'; did you mean 'hidden'; it has hidden, "),
        (["-c", EXPERIMENT, "--model.hiden", "64"], r"^--model.hiden=64: MnistMLP has no option 'hiden'; did you mean 'hidden'"),
        (["-c", EXPERIMENT, "--model.hidden=0"], r"^--model.hidden=0: 0 is not accepted, expected a number greater than 0"),
        (["-c", EXPERIMENT, "--model.hidden=1.5"], r"^--model.hidden=1.5: 1.5 is not accepted, expected a valid integer"),
        (["-c", EXPERIMENT, "--model.learning_rate=fast"], r"fast is not accepted, expected a valid number"),
        (["-c", EXPERIMENT, "--model.warmup=2"], r"2 is not accepted, expected a number less than or equal to 1"),
        (["-c", EXPERIMENT, "--model.schedule=cosin"], r"expected one of linear, cosine, exponential, constant; did you mean 'cosine'"),
        (["-c", EXPERIMENT, "--data.batch_size=0"], r"0 is not accepted, expected a number greater than 0"),
        (["-c", EXPERIMENT, "--trainer.max_epochs=ten"], r"^--trainer.max_epochs=ten: ten is not accepted, expected int or null"),
        (["-c", EXPERIMENT, "--trainer.max_epoch=3"], r"there is no such option; did you mean 'trainer.max_epochs'"),
        (["-c", EXPERIMENT, "--traner.max_epochs=3"], r"there is no such option; did you mean 'trainer.max_epochs'"),
        (["-c", EXPERIMENT, "--trainer.precision=bf17"], r"bf17 is not accepted, .*did you mean 'bf16'"),
        (["-c", EXPERIMENT, "--seed_everything=-1"], r"-1 is not accepted, expected a number greater than or equal to 0"),
        (["-c", EXPERIMENT, "--seed_everything=dice"], r"dice is not accepted, expected a valid integer"),
        (["-c", EXPERIMENT, "--model=litlab.models.mnist_mlp.MnistMPL"], r"^--model=litlab.*has no attribute 'MnistMPL'\); did you mean 'MnistMLP'"),
        (["-c", EXPERIMENT, "--model=litlab.models.nowhere.Model"], r"^--model=.*litlab.models.nowhere.Model cannot be used"),
        (["-c", EXPERIMENT, "--experiment=../elsewhere"], r"experiment '../elsewhere' names a folder"),
        (["-c", EXPERIMENT, "--trainer.strategy=dpp"], r"the trainer's settings do not work here: .*dpp"),
        (["-c", EXPERIMENT, "-c", "configs/hardware/gpu.yaml"], r"do not work here: No supported gpu backend found"),
        (["-c", EXPERIMENT, "-c", "configs/hardware/fsdp.yaml"], r"do not work here: No supported gpu backend found"),
        (["-c", EXPERIMENT, "--experiment=latest"], r"experiment 'latest' is the name of the link to the newest run"),
        (["-c", EXPERIMENT, "--data.seed=5"], r"^--data.seed=5: this follows seed_everything; set that instead"),
        (["-c", EXPERIMENT, "--model.num_classes=5"], r"^--model.num_classes=5: this follows the data; set that instead"),
        (["-c", EXPERIMENT, "--checkpoint.save_top_k=3"], r"save_top_k is 3, but .* use --checkpoint.filename='\{epoch\}-\{step\}'"),
        (["-c", EXPERIMENT, "--data=litlab.models.mnist_mlp.MnistMLP"], r"MnistMLP is not accepted, expected a LightningDataModule"),
        (["-c", EXPERIMENT, "-c", "configs"], r"configs is not a file: -c takes a YAML file"),
        (["-c", EXPERIMENT, "--trainer.max_epochs=-1"], r"a learning-rate schedule needs an end: set trainer.max_epochs or max_steps"),
        (["-c", EXPERIMENT, "surplus"], r"^surplus: there is no such option"),
        (["-c", EXPERIMENT, "--data.source=/nowhere"], r"data.source is '/nowhere': it must be catalog, hub, or a folder"),
        (["-c", EXPERIMENT, "--checkpoint.monitor=val/acc"], r"could not find the monitored key .*val/accuracy"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(arguments: list[str], message: str, inside: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(BadInput, match=message) as raised:
        run_command("fit", arguments)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 400 and text.endswith(".")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model:\n  init_args:\n    hiden: 3\n", r"overlay.yaml, line 3, model.init_args.hiden: MnistMLP has no option 'hiden'; did you mean 'hidden'"),
        ("model:\n  init_args:\n    hidden: abc\n", r"overlay.yaml, line 3, model.init_args.hidden: abc is not accepted, expected a valid integer"),
        ("traner:\n  max_epochs: 3\n", r"overlay.yaml, line 2, traner.max_epochs: there is no such setting; did you mean 'trainer.max_epochs'"),
        ("trainer:\n  max_epoch: 3\n", r"overlay.yaml, line 2, trainer.max_epoch: there is no such setting; did you mean 'trainer.max_epochs'"),
        ("trainer:\n  max_epochs: ten\n", r"overlay.yaml, line 2, trainer.max_epochs: ten is not accepted, expected int or null"),
        ("model:\n  init_args:\n    hidden: 0\ntrainer:\n  num_sanity_val_steps: 0\n", r"overlay.yaml, line 3, model.init_args.hidden: 0 is not"),
        ("trainer: [1, 2\n", r"overlay.yaml, line 2: this is not YAML"),
        ("trainer: 3\n", r"overlay.yaml: trainer must hold settings"),
        ("just text\n", r"overlay.yaml must hold settings as `key: value` lines, it holds str"),
        ("", r"overlay.yaml must hold settings as `key: value` lines, it holds nothing"),
        ("model:\n  class_path: litlab.models.mnist_mlp.Nothing\n", r"overlay.yaml, line 2, model.class_path: .*has no attribute 'Nothing'"),
        (
            "trainer:\n  callbacks+:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n    init_args: {monitr: x}\n",
            r"overlay.yaml, line 4, .*EarlyStopping has no option 'monitr'; did you mean 'monitor'",
        ),
        ("checkpoint:\n  save_top_k: many\n", r"overlay.yaml, line 2, checkpoint.save_top_k: many is not accepted, expected int"),
        ("seed_everything: 1.5\n", r"overlay.yaml, line 1, seed_everything: 1.5 is not accepted, expected a valid integer"),
    ],
)  # fmt: skip
def test_a_wrong_line_in_a_file_is_one_sentence_with_its_number(content: str, message: str, inside: Path) -> None:
    Path("overlay.yaml").write_text(content)
    with pytest.raises(BadInput, match=message) as raised:
        LitlabCLI(["-c", EXPERIMENT, "-c", "overlay.yaml"])
    assert "\n" not in str(raised.value)


def test_a_missing_base_yaml_says_how_to_get_it_back(inside: Path) -> None:
    (inside / "configs" / "base.yaml").unlink()
    with pytest.raises(BadInput, match=r"configs/base.yaml is missing: .*git checkout -- configs/base.yaml"):
        LitlabCLI(["-c", EXPERIMENT])


def test_outside_a_project_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"no folder configs/ .* run litlab inside the project"):
        LitlabCLI([])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "-c", "configs/experiment/mnist_mpl.yaml"), "did you mean 'mnist_mlp'"),
        (("fit", "-c", EXPERIMENT, "--trainer.max_epochs=ten"), "expected int or null"),
        (("fit", "-c", EXPERIMENT, "--model.hiden=64"), "did you mean 'hidden'"),
        (("eval", "latest"), "there are none yet"),
    ],
)
def test_the_real_command_prints_the_sentence_alone_and_exits_with_2(litlab, arguments: tuple, words: str) -> None:
    done = litlab(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(r"litlab: .*\n", done.stderr) and words in done.stderr
    assert done.stdout == ""


def test_later_layers_win_and_lists_can_be_extended(inside: Path) -> None:
    Path("overlay.yaml").write_text(
        "trainer:\n  max_epochs: 7\n  log_every_n_steps: 3\nmodel:\n  init_args:\n    hidden: 16\n"
    )
    cli = LitlabCLI(["-c", EXPERIMENT, "-c", "overlay.yaml", "--trainer.max_epochs=9", "--trainer.callbacks+=Timer"])
    config = yaml.safe_load(cli.config_yaml())
    assert config["trainer"]["max_epochs"] == 9 and config["trainer"]["log_every_n_steps"] == 3
    assert config["model"]["init_args"]["hidden"] == 16 and config["model"]["init_args"]["weight_decay"] == 0.3
    names = [callback["class_path"].split(".")[-1] for callback in config["trainer"]["callbacks"]]
    assert names == ["TrainingLog", "ProgressBar", "LearningRateMonitor", "Timer"]


def test_classes_and_seed_follow_the_data_and_the_run(inside: Path) -> None:
    cli = LitlabCLI(["-c", EXPERIMENT, "--seed_everything=5"])
    assert cli.model.num_classes == cli.datamodule.num_classes == 10
    assert cli.datamodule.seed == 5


def test_a_users_own_model_and_data_need_neither_seed_nor_classes(inside: Path, monkeypatch) -> None:
    demos = "lightning.pytorch.demos.boring_classes"
    Path("own.yaml").write_text(f"model: {demos}.BoringModel\ndata: {demos}.BoringDataModule\n")
    assert LitlabCLI(["-c", "own.yaml"]).config.experiment == "own"
