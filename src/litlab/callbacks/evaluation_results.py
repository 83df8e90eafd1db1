"""What an evaluation leaves in the run directory: the scores and every prediction."""

import io
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litlab.run_directory import RunDirectory, write_atomically


class EvaluationResults(Callback):
    """Collects what validation and test steps return, over all processes, and writes it when the split is done.

    It relies on the step contract alone: a step returns a dict of `id`, `target`, and `prediction` with
    `probabilities`, or `text`; each a tensor or list whose first dimension is the batch. Validations inside a training
    are not collected.

    Args:
        run: where predictions/<split>.parquet goes.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._outputs: list[dict[str, Any]] = []
        self.count = 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keep a step's output."""
        if trainer.state.fn == "validate":
            self._keep(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keep a step's output."""
        self._keep(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        if trainer.state.fn == "validate":
            self._write(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        self._write(trainer, "test")

    def _keep(self, outputs: Any) -> None:
        if isinstance(outputs, dict):
            self._outputs.append(
                {name: value.cpu() if torch.is_tensor(value) else value for name, value in outputs.items()}
            )

    def _write(self, trainer: Trainer, split: str) -> None:
        columns = {
            name: _join([output[name] for output in self._outputs])
            for name in (self._outputs[0] if self._outputs else {})
        }
        self._outputs = []
        shares: list[Any] = [columns]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            torch.distributed.all_gather_object(shares, columns)
        table = (
            pyarrow.concat_tables(pyarrow.table(share) for share in shares if share).sort_by("id")
            if any(shares)
            else None
        )
        self.count = len(table) if table else 0
        if table and trainer.is_global_zero:
            folder = self._run.path / "predictions"
            folder.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(table, buffer)
            write_atomically(folder / f"{split}.parquet", buffer.getvalue())


def _join(parts: list[Any]) -> Any:
    """One column from the parts of all batches; rows of more than one number become lists."""
    if not torch.is_tensor(parts[0]):
        return [value for part in parts for value in part]
    column = torch.cat(parts)
    return column.numpy() if column.ndim == 1 else list(np.asarray(column))
