"""A training and an evaluation from beginning to end, and what each leaves in the run directory."""

import hashlib
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from litlab import explain
from litlab.checkpoint_io import AtomicCheckpointIO
from litlab.cli import LitlabCLI
from litlab.errors import BadInput
from litlab.layers import project_root
from litlab.provenance import machine
from litlab.run_directory import RunDirectory

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
SAMPLES = 10  # texts of a model that are shown
TEXTS = ("source", "target", "text")  # what was given, what was wanted, what the model wrote


def fit(arguments: list[str]) -> None:
    """Train, then score the best checkpoint on the validation split. The test split is never touched.

    Args:
        arguments: -c files and options.

    Raises:
        BadInput: if settings, data or files cannot be used.
    """
    with configuration_errors():
        cli = LitlabCLI(arguments)
        train(cli, arguments)


def train(cli: LitlabCLI, arguments: list[str]) -> None:
    """Train what `cli` has instantiated, in its new run directory, and print how it went."""
    trainer, run = cli.trainer, cli.run
    if trainer.is_global_zero:
        cli.datamodule.prepare_data()  # data can be bad input: better now than with a directory made and processes started
        run.create(cli.config_yaml(), opening_record(cli, arguments), project_root(cli.files))
    with recorded(cli):
        started = time.monotonic()
        trainer.fit(cli.model, datamodule=cli.datamodule)
        seconds = time.monotonic() - started
        steps = trainer.global_step
        keeper = trainer.checkpoint_callback
        best, monitor = (keeper.best_model_path, keeper.monitor) if isinstance(keeper, ModelCheckpoint) else ("", None)
        scores = evaluate(cli, "val", Path(best)) if best else {}
        if trainer.is_global_zero:
            name = monitor or "val/loss"
            run.update_record(
                steps=steps, training_seconds=round(seconds, 1), best={"name": name, "score": scores.get(name)}
            )
    if trainer.is_global_zero:
        if scores:
            show(cli, "val", scores, "best")
        print(f"\ntrained {steps:,} steps in {seconds:.1f} s")
        print(f"run   {shown(run.path)}")
        if best:
            print(f"next  make eval RUN={run.experiment}/{run.id}   scores the test split, and counts that you looked")


def score(run: RunDirectory, split: str, name: str, overrides: list[str]) -> None:
    """Score a checkpoint of a run on a split, log the scores to the run and print them.

    Args:
        run: a run that is not in use.
        split: "val" or "test"; a look at the test split is counted in run.json.
        name: "best" or "last".
        overrides: options that differ from the run's config.yaml.

    Raises:
        BadInput: if the run, its checkpoint or an option cannot be used.
    """
    checkpoint = run.checkpoint(name)
    with configuration_errors():
        cli = LitlabCLI(["-c", str(run.path / "config.yaml"), *overrides], run)
        first = cli.trainer.is_global_zero
        if first:
            run.acquire()
        try:
            looks = run.record().get("test_looks", 0) + (split == "test")
            if first:
                run.update_record(test_looks=looks)  # before looking, so that a look cannot be lost
            scores = evaluate(cli, split, checkpoint)
            if not scores:
                raise BadInput(
                    f"{type(cli.model).__name__} logs no score of the {split} split: call self.log in its step."
                )
            if first:
                step = (
                    AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"] - 1
                )  # as Lightning counts: from 0
                for logger in cli.trainer.loggers:
                    logger.log_metrics(scores, step=step)
        finally:
            finish_wandb(0)
            run.release()
    if first:
        show(cli, split, scores, name)
        if split == "test":
            print(f"the test split of this run was looked at {looks} time{'s' if looks > 1 else ''}")
        print(f"run   {shown(run.path)}")
        print(f"see   {shown(run.path)}/predictions/{split}.parquet")


