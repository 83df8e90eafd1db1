"""The training loss, logged without slowing the steps."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litlab.training.ranks import gather, of_rank


class TrainingLog(Callback):
    """Logs train/loss, the mean over the examples or tokens since the last log, and train/loss_epoch, over the whole epoch.

    The sum stays on the device and is read every `trainer.log_every_n_steps` optimizer steps: `self.log` in every
    training step costs more than the step of a small model, and reading the value each time makes a GPU wait. Batches
    without `size` and `weight`, from a data module that does not use `TrainingBatches`, count as one example each.
    """

    def __init__(self) -> None:
        self.loss = math.nan  # of the last log, for the progress bar
        self._sum = torch.zeros(())
        self._size = 0
        self._epoch_sum = 0.0
        self._epoch_size = 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums of all processes."""
        sums = (self.loss, self._sum, self._size, self._epoch_sum, self._epoch_size)
        checkpoint["training_log"] = gather(trainer, sums)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue the sums."""
        if sums := checkpoint.get("training_log"):
            self.loss, self._sum, self._size, self._epoch_sum, self._epoch_size = of_rank(trainer, sums)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum up where the losses are."""
        self._sum = self._sum.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin new sums."""
        self._sum = torch.zeros((), device=pl_module.device)
        self._size = 0
        self._epoch_sum = self._epoch_size = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's loss, and log at the steps that the trainer logs at."""
        accumulation = trainer.accumulate_grad_batches
        measured = isinstance(batch, dict) and {"size", "weight"} <= batch.keys()
        size, weight = (batch["size"], batch["weight"]) if measured else (1, 1.0)
        if weight and outputs and "loss" in outputs:  # a slice of weight zero repeats an example of another slice
            # Lightning divided the loss by the accumulation, the model multiplied it by the weight: both are undone
            self._sum.add_(outputs["loss"], alpha=size * accumulation / weight)
            self._size += size
        if (batch_idx + 1) % accumulation == 0 and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss_sum, size = self._collect(trainer)
            if size:
                self.loss = loss_sum / size
                self._log(trainer, "train/loss", self.loss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean over the epoch."""
        self._collect(trainer)
        if self._epoch_size:
            loss = self._epoch_sum / self._epoch_size
            self._log(trainer, "train/loss_epoch", loss)
            pl_module.log("train/loss_epoch", loss, logger=False)  # for callbacks that monitor it

    def _collect(self, trainer: Trainer) -> tuple[float, float]:
        """The sum of losses and what they are summed over, of all processes since the last call."""
        totals = torch.stack([self._sum, torch.tensor(float(self._size), device=self._sum.device)]).double()
        loss_sum, size = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        self._epoch_sum += loss_sum
        self._epoch_size += size
        self._sum.zero_()
        self._size = 0
        return loss_sum, size

    def _log(self, trainer: Trainer, name: str, value: float) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(
                {name: value, "epoch": trainer.current_epoch}, step=trainer.global_step - 1
            )  # as Lightning counts: from 0
