"""A training and an evaluation from beginning to end, and what each leaves in the run directory."""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
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
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from litlab.cli.lightning_cli import LitlabCLI
from litlab.cli.settings import Request, project_root
from litlab.errors import BadInput, StoppedByGuard, first_sentence
from litlab.runs.directory import RunDirectory
from litlab.runs.provenance import machine
from litlab.runs.start import differences, load, told
from litlab.training.interrupts import Interrupts
from litlab.training.loggers import MetricsCsv

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
UNWRITABLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
# what Lightning says of settings with errors of other kinds
MISCONFIGURED = ("`val_check_interval`", "Early stopping conditioned on metric")
INHERITED = "LITLAB_START"  # tells the processes that Lightning starts where to start
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SAMPLES = 10  # texts of a model that are shown
TEXTS = ("source", "target", "text")  # what was given, what was wanted, what the model wrote


def fit(settings: list[str], request: Request, arguments: list[str]) -> None:
    """Train, then score the best checkpoint on the validation split. The test split is never touched.

    Args:
        settings: -c files and options.
        request: what to start from.
        arguments: the command line, for the record.

    Raises:
        BadInput: if settings, data, files or runs cannot be used.
        StoppedByGuard: if the numbers were no numbers any more.
    """
    with configuration_errors(), Interrupts() as interrupts:
        cli = LitlabCLI(settings, request=request)
        cli.keeper.interrupts = interrupts
        if cli.device == "cpu":
            keep_freed_memory()
        try:
            train(cli, arguments)
        finally:
            cli.run.release()


def train(cli: LitlabCLI, arguments: list[str]) -> None:
    """Train what `cli` has instantiated, in its run directory, and print how it went."""
    trainer, run, new = cli.trainer, cli.run, False
    if trainer.is_global_zero:
        cli.datamodule.prepare_data()  # data can be bad input: better now than with a directory made and processes started
        new = not run.is_locked
        open_run(cli, arguments)
    agree(cli)
    with recorded(cli, new):
        started = time.monotonic()
        if cli.start.weights:
            trainer.callbacks.append(InitialWeights(cli.start.weights))  # type: ignore[attr-defined]
        origin = cli.start.copied.get("checkpoints/last.ckpt", cli.start.checkpoint)
        with explain_lost_directory(run), explain_dead_worker(), configuration_errors(), explain_other_model(origin):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.start.checkpoint, weights_only=True)
        seconds = time.monotonic() - started
        steps = trainer.global_step
        keeper = trainer.checkpoint_callback
        best, monitor = (keeper.best_model_path, keeper.monitor) if isinstance(keeper, ModelCheckpoint) else ("", None)
        scores = evaluate(cli, "val", Path(best)) if best else {}
        if trainer.is_global_zero:
            name = monitor or "val/loss"
            run.update_record(
                steps=steps,
                training_seconds=round(seconds, 1),
                skipped_steps=cli.guard.skipped,
                best={"name": name, "score": scores.get(name)},
            )
    if trainer.is_global_zero:
        if scores:
            show(cli, "val", scores, "best")
        skipped = f", {cli.guard.skipped:,} of them skipped" if cli.guard.skipped else ""
        print(f"\ntrained {steps:,} steps{skipped} in {seconds:.1f} s")
        print(f"run   {shown(run.path)}")
        if best and is_overridden("test_step", cli.model):
            print(f"next  make eval RUN={run.experiment}/{run.id}   scores the test split, and counts that you looked")


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step: a large tensor is else given back and fetched page by page.

    Without glibc it does nothing. Sizes that vary leave gaps: the process needs more memory, by some hundred MB or more, and the C
    library longer to find room, which is why batches of texts and summaries have few shapes (data/summarization.py).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def open_run(cli: LitlabCLI, arguments: list[str]) -> None:
    """Make the run directory, or continue the one that is locked.

    Raises:
        BadInput: if the data are not those that the run began with.
    """
    run, start = cli.run, cli.start
    if not run.is_locked:
        record = {**opening_record(cli, arguments), "parent": start.parent}
        run.create(cli.config_yaml(), record, project_root(cli.files), start.copied)
        length = load(start.checkpoint)["litlab"]["metrics_csv"] if start.checkpoint else None
    else:
        record = run.record()
        run.tidy()
        refuse_other_data(cli, record)
        report_changes(cli, record)
        content = load(start.checkpoint) if start.checkpoint else None
        step = content["global_step"] if content else 0
        length = content["litlab"]["metrics_csv"] if content else (0, 0)
        resumed = [*record.get("resumed", []), {"at": now(), "step": step, "command": shell(arguments)}]
        run.update_record(status="running", ended=None, resumed=resumed)
        print(f"continuing {shown(run.path)} from step {step:,}", file=sys.stderr)
    for logger in cli.trainer.loggers:
        if isinstance(logger, MetricsCsv) and length:
            logger.shorten(*length)


