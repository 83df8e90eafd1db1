"""Training an MLP (784-128-10) on MNIST, batch size 64: litlab against Lightning, a common template and a bare loop.

litlab runs with its progress bar and all loggers.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy

from benchmarks.race import apart, faster, race, report, seconds_of_fit, serve
from litlab.nn.optimizer import rate_at
from project.data.mnist import DEVIATION, MEAN, MNIST

BATCH, EPOCHS, ROUNDS = 64, 2, 5
LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 4e-3, 0.3, 0.05
SETTINGS = [
    "-c",
    "configs/experiment/mnist_mlp.yaml",
    f"--data.batch_size={BATCH}",
    f"--trainer.max_epochs={EPOCHS}",
    "--trainer.limit_val_batches=0",  # only training is compared
    "--checkpoint.monitor=null",
]


def network() -> nn.Sequential:
    """The network, with the same initial weights for all contenders."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def optimizer_of(module: nn.Module, steps: int) -> tuple[Any, Any]:
    """AdamW and the learning-rate schedule of the experiment."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps, 86, "linear"))


class Tensors:
    """Shuffled batches by indexing tensors in memory, the fastest way to load them.

    Yields images, (batch, 784) float32, and labels, (batch,).

    Args:
        images: all images, normalised, (examples, 784).
        labels: their classes, (examples,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        return ((self.images[rows], self.labels[rows]) for rows in order.split(BATCH))


class Digits(Dataset):
    """One image at a time, as in tutorials and templates: a PIL image, turned into a tensor and normalised."""

    def __init__(self, images: np.ndarray, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = np.array(Image.fromarray(self.images[row]), copy=True)  # as ToTensor does
        image = torch.from_numpy(pixels).view(1, 28, 28).float().div(255)
        return image.sub(MEAN).div(DEVIATION), int(self.labels[row])


class Plain(LightningModule):
    """A minimal LightningModule for the network.

    Args:
        logs: log loss and accuracy at every step, as templates do.
    """

    def __init__(self, logs: bool = False) -> None:
        super().__init__()
        self.network, self.logs = network(), logs
        self.accuracy = Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss."""
        image, target = batch
        logits = self.network(image.flatten(1))
        loss = F.cross_entropy(logits, target, label_smoothing=SMOOTHING)
        if self.logs:
            self.accuracy(logits, target)
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The same optimizer and schedule as the other contenders."""
        optimizer, scheduler = optimizer_of(self, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Record the time before the first batch."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the time after each step; the last one remains."""
        self.ended = time.perf_counter()


class Contest:
    """The contenders, which train on the same images."""

    def __init__(self) -> None:
        data = MNIST()
        data.setup()
        self.pixels = data.images["train"][: data.train_size]
        self.labels = data.labels["train"][: data.train_size]
        self.images = (self.pixels.float() / 255 - MEAN) / DEVIATION
        self.total = EPOCHS * len(self.labels)

    def litlab(self) -> float:
        """`litlab fit`."""
        with mock.patch.object(sys.stdout, "isatty", return_value=True):  # the progress bar is drawn
            return self.total / seconds_of_fit(*SETTINGS)

    def lightning(self) -> float:
        """Lightning's Trainer without progress bar, loggers and checkpoints."""
        module = Plain()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, enable_model_summary=False, **quiet)
        trainer.fit(module, Tensors(self.images, self.labels))
        return self.total / (module.ended - module.began)

    def template(self) -> float:
        """A common template: DataLoader, CSVLogger and default callbacks, for one epoch."""
        module = Plain(logs=True)
        logger = CSVLogger(tempfile.mkdtemp())
        trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, logger=logger)
        digits = Digits(self.pixels.view(-1, 28, 28).numpy(), self.labels)
        trainer.fit(module, DataLoader(digits, BATCH, shuffle=True))
        return len(self.labels) / (module.ended - module.began)

    def bare_loop(self) -> float:
        """A loop in plain PyTorch."""
        model = network()
        loader = Tensors(self.images, self.labels)
        optimizer, scheduler = optimizer_of(model, EPOCHS * len(loader))
        began = time.perf_counter()
        for _ in range(EPOCHS):
            for image, target in loader:
                loss = F.cross_entropy(model(image), target, label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
        return self.total / (time.perf_counter() - began)


def main() -> None:
    """Run the race and report images per second."""
    os.environ["LITLAB_RUNS"] = tempfile.mkdtemp()
    names = ("litlab", "lightning", "template", "bare_loop")
    medians = race({name: apart("benchmarks.mnist", name) for name in names}, ROUNDS)
    epoch = "MNIST epoch, batch 64, progress bar and all loggers on, against"
    unit = "images/s"
    report(
        [
            faster(f"{epoch} Lightning's Trainer without them", medians, "litlab", "lightning", unit, 0.9),
            faster(f"{epoch} a bare loop", medians, "litlab", "bare_loop", unit, None, 0.7),
            faster(f"{epoch} a common template", medians, "litlab", "template", unit, 3, 5),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(getattr(Contest(), sys.argv[1]))
    else:
        main()
