"""Own models and data in plain Lightning, as in its documentation, without any litlab class."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Command
from in_process import fit, logged, newest

from litlab.cli.main import run
from litlab.errors import BadInput

OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Data(LightningDataModule):
    def __init__(self, size: int = 40) -> None:
        super().__init__()
        x = torch.linspace(-1, 1, size)[:, None]
        self.pairs = TensorDataset(x, 3 * x)

    def train_dataloader(self):
        return DataLoader(self.pairs, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.pairs, batch_size=8)

    test_dataloader = val_dataloader


class Model(LightningModule):
    def __init__(self, output: str = "nothing", learning_rate: float = 0.3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": torch.nn.functional.mse_loss(self.layer(x), y)}

    def validation_step(self, batch, batch_idx):
        self.logger.experiment  # the usual way to access W&B
        loss = self.training_step(batch, batch_idx)["loss"]
        self.log("val/loss", loss)
        return {"nothing": None, "loss": loss, "dict": {"val_loss": loss}}[self.hparams.output]

    def test_step(self, batch, batch_idx):
        if self.hparams.output != "nothing":
            self.log("test/loss", self.training_step(batch, batch_idx)["loss"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)
"""


@pytest.fixture
def own(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with own.py in its root folder, which the command line adds to the import path."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the project's folder
    (inside / "own.py").write_text(OWN)
    content = "model: {class_path: own.Model}\ndata: {class_path: own.Data}\ntrainer: {max_epochs: 3}\n"
    (inside / "own.yaml").write_text(content)
    yield inside
    sys.modules.pop("own", None)


@pytest.mark.parametrize("output", ["nothing", "loss", "dict"])
def test_steps_may_return_outputs_of_any_kind(own: Path, output: str, capsys) -> None:
    directory = fit("-c", "own.yaml", f"--model.output={output}", "--trainer.log_every_n_steps=1")
    assert directory.record()["status"] == "finished" and directory.experiment == "own"
    assert json.loads((directory.path / "eval.json").read_text())["val"]["metrics"]["val/loss"] < 0.1
    losses = logged(directory, "train/loss")
    assert len(losses) == 15 and losses[-1] < losses[0]
    assert not (directory.path / "predictions").exists()
    assert "no predictions written: validation and test steps must return" in capsys.readouterr().err


def test_the_real_command_finds_the_code_in_the_root_folder_of_the_project(own: Path, litlab: Command) -> None:
    done = litlab("fit", "-c", "own.yaml", "--trainer.max_epochs=1", fresh=True)
    assert done.returncode == 0, done.stderr
    assert newest(own).record()["status"] == "finished"


def test_a_training_loss_can_be_monitored(own: Path) -> None:
    options = ["--checkpoint.monitor=train/loss_epoch", "--checkpoint.save_on_train_epoch_end=true"]
    assert (fit("-c", "own.yaml", *options).path / "checkpoints" / "best.ckpt").exists()


def test_a_test_step_that_logs_nothing_gives_a_message(own: Path) -> None:
    fit("-c", "own.yaml")
    with pytest.raises(BadInput, match=r"Model logs no metric on the test split: call self\.log in test_step"):
        run("eval", ["latest"])


def test_an_error_in_a_file_of_the_user_is_not_changed(own: Path) -> None:
    (own / "broken.py").write_text("import own\nclass Model(own.Model):\n    oops = not_defined\n")
    with pytest.raises(NameError, match="not_defined"):
        run("fit", ["-c", "own.yaml", "--model=broken.Model"])


def test_the_config_of_an_own_experiment_contains_its_class_paths(own: Path) -> None:
    config = yaml.safe_load((fit("-c", "own.yaml", "--trainer.max_epochs=1").path / "config.yaml").read_text())
    assert config["model"]["class_path"] == "own.Model" and config["experiment"] == "own"