def evaluate(cli: LitlabCLI, split: str, checkpoint: Path) -> dict[str, float]:
    """Load a checkpoint, score a split, and leave eval.json and the predictions in the run directory.

    Args:
        cli: model, data, trainer and run.
        split: "val" or "test".
        checkpoint: the weights to score.

    Returns:
        The scores by name.
    """
    trainer = cli.trainer
    connector: Any = trainer._logger_connector
    log = connector.log_eval_end_metrics
    connector.log_eval_end_metrics = discard  # they are of the checkpoint, not of the last step
    method = {"val": trainer.validate, "test": trainer.test}[split]
    try:
        results = method(
            cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
        )
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        differences = " ".join(str(error).split("\n\t", 1)[-1].split())
        raise BadInput(
            f"{checkpoint} holds another model than the configuration describes: {differences[:200]}."
        ) from error
    finally:
        connector.log_eval_end_metrics = log
    scores = {name: float(value) for result in results for name, value in result.items()}
    if trainer.is_global_zero:
        numbers = {name: None if math.isnan(value) else value for name, value in scores.items()}  # JSON has no NaN
        content = {"scores": numbers, "examples": cli.results.count, "checkpoint": checkpoint.stem, "at": now()}
        cli.run.write_evaluation(split, content)
    return scores


def show(cli: LitlabCLI, split: str, scores: dict[str, float], checkpoint: str) -> None:
    """Print the scores of a split and, if the model writes texts, what it wrote for examples spread evenly over the split."""
    predictions = cli.run.path / "predictions" / f"{split}.parquet"
    if cli.results.count and "text" in pyarrow.parquet.read_schema(predictions).names:
        table = pyarrow.parquet.read_table(predictions)
        rows = np.linspace(0, len(table) - 1, min(SAMPLES, len(table))).round().astype(int)
        for row in table.take(rows).to_pylist():
            lines = [f"{name:<7} {' '.join(str(row[name]).split())[:240]}" for name in TEXTS if name in row]
            print("\n" + "\n".join(lines))
    width = max(map(len, scores))
    print("\n" + "\n".join(f"{score:<{width}}  {value:.4f}" for score, value in sorted(scores.items())))
    print(f"over {cli.results.count or 'the'} examples of the {split} split, with the {checkpoint} checkpoint")


def discard(metrics: Any) -> None:
    """Take what nobody wants."""


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Turn what Lightning says of settings that do not fit together or this machine into bad input.

    Raises:
        BadInput: for a MisconfigurationException, or a package that an option needs and that is not installed.
    """
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise BadInput(f"these settings do not work here: {explain.first_sentence(str(error))}") from error


@contextmanager
def recorded(cli: LitlabCLI) -> Iterator[None]:
    """Keep run.json true about how a training ends: finished, failed or interrupted.

    Raises:
        SystemExit: with status 75 if the training was interrupted.
    """
    status, exit_code = "failed", 1
    try:
        yield
        status, exit_code = "finished", 0
    except (SystemExit, KeyboardInterrupt):  # Lightning ends with one of these on Ctrl-C and on SIGTERM
        status, exit_code = "interrupted", INTERRUPTED
        raise SystemExit(INTERRUPTED) from None
    finally:
        if cli.trainer.is_global_zero:
            fingerprint = getattr(cli.datamodule, "fingerprint", None)
            class_names = getattr(cli.datamodule, "class_names", None)  # in the order of the numbers in predictions
            with suppress(OSError):  # a full or vanished disk has been reported by what was to be written before
                cli.run.update_record(status=status, ended=now(), data_fingerprint=fingerprint, class_names=class_names)
            finish_wandb(exit_code)
            cli.run.release()
            if status != "finished":
                print(f"\nrun   {shown(cli.run.path)} ({status})", file=sys.stderr)


def finish_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one, and wait for its uploads as long as the logger allows."""
    if (wandb := sys.modules.get("wandb")) and getattr(wandb, "run", None):
        wandb.finish(exit_code=exit_code)


def opening_record(cli: LitlabCLI, arguments: list[str]) -> dict[str, Any]:
    """What run.json says from the first moment: how the run came about and on what it runs."""
    root = project_root(cli.files)
    lock = root / "constraints.txt"
    experiment = next((number for number, word in enumerate(arguments) if word in ("-c", "--config")), len(arguments))
    overrides = arguments[:experiment] + arguments[experiment + 2 :]
    return {
        "status": "running",
        "started": now(),
        "ended": None,
        "command": shlex.join(["litlab", "fit", *arguments]),
        "overrides": overrides,
        "seed": cli.config.seed_everything,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "data_fingerprint": None,
        **machine(),
        "wandb_id": cli.run.id,
        "test_looks": 0,
    }


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
