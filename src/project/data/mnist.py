"""MNIST: 70,000 images of handwritten digits, held in memory (LeCun, Cortes, Burges: The MNIST database)."""

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt

from litlab.data.batches import Batch, EvaluationBatches, TrainingBatches, shuffled
from litlab.errors import BadInput
from project.data import mnist_files

MEAN, DEVIATION = 0.1307, 0.3081  # of the training pixels, scaled from 0 to 1


class MNIST(LightningDataModule):
    """MNIST digits as flattened images of 28 x 28 grey pixels.

    The last examples of the official training file are the validation split, the others are the training split; the
    test split is the official test file. The id of an example is its row in the official file.

    Batches contain `id` (batch,), `image` (batch, 784) float32, normalized, and `target` (batch,) int64. All images
    stay on the trainer's device (55 MB), where the batches are created.

    Args:
        source: "catalog" (a pinned Python package), "hub" (the Hugging Face Hub), or a folder with the four official
            IDX files, gzipped or not.
        batch_size: examples per optimizer step, summed over devices and accumulated micro-batches.
        evaluation_batch_size: examples per device and step in validation and test; it affects speed, not results.
        validation_size: examples held out from the end of the training file.
        seed: seed of the order of training examples; set from seed_everything.
    """

    num_classes = 10

    def __init__(
        self,
        source: str = "catalog",
        batch_size: PositiveInt = 128,
        evaluation_batch_size: PositiveInt = 1000,
        validation_size: PositiveInt = 5000,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.validation_size = validation_size
        self.seed = seed
        self.fingerprint: str | None = None
        self.images: dict[str, torch.Tensor] = {}
        self.labels: dict[str, torch.Tensor] = {}

    def prepare_data(self) -> None:
        """Download MNIST if it is not cached, and verify it; runs in one process per node."""
        arrays = mnist_files.read(self.source)
        self.fingerprint = mnist_files.fingerprint_of(arrays)
        self.facts = {name: mnist_files.fingerprint_of({name: array}) for name, array in arrays.items()}

    def setup(self, stage: str | None = None) -> None:
        """Read the arrays into memory.

        Raises:
            BadInput: if a file is missing or damaged, or if the validation split leaves no training examples.
        """
        if self.images:
            return
        arrays = mnist_files.read(self.source)
        for name in ("train", "test"):
            self.images[name] = torch.from_numpy(arrays[f"{name}_images"])  # (examples, 784) uint8
            self.labels[name] = torch.from_numpy(arrays[f"{name}_labels"]).long()  # (examples,)
        available = len(self.labels["train"])
        self.train_size = available - self.validation_size
        if self.train_size < 1:
            raise BadInput(
                f"data.validation_size is {self.validation_size}: it must be between 1 and {available - 1}, because "
                f"the training file of {self.source!r} has {available} examples."
            )

    def train_dataloader(self) -> TrainingBatches:
        """Return shuffled training batches."""
        self._move("train")
        return TrainingBatches.for_trainer(
            self.trainer, self._train_batch, shuffled(self.train_size, self.batch_size, self.seed)
        )

    def val_dataloader(self) -> EvaluationBatches:
        """Return the batches of the validation split."""
        self._move("train")
        order = np.arange(self.train_size, self.train_size + self.validation_size)
        return EvaluationBatches.for_trainer(self.trainer, self._train_batch, order, self.evaluation_batch_size)

    def test_dataloader(self) -> EvaluationBatches:
        """Return the batches of the test split."""
        self._move("test")
        order = np.arange(len(self.labels["test"]))
        return EvaluationBatches.for_trainer(self.trainer, self._test_batch, order, self.evaluation_batch_size)

    def _move(self, file: str) -> None:
        """Move the images to the trainer's device, so that a step transfers only the indices of its examples."""
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.images[file], self.labels[file] = self.images[file].to(device), self.labels[file].to(device)

    def _train_batch(self, indices: np.ndarray) -> Batch:
        return self._batch("train", indices)

    def _test_batch(self, indices: np.ndarray) -> Batch:
        return self._batch("test", indices)

    def _batch(self, file: str, indices: np.ndarray) -> Batch:
        ids = torch.from_numpy(indices).to(self.images[file].device)
        pixels, labels = (values.index_select(0, ids) for values in (self.images[file], self.labels[file]))
        image = torch.sub(pixels, MEAN * 255).mul_(1 / (DEVIATION * 255))
        return {"id": ids, "image": image, "target": labels}