def refuse_other_data(cli: LitlabCLI, record: dict[str, Any]) -> None:
    """Compare the data with those that a run began with.

    Raises:
        BadInput: if they differ, with what differs.
    """
    before, after = record.get("data_fingerprint"), getattr(cli.datamodule, "fingerprint", None)
    if before is None or before == after:
        return
    changes = differences(record.get("data") or {}, getattr(cli.datamodule, "facts", {}))
    raise BadInput(
        f"the data are not those that {cli.run.path} began with ({told(changes) or 'their fingerprint differs'}): bring them back, "
        f"or continue with these in a new run with --fork={cli.run.experiment}/{cli.run.id}."
    )


def report_changes(cli: LitlabCLI, record: dict[str, Any]) -> None:
    """Say what may keep a run from going on bit for bit: other packages, another machine."""
    here = machine()
    before = {name: record.get(name, {}) for name in here}
    if changes := differences(before, here):
        print(f"attention  since the run began: {told(changes)}; it may not go on bit for bit", file=sys.stderr)


def agree(cli: LitlabCLI) -> None:
    """Let all processes know what the first has chosen: the run, the checkpoint to continue from, the weights to begin with."""
    trainer, start = cli.trainer, cli.start
    if trainer.world_size == 1:
        return
    chosen = json.dumps([start.run.id, start.checkpoint, start.weights], default=str)
    if not trainer.is_global_zero and INHERITED in os.environ:
        chosen = os.environ[INHERITED]
    elif trainer.strategy.cluster_environment.creates_processes_externally:  # type: ignore[attr-defined]
        trainer.strategy.setup_environment()  # torchrun or Slurm has started all of them
        chosen = trainer.strategy.broadcast(chosen)
    else:
        os.environ[INHERITED] = chosen  # Lightning starts the other processes with this environment
    cli.keeper.origin["run"], *paths = json.loads(chosen)
    start.checkpoint, start.weights = (path and Path(path) for path in paths)


class InitialWeights(Callback):
    """Gives the model the weights of a checkpoint of another run.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load them; the model is where it will be trained.

        Raises:
            BadInput: if they are those of another model.
        """
        with explain_other_model(self._path):
            trainer.strategy.load_model_state_dict(load(self._path), strict=True)


