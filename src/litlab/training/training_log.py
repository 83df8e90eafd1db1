"""Logs the training loss without slowing down the steps."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litlab.training.ranks import gather, of_rank


class TrainingLog(Callback):
    """Logs train/loss, the mean loss since the last log, and train/loss_epoch, the mean loss over the epoch.

    The means are over examples or tokens. The sum stays on the device and is read every `trainer.log_every_n_steps`
    optimizer steps: `self.log` at every step takes longer than a step of a small model, and reading the sum at every
    step makes the CPU wait for the GPU. A batch without `size` and `weight`, from a data module that does not use
    `TrainingBatches`, counts as one example.
    """

    def __init__(self) -> None:
        self.loss = math.nan  # last logged value, for the progress bar
        self._sum = torch.zeros(())  # since the last log, on the device
        self._size = 0  # examples or tokens in the sum
        self._epoch_sum = 0.0
        self._epoch_size = 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums of all ranks to the checkpoint."""
        sums = (self.loss, self._sum, self._size, self._epoch_sum, self._epoch_size)
        checkpoint["training_log"] = gather(trainer, sums)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the sums."""
        if sums := checkpoint.get("training_log"):
            self.loss, self._sum, self._size, self._epoch_sum, self._epoch_size = of_rank(trainer, sums)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the sum to the device of the losses."""
        self._sum = self._sum.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the sums."""
        self._sum = torch.zeros((), device=pl_module.device)
        self._size = 0
        self._epoch_sum = self._epoch_size = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of the batch, and log every `trainer.log_every_n_steps` steps."""
        accumulation = trainer.accumulate_grad_batches
        has_size = isinstance(batch, dict) and {"size", "weight"} <= batch.keys()
        size, weight = (batch["size"], batch["weight"]) if has_size else (1, 1.0)
        if weight and outputs and "loss" in outputs:  # a batch of weight 0 repeats an example of another batch
            # undo Lightning's division by accumulate_grad_batches and the model's multiplication by the weight
            self._sum.add_(outputs["loss"], alpha=size * accumulation / weight)
            self._size += size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % accumulation == 0 and trainer.global_step % every == 0:
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
        """Return the sum of losses and the number of examples or tokens since the last call, across ranks."""
        totals = torch.stack([self._sum, torch.tensor(float(self._size), device=self._sum.device)]).double()
        loss_sum, size = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        self._epoch_sum += loss_sum
        self._epoch_size += size
        self._sum.zero_()
        self._size = 0
        return loss_sum, size

    def _log(self, trainer: Trainer, name: str, value: float) -> None:
        for logger in trainer.loggers:
            # Lightning counts steps from 0
            logger.log_metrics({name: value, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
