"""What an evaluation leaves in the run directory: the scores and every prediction."""

import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from litlab.files import open_atomically
from litlab.runs.directory import RunDirectory
from litlab.training.ranks import gather


class EvaluationResults(Callback):
    """Collects what validation and test steps return, over all processes, and writes it to predictions/<split>.parquet.

    It relies on the step contract alone: a step returns a dict of `id`, `target`, and `prediction` with
    `probabilities`, or `text`; each a tensor or list whose first dimension is the batch. Validations inside a training
    are not collected. What breaks the contract is not written, and a line says so: scores do not depend on it.
    """

    def __init__(self) -> None:
        self._outputs: list[dict[str, Any]] = []
        self._broken = False
        self.count: int | None = None  # examples of the last evaluation

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
        if isinstance(outputs, dict) and "id" in outputs and len({_length(value) for value in outputs.values()}) == 1:
            self._outputs.append({name: _to_cpu(value) for name, value in outputs.items()})
        else:
            self._broken = True

    def _write(self, trainer: Trainer, split: str) -> None:
        broken, self._broken = self._broken, False
        self.count = None
        if broken or not self._outputs:
            self._outputs = []
            print(
                "no predictions written: steps must return a dict of id, target, prediction, ... per example",
                file=sys.stderr,
            )
            return
        columns = {name: _join([output[name] for output in self._outputs]) for name in self._outputs[0]}
        self._outputs = []
        tables = [pyarrow.table(of_rank) for of_rank in gather(trainer, columns)]
        table = pyarrow.concat_tables(tables).sort_by("id")
        self.count = len(table)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "predictions"
            folder.mkdir(exist_ok=True)
            with open_atomically(folder / f"{split}.parquet") as file:
                pyarrow.parquet.write_table(table, file)


class CountTestEvaluations(Callback):
    """Counts the evaluations on the test split in run.json: before the first batch, so that none is lost, and not before model and data fit."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count this one."""
        if trainer.is_global_zero:
            run = RunDirectory(Path(trainer.default_root_dir))
            run.update_record(test_evaluations=run.record().get("test_evaluations", 0) + 1)


def _length(value: Any) -> int | None:
    """Examples in a column of a batch; None if it is not one."""
    if torch.is_tensor(value):
        return len(value) if value.ndim in (1, 2) else None
    return len(value) if isinstance(value, list) else None


def _to_cpu(value: Any) -> Any:
    """The column outside the device, in a number format that numpy has."""
    if not torch.is_tensor(value):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu()


def _join(parts: list[Any]) -> Any:
    """One column from the parts of all batches; rows of more than one number become lists."""
    if not torch.is_tensor(parts[0]):
        return [value for part in parts for value in part]
    column = torch.cat(parts)
    return column.numpy() if column.ndim == 1 else list(column.numpy())