class Look(Callback):
    """Counts a look at the test split: before it, so that it cannot be lost, and not before model and data fit.

    Args:
        run: where it is counted.
        looks: how many there are with this one.
    """

    def __init__(self, run: RunDirectory, looks: int) -> None:
        self._run, self._looks = run, looks

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch comes next."""
        if trainer.is_global_zero:
            self._run.update_record(test_looks=self._looks)


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
        cli = LitlabCLI(["-c", str(run.config()), *overrides], run)
        first = cli.trainer.is_global_zero
        if cli.device == "cpu":
            keep_freed_memory()
        if first:
            run.acquire()
        try:
            looks = run.record().get("test_looks", 0) + 1
            run.evaluations()  # the scores are added to them: better refused now
            step = load(checkpoint)["global_step"] - 1  # as Lightning counts: from 0
            cli.trainer.callbacks.append(Look(run, looks))  # type: ignore[attr-defined]
            scores = evaluate(cli, split, checkpoint)
            if not scores:
                raise BadInput(
                    f"{type(cli.model).__name__} logs no score of the {split} split: call self.log in its step."
                )
            if first:
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
        with explain_other_model(checkpoint):
            results = method(
                cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
            )
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
        BadInput: for a MisconfigurationException and what should be one, or a package that an option needs and that is not
            installed.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in MISCONFIGURED):
            raise
        raise BadInput(
            f"these settings do not work here: {'; '.join(' '.join(str(error).split()).rstrip('.').split('. '))}."
        ) from error
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise BadInput(f"these settings do not work here: {first_sentence(str(error))}") from error


@contextmanager
def explain_other_model(checkpoint: Path | None) -> Iterator[None]:
    """Turn what torch says of weights that do not fit into bad input.

    Raises:
        BadInput: with the names of the weights.
    """
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "Error(s) in loading state_dict" not in str(error):
            raise
        wrong, *others = (" ".join(problem.split()) for problem in str(error).split("\n\t")[1:])
        more = f" and {len(others)} more" if others else ""
        raise BadInput(
            f"{checkpoint} holds another model than the configuration describes: {wrong[:200].rstrip('. ')}{more}; use the model settings "
            "that it was trained with."
        ) from error


@contextmanager
def explain_lost_directory(run: RunDirectory) -> Iterator[None]:
    """Turn errors of writing to the run directory into one sentence.

    Raises:
        BadInput: if it has vanished, became read-only or is on a full disk.
    """
    try:
        yield
    except OSError as error:
        if not run.path.is_dir():
            raise BadInput(
                f"the run directory {run.path} has vanished while the run was alive: nothing more can be saved."
            ) from error
        if error.errno in UNWRITABLE or str(error.filename).startswith(str(run.path)):
            raise BadInput(
                f"{error.filename or run.path} cannot be written ({error.strerror}): make the disk writable and continue the run."
            ) from error
        raise


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Say what it means that a process of a dataloader has died.

    Raises:
        SystemExit: with status 75 if it has: the run can be continued.
    """
    try:
        yield
    except RuntimeError as error:
        if not (found := re.search(r"DataLoader worker \(pid.*?\) .*", str(error))):
            raise
        print(f"litlab: a process that loads data has died, often for lack of memory: {found[0]}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


def is_child(trainer: Trainer) -> bool:
    """Whether Lightning has started this process: if it leaves with an error, Lightning kills the first one at once."""
    return not trainer.is_global_zero and INHERITED in os.environ


@contextmanager
def recorded(cli: LitlabCLI, new: bool) -> Iterator[None]:
    """Keep run.json true about how a training ends: finished, failed, stopped or interrupted.

    A new run that ends before its first step, because its settings do not fit, is removed again.

    Args:
        cli: what is trained.
        new: whether the run begins with this training.

    Raises:
        SystemExit: with status 75 if the training was interrupted.
    """
    status, exit_code, useless = "failed", 1, False
    try:
        yield
        status, exit_code = "finished", 0
    except BadInput as error:
        begun_at = (cli.start.parent or {}).get("step", 0)
        useless = new and cli.trainer.global_step <= begun_at and not isinstance(error.__cause__, OSError)
        raise
    except (SystemExit, KeyboardInterrupt):  # Lightning ends with one of these on Ctrl-C and on SIGTERM
        status, exit_code = "interrupted", INTERRUPTED
        raise SystemExit(0 if is_child(cli.trainer) else INTERRUPTED) from None
    except StoppedByGuard:
        status, exit_code = "stopped", 3
        if is_child(cli.trainer):
            raise SystemExit(0) from None
        raise
    finally:
        if cli.trainer.is_global_zero:
            if status == "finished":
                finish_wandb(exit_code)  # first: a run that is killed while it waits is continued, and finished again
            with suppress(OSError):  # a full or vanished disk has been reported by what was to be written before
                cli.run.update_record(status=status, ended=now(), **data_record(cli))
            if status != "finished":
                finish_wandb(exit_code)
            if useless:
                cli.run.discard()
            cli.run.release()
            if status != "finished" and not useless:
                print(f"\nrun   {shown(cli.run.path)} ({status})", file=sys.stderr)
                print(f"next  make train RESUME={cli.run.experiment}/{cli.run.id}   continues it", file=sys.stderr)


def data_record(cli: LitlabCLI) -> dict[str, Any]:
    """What run.json says of the data: their fingerprint, what it is made of, and the names of the classes."""
    names = {"data_fingerprint": "fingerprint", "data": "facts", "class_names": "class_names"}
    return {key: getattr(cli.datamodule, name, None) for key, name in names.items()}


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
        "command": shell(arguments),
        "overrides": overrides,
        "seed": cli.config.seed_everything,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        **data_record(cli),
        **machine(),
        "wandb_id": cli.run.id,
        "test_looks": 0,
    }


def shell(arguments: list[str]) -> str:
    """The command line, as it can be typed again."""
    return shlex.join(["litlab", "fit", *arguments])


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
