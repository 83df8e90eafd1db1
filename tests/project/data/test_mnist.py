from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from litlab.errors import BadInput
from project.data.mnist import MNIST
from project.data.mnist_files import read_idx_folder


def prepared(folder: Path, **options) -> MNIST:
    data = MNIST(source=str(folder), **{"batch_size": 32, "validation_size": 100, **options})
    data.prepare_data()
    data.setup()
    return data


def test_splits_are_the_official_files_and_the_end_of_the_training_file(idx_folder: Path) -> None:
    data = prepared(idx_folder)
    ids = {
        "train": [int(id) for batch in data.train_dataloader() for id in batch["id"]],
        "val": [int(id) for batch in data.val_dataloader() for id in batch["id"]],
        "test": [int(id) for batch in data.test_dataloader() for id in batch["id"]],
    }
    assert sorted(ids["train"]) == list(range(500))
    assert ids["val"] == list(range(500, 600))
    assert ids["test"] == list(range(200))


def test_a_batch_contains_normalised_pixels_and_the_labels_of_its_ids(idx_folder: Path) -> None:
    data = prepared(idx_folder)
    batch = next(iter(data.train_dataloader()))
    arrays = read_idx_folder(idx_folder)
    expected = (arrays["train_images"][batch["id"]] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(batch["image"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert batch["target"].tolist() == arrays["train_labels"][batch["id"]].tolist()


def test_a_validation_split_that_leaves_no_training_data_is_refused(idx_folder: Path) -> None:
    with pytest.raises(BadInput, match="must be between 1 and 599"):
        prepared(idx_folder, validation_size=600)


def test_on_another_device_the_pixels_are_moved_once_and_batches_are_made_there(
    idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared(idx_folder)
    here = [batch["id"] for batch in data.train_dataloader()]
    data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    device = torch.device("meta")  # stands for a GPU; its tensors have shapes but no data
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", device)
    train, val = data.train_dataloader(), data.val_dataloader()
    moved = data.images["train"]
    assert moved.device == device and moved.dtype == torch.uint8
    assert data.images["test"].device.type == "cpu", "unused images must not be moved"
    batches = [*train, *val, *data.test_dataloader()]
    assert all(batch[name].device == device for batch in batches for name in ("id", "image", "target"))
    assert [len(batch["id"]) for batch in batches] == [*map(len, here), 100, 200]
    assert batches[0]["image"].shape == (32, 784) and batches[0]["image"].dtype == torch.float32
    assert data.images["train"] is moved


def test_a_trainer_on_the_cpu_changes_nothing(idx_folder: Path) -> None:
    alone, trained = prepared(idx_folder), prepared(idx_folder)
    trained.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    pixels = trained.images["train"]
    for one, other in zip(alone.train_dataloader(), trained.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("id", "image", "target"))
    assert trained.images["train"] is pixels
