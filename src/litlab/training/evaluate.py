"""Evaluates checkpoints and writes metrics and predictions to the run directory."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from litlab.errors import BadInput
from litlab.files import short_path
from litlab.runs.checkpoint import load
from litlab.runs.provenance import now
from litlab.training.build import Job, callback_of
from litlab.training.evaluation_results import EvaluationResults
from litlab.training.failures import explain_mismatched_weights
from litlab.training.loggers import finish_wandb

SAMPLES = 10  # generated texts to print
TEXTS = ("source", "target", "text")  # model input, target, generated text


def evaluate(job: Job, split: str, name: str) -> None:
    """Evaluate a checkpoint of a run on a split, log the metrics to the run and print them.

    Args:
        job: model, data, trainer and a run that is not in use.
        split: "val" or "test"; run.json counts the evaluations on the test split.
        name: "best" or "last".

    Raises:
        BadInput: if the run is in use, a file in it is missing or damaged, or the model logs no metric.
    """
    trainer, run = job.trainer, job.run
    checkpoint = run.checkpoint(name)
    is_first_rank = trainer.is_global_zero
    # 1. lock the run, and read run.json and eval.json now: if one is damaged, this raises before the evaluation
    if is_first_rank:
        run.acquire()
    try:
        run.record()
        run.evaluations()

        # 2. evaluate the checkpoint, and log the metrics at its step
        step = load(checkpoint)["global_step"] - 1  # Lightning counts from 0
        metrics = evaluate_checkpoint(job, split, checkpoint)
        if not metrics:
            step_name = {"val": "validation_step", "test": "test_step"}[split]
            raise BadInput(
                f"{type(job.model).__name__} logs no metric on the {split} split: call self.log in {step_name}."
            )
        if is_first_rank:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)
    finally:
        finish_wandb(0)
        run.release()

    # 3. print the metrics and where the predictions are
    if is_first_rank:
        print_metrics(job, split, metrics, name)
        if split == "test":
            count = run.record()["test_evaluations"]
            print(f"the test split of this run was evaluated {count} time{'s' if count > 1 else ''}")
        print(f"run   {short_path(run.path)}")
        print(f"see   {short_path(run.path)}/predictions/{split}.parquet")


def evaluate_checkpoint(job: Job, split: str, checkpoint: Path) -> dict[str, float]:
    """Evaluate a checkpoint on a split, and write eval.json and the predictions to the run directory.

    Args:
        job: model, data, trainer and run.
        split: "val" or "test".
        checkpoint: the checkpoint to load.

    Returns:
        Metrics by name.
    """
    trainer = job.trainer

    # evaluate without Lightning's logging: it would log at the step of the trainer, not of the checkpoint
    connector: Any = trainer._logger_connector
    log = connector.log_eval_end_metrics
    connector.log_eval_end_metrics = lambda metrics: None
    method = {"val": trainer.validate, "test": trainer.test}[split]
    try:
        with explain_mismatched_weights(checkpoint):
            results = method(
                job.model, datamodule=job.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
            )
    finally:
        connector.log_eval_end_metrics = log

    # write eval.json; the callback EvaluationResults has written the predictions
    metrics = {name: float(value) for result in results for name, value in result.items()}
    if trainer.is_global_zero:
        numbers = {name: None if math.isnan(value) else value for name, value in metrics.items()}  # JSON has no NaN
        count = callback_of(trainer, EvaluationResults).count
        content = {"metrics": numbers, "examples": count, "checkpoint": checkpoint.stem, "at": now()}
        job.run.write_evaluation(split, content)
    return metrics


def print_metrics(job: Job, split: str, metrics: dict[str, float], checkpoint: str) -> None:
    """Print the metrics of a split and, if the model generates text, `SAMPLES` evenly spaced texts of the split.

    Args:
        job: the trainer and the run directory with the predictions.
        split: "val" or "test".
        metrics: metrics by name.
        checkpoint: "best" or "last", for the printed text.
    """
    predictions = job.run.path / "predictions" / f"{split}.parquet"
    count = callback_of(job.trainer, EvaluationResults).count
    if count and "text" in pyarrow.parquet.read_schema(predictions).names:
        table = pyarrow.parquet.read_table(predictions)
        rows = np.linspace(0, len(table) - 1, min(SAMPLES, len(table))).round().astype(int)
        for row in table.take(rows).to_pylist():
            lines = [f"{name:<7} {' '.join(str(row[name]).split())[:240]}" for name in TEXTS if name in row]
            print("\n" + "\n".join(lines))
    width = max(map(len, metrics))
    print("\n" + "\n".join(f"{name:<{width}}  {value:.4f}" for name, value in sorted(metrics.items())))
    print(f"over {count or 'the'} examples of the {split} split, with the {checkpoint} checkpoint")
