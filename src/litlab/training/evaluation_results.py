"""Callbacks that write the predictions of an evaluation and count the evaluations on the test split."""

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
    """Collects the outputs of the evaluation steps from all ranks and writes them to predictions/<split>.parquet.

    A step returns a dict of `id`, `target`, and either `prediction` and `probabilities`, or `text`. Each value is a
    tensor or list whose first dimension is the batch. If an output has another form, a message is
    printed and no predictions are written; the metrics stay valid. Outputs of validations during training are not
    collected.
    """

    def __init__(self) -> None:
        self._outputs: list[dict[str, Any]] = []
        self._invalid = False  # whether an output had another form
        self.count: int | None = None  # examples of the last evaluation; None if no predictions were written

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Collect the output of a step."""
        if trainer.state.fn == "validate":
            self._collect(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Collect the output of a step."""
        self._collect(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        if trainer.state.fn == "validate":
            self._write(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions."""
        self._write(trainer, "test")

    def _collect(self, outputs: Any) -> None:
        if isinstance(outputs, dict) and "id" in outputs and len({_length(value) for value in outputs.values()}) == 1:
            self._outputs.append({name: _to_cpu(value) for name, value in outputs.items()})
        else:
            self._invalid = True

    def _write(self, trainer: Trainer, split: str) -> None:
        # if there are no valid outputs, print a message
        invalid, self._invalid = self._invalid, False
        self.count = None
        if invalid or not self._outputs:
            self._outputs = []
            print(
                "no predictions written: validation and test steps must return a dict of id, target, prediction, ...",
                file=sys.stderr,
            )
            return

        # gather the columns of all ranks in one table, sorted by example id
        columns = {name: _join([output[name] for output in self._outputs]) for name in self._outputs[0]}
        self._outputs = []
        tables = [pyarrow.table(part) for part in gather(trainer, columns)]
        table = pyarrow.concat_tables(tables).sort_by("id")
        self.count = len(table)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "predictions"
            folder.mkdir(exist_ok=True)
            with open_atomically(folder / f"{split}.parquet") as file:
                pyarrow.parquet.write_table(table, file)


class CountTestEvaluations(Callback):
    """Counts the evaluations on the test split in run.json.

    The count is increased before the first batch, so that an interrupted evaluation is counted, and after the weights
    are loaded, so that an evaluation of a checkpoint that does not match the model is not counted.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Increase the count."""
        if trainer.is_global_zero:
            run = RunDirectory(Path(trainer.default_root_dir))
            run.update_record(test_evaluations=run.record().get("test_evaluations", 0) + 1)


def _length(value: Any) -> int | None:
    """Return the number of examples in a column of a batch; None if the value is not a column."""
    if torch.is_tensor(value):
        return len(value) if value.ndim in (1, 2) else None
    return len(value) if isinstance(value, list) else None


def _to_cpu(value: Any) -> Any:
    """Return a column on the CPU, in a dtype that NumPy supports."""
    if not torch.is_tensor(value):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu()


def _join(parts: list[Any]) -> Any:
    """Concatenate the parts of a column; rows with more than one number become lists."""
    if not torch.is_tensor(parts[0]):
        return [value for part in parts for value in part]
    column = torch.cat(parts)
    return column.numpy() if column.ndim == 1 else list(column.numpy())
