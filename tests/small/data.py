"""Two data modules that follow litlab's contracts: examples of ten classes, and the same examples with class names."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt

from litlab.data.batches import Batch, EvaluationBatches, TrainingBatches, shuffled
from litlab.errors import BadInput

CLASSES, FEATURES, TRAINING, TEST = 10, 64, 600, 200
NAMES = {
    "english": "zero one two three four five six seven eight nine",
    "german": "null eins zwei drei vier fünf sechs sieben acht neun",
}


def write_examples(folder: Path) -> None:
    """Write the four arrays that `SmallData` reads; an example is the prototype of its class plus noise.

    Args:
        folder: a new folder for features (examples, 64) and labels (examples,) of train and test, all uint8.
    """
    random = np.random.default_rng(0)
    prototypes = random.uniform(50, 200, (CLASSES, FEATURES))
    folder.mkdir(parents=True)
    for split, size in (("train", TRAINING), ("test", TEST)):
        labels = random.permutation(np.arange(size) % CLASSES).astype(np.uint8)
        features = prototypes[labels] + random.normal(0, 60, (size, FEATURES))
        np.save(folder / f"{split}_features.npy", features.clip(0, 255).astype(np.uint8))
        np.save(folder / f"{split}_labels.npy", labels)


def write_language(folder: Path, name: str) -> None:
    """Write a pretrained model for `SmallSpeller`: the class names and the weights of a layer.

    Args:
        folder: a new folder for names.txt, one name per line, and weights.npy (classes, features) float32.
        name: english or german.
    """
    folder.mkdir(parents=True)
    (folder / "names.txt").write_text("\n".join(NAMES[name].split()) + "\n")
    np.save(folder / "weights.npy", np.random.default_rng(1).normal(0, 0.1, (CLASSES, FEATURES)).astype(np.float32))


def read_array(file: Path) -> np.ndarray:
    """The array in a file.

    Raises:
        BadInput: if the file is missing or damaged.
    """
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadInput(f"{file} is missing: data.source must name a folder with all four arrays.") from error
    except (ValueError, EOFError, OSError) as error:
        raise BadInput(f"{file} cannot be read: write it again.") from error


def read_names(folder: str) -> list[str]:
    """The class names in a folder that `write_language` wrote.

    Raises:
        BadInput: if there is no such folder.
    """
    file = Path(folder) / "names.txt"
    if not file.is_file():
        raise BadInput(f"there is no language {folder!r}: model.pretrained takes a folder with names.txt.")
    return file.read_text().split()


class SmallData(LightningDataModule):
    """Examples with 64 features and ten classes, in memory.

    The validation split is the end of the training file. Batches contain `id` (batch,), `features` (batch, 64) float32
    and `target` (batch,) int64.

    Args:
        source: a folder that `write_examples` wrote.
        batch_size: examples per optimizer step, over all devices and accumulated micro-batches.
        evaluation_batch_size: examples per device and step in validation and test.
        validation_size: examples held out from the end of the training file.
        seed: seed of the order of the training examples; set from seed_everything.
    """

    num_classes = CLASSES

    def __init__(
        self,
        source: str = "examples",
        batch_size: PositiveInt = 32,
        evaluation_batch_size: PositiveInt = 64,
        validation_size: PositiveInt = 100,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source, self.validation_size, self.seed = source, validation_size, seed
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.facts: dict[str, str] = {}

    @property
    def fingerprint(self) -> str | None:
        """A hash of all files; None before `prepare_data`."""
        return hashlib.sha256("".join(self.facts.values()).encode()).hexdigest() if self.facts else None

    def prepare_data(self) -> None:
        """Read the files once to check them, and compute their hashes.

        Raises:
            BadInput: if a file is missing or damaged.
        """
        names = [f"{split}_{part}" for split in ("train", "test") for part in ("features", "labels")]
        self.facts = {name: hashlib.sha256(self._read(name).tobytes()).hexdigest() for name in names}

    def setup(self, stage: str | None = None) -> None:
        """Read the files into memory.

        Raises:
            BadInput: if no examples remain for training.
        """
        self.features = {split: torch.from_numpy(self._read(f"{split}_features")) for split in ("train", "test")}
        self.labels = {split: torch.from_numpy(self._read(f"{split}_labels")).long() for split in ("train", "test")}
        available = len(self.labels["train"])
        self.train_size = available - self.validation_size
        if self.train_size < 1:
            raise BadInput(f"data.validation_size is {self.validation_size}: it must be between 1 and {available - 1}.")

    def train_dataloader(self) -> TrainingBatches:
        """Shuffled training batches."""
        plan = shuffled(self.train_size, self.batch_size, self.seed)
        return TrainingBatches.for_trainer(self.trainer, self.training_batch, plan)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation split."""
        return self._evaluation("train", np.arange(self.train_size, self.train_size + self.validation_size))

    def test_dataloader(self) -> EvaluationBatches:
        """The test split."""
        return self._evaluation("test", np.arange(len(self.labels["test"])))

    def training_batch(self, indices: np.ndarray) -> Batch:
        """The training examples with these indices, (batch,)."""
        return self._batch("train", indices)

    def evaluation_batch(self, split: str, indices: np.ndarray) -> Batch:
        """The examples of a file, train or test, with these indices, (batch,)."""
        return self._batch(split, indices)

    def _evaluation(self, split: str, order: np.ndarray) -> EvaluationBatches:
        def fetch(indices: np.ndarray) -> Batch:
            return self.evaluation_batch(split, indices)

        return EvaluationBatches.for_trainer(self.trainer, fetch, order, self.evaluation_batch_size)

    def _batch(self, split: str, indices: np.ndarray) -> Batch:
        ids = torch.from_numpy(indices)
        features = (self.features[split][ids].float() - 128) / 64
        return {"id": ids, "features": features, "target": self.labels[split][ids]}

    def _read(self, name: str) -> np.ndarray:
        return read_array(Path(self.source) / f"{name}.npy")


class SmallNames(SmallData):
    """The same examples with class names. Evaluation batches also contain `source`, a text for each example.

    Args:
        source: a folder that `write_examples` wrote.
        tokenizer: a folder that `write_language` wrote; set from model.pretrained.
        batch_size: examples per optimizer step, over all devices and accumulated micro-batches.
        seed: seed of the order of the training examples; set from seed_everything.
    """

    def __init__(
        self,
        source: str = "examples",
        tokenizer: str = "english",
        batch_size: PositiveInt = 32,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(source, batch_size, seed=seed)
        self.tokenizer = tokenizer
        self.class_names: list[str] = []

    def prepare_data(self) -> None:
        """Read the class names too.

        Raises:
            BadInput: if the file of the names is missing.
        """
        super().prepare_data()
        self.class_names = read_names(self.tokenizer)
        self.facts["names"] = " ".join(self.class_names)

    def state_dict(self) -> dict[str, Any]:
        """The class names; an evaluation must use the same ones."""
        return {"class_names": self.class_names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the class names are those of the checkpoint.

        Raises:
            BadInput: if they differ.
        """
        if state_dict["class_names"] != self.class_names:
            before, now = (", ".join(names) for names in (state_dict["class_names"], self.class_names))
            raise BadInput(f"the checkpoint has the classes {before}, model.pretrained={self.tokenizer} has {now}.")

    def evaluation_batch(self, split: str, indices: np.ndarray) -> Batch:
        """A batch with a text for each example."""
        return {**super().evaluation_batch(split, indices), "source": [f"example {index}" for index in indices]}
