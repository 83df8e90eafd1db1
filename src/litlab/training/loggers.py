"""Loggers for metrics.csv, which every run directory contains, and for Weights & Biases."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from litlab.files import write_atomically

WandbMode = Literal["online", "offline", "disabled"]

STEP = "trainer/global_step"  # name of W&B's x-axis; set here because Lightning 2.7 may change its own
EMPTY_LOG = 7  # size of a log file with only a header, in bytes
SYNC_TIMEOUT = 60  # seconds to upload earlier offline logs


class MetricsCsv(Logger):
    """Appends logged metrics to metrics.csv: one row per call, one column per name.

    If the file exists, Lightning's CSVLogger deletes it, and this logger appends to it. For a new name, it rewrites the
    file atomically with one more column.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: Path) -> None:
        super().__init__()
        self._file = save_dir / "metrics.csv"
        self._columns: list[str] = []
        self._count = 0  # rows

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self._file.parent.parent.name

    @property
    def version(self) -> str:
        """The run id."""
        return self._file.parent.name

    @property
    def save_dir(self) -> str:
        """The run directory. If this is the first logger, it is also `trainer.log_dir`, where profilers write."""
        return str(self._file.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: values by name.
            step: training step, counted from 0.
        """
        row = {"step": step, **metrics}
        if not self._columns:
            header, *rows = self._rows() or [[]]
            self._columns, self._count = header, len(rows)
        if new := [name for name in row if name not in self._columns]:
            self._add_columns(new)
        with self._file.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        self._count += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml contains the hyperparameters."""

    def size(self) -> tuple[int, int]:
        """Return the numbers of rows and columns, which are the arguments of `truncate`."""
        return self._count, len(self._columns)

    def truncate(self, rows: int, columns: int) -> None:
        """Remove the rows and columns that were logged after the checkpoint from which the run continues.

        Args:
            rows: number of rows to keep.
            columns: number of columns to keep.
        """
        content = self._rows()
        if (found := max(0, len(content) - 1)) < rows:
            print(
                f"{self._file} has only {found} of the {rows} rows logged before the checkpoint; the others are lost",
                file=sys.stderr,
            )
        kept = [row[:columns] for row in content[: rows + 1]] if columns else []
        self._replace(kept)
        self._columns, self._count = (kept[0] if kept else []), max(0, len(kept) - 1)

    def _rows(self) -> list[list[str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            return list(csv.reader(file))

    def _add_columns(self, new: list[str]) -> None:
        """Rewrite the file with more columns, which are empty in the existing rows."""
        self._columns += new
        rows = [row + [""] * (len(self._columns) - len(row)) for row in self._rows()[1:]]
        self._replace([self._columns, *rows])

    def _replace(self, content: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(content)
        write_atomically(self._file, text.getvalue())


class Wandb(WandbLogger):
    """A Weights & Biases logger that never prompts: online if credentials are configured, otherwise offline.

    An offline run is complete: `wandb sync` uploads it later, and `wandb leet` shows it in the terminal. The W&B run id
    is the name of the run directory, and the W&B config is the content of config.yaml.

    Args:
        project: name of the W&B project.
        mode: online, offline or disabled; null: $WANDB_MODE, else online if credentials are configured, else offline.
        connect_timeout: seconds to wait for the W&B server before the run goes offline.
        finish_timeout: maximum seconds to wait for uploads at the end of a run. All data stay on disk.
        save_dir: the run directory. The command line sets it.
    """

    def __init__(
        self,
        project: str = "litlab",
        mode: WandbMode | None = None,
        connect_timeout: float = 20,
        finish_timeout: float = 15,
        save_dir: str = ".",
    ) -> None:
        folder = Path(save_dir)
        super().__init__(name=folder.name, project=project, save_dir=save_dir, id=folder.name, group=folder.parent.name)
        self._wandb_init.pop("anonymous", None)  # always passed by Lightning 2.6.6, deprecated by W&B
        self._folder = folder
        self._mode = mode
        self._connect_timeout = connect_timeout
        self._finish_timeout = finish_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run. It starts at the first use of this property."""
        if self._experiment is None:
            import wandb

            mode, reason = choose_mode(self._mode)
            try:
                self._begin(mode)
            except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
                reason = f"the server did not accept the run: {str(error).splitlines()[0][:80]}"
                mode = "offline"
                wandb.teardown()  # otherwise a second init with the same id fails
                self._begin(mode)
            print(f"W&B: {mode} ({reason})", file=sys.stderr)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the W&B run starts with the full configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row to W&B, with the step as the column `STEP`."""
        super().log_metrics(metrics if step is None else {**metrics, STEP: step})

    def _sync_offline_logs(self) -> None:
        """Upload the logs of earlier offline processes of this run, so that W&B gets the rows in order."""
        logs = self._folder.glob("wandb/offline-run-*/run-*.wandb")
        pending = [log for log in logs if not log.with_name(f"{log.name}.synced").exists()]
        if pending:
            print("W&B: uploading offline logs", file=sys.stderr)
            command = [sys.executable, "-m", "wandb", "sync", *(str(log.parent) for log in sorted(pending))]
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, timeout=SYNC_TIMEOUT)
        if any(not log.with_name(f"{log.name}.synced").exists() for log in pending):
            command_line = f"wandb sync {self._folder}/wandb/offline-run-*"
            print(f"W&B: some offline logs are not uploaded; upload them with {command_line}", file=sys.stderr)

    def _begin(self, mode: WandbMode) -> None:
        """Start the W&B run."""
        import wandb

        # 1. remove the empty logs of killed processes, because wandb sync stops at them; upload earlier offline logs
        for log in self._folder.glob("wandb/*run-*/run-*.wandb"):
            if log.stat().st_size <= EMPTY_LOG:
                shutil.rmtree(log.parent)
        if mode == "online":
            self._sync_offline_logs()

        # 2. start the W&B run
        config = yaml.safe_load((self._folder / "config.yaml").read_text())
        config["git_commit"] = json.loads((self._folder / "run.json").read_text())["git"]["commit"]
        self._wandb_init["mode"] = mode
        self._wandb_init["config"] = config
        self._wandb_init["settings"] = wandb.Settings(
            init_timeout=self._connect_timeout,
            finish_timeout=self._finish_timeout,
            disable_git=True,  # the run directory has the uncommitted changes in code.patch, without secrets
            x_transaction_log_flush_interval=2,  # seconds lost if the process is killed; W&B's default is 15
            silent=mode != "online",  # if offline, the line printed by `experiment` is enough
            quiet=True,  # otherwise init first requests the user's name from the server, without init_timeout
        )
        super().experiment  # noqa: B018  # Lightning's property calls wandb.init

        # 3. set the x-axis of all charts, and the best value of the monitored metric as its summary
        self.experiment.define_metric(STEP)
        self.experiment.define_metric("*", step_metric=STEP, step_sync=True)
        monitor, best = config["checkpoint"]["monitor"], config["checkpoint"]["mode"]
        if monitor:
            self.experiment.define_metric(monitor, summary=best, step_metric=STEP, step_sync=True)


def choose_mode(mode: WandbMode | None) -> tuple[WandbMode, str]:
    """Return the W&B mode and the reason. It reads local settings only: no prompt, no request to the server.

    Args:
        mode: the configured mode; None to choose one.
    """
    if mode:
        return mode, "as configured"
    if (named := os.environ.get("WANDB_MODE", "").lower()) in ("online", "offline", "disabled", "dryrun"):
        return ("offline" if named == "dryrun" else named), "WANDB_MODE"  # type: ignore[return-value]
    import wandb

    # silent: otherwise login requests the user's name from the server to print it
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "credentials found"
    except wandb.errors.AuthenticationError as error:
        return "offline", str(error)
    return "offline", "no credentials; log in with wandb login, or upload later with wandb sync"


def finish_wandb(exit_code: int) -> None:
    """End the W&B run, if one was started, and wait for its uploads for at most the logger's `finish_timeout`.

    Args:
        exit_code: exit status for W&B; 0 if the run succeeded.
    """
    if (wandb := sys.modules.get("wandb")) and getattr(wandb, "run", None):
        wandb.finish(exit_code=exit_code)
