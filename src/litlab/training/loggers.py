"""Loggers: metrics.csv in the run directory, which every run has, and Weights & Biases."""

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

STEP = "trainer/global_step"  # W&B's x-axis; set here, because Lightning 2.7 may use another name
EMPTY_LOG = 7  # bytes: the header alone
SYNC_TIMEOUT = 60  # seconds


class MetricsCsv(Logger):
    """Appends every logged number to metrics.csv: a row per call, a column per name.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder; this one continues it. A name that was
    not logged before rewrites the file, atomically.

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
        """The run directory. If this is the first logger, it is the trainer's `log_dir`, where profilers write."""
        return str(self._file.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
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
        """Do nothing: config.yaml has the hyperparameters."""

    def size(self) -> tuple[int, int]:
        """Number of rows and columns, as `truncate` takes them."""
        return self._count, len(self._columns)

    def truncate(self, rows: int, columns: int) -> None:
        """Drop what was logged after the checkpoint from which the run continues.

        Args:
            rows: number of rows to keep.
            columns: number of columns to keep.
        """
        content = self._rows()
        if (found := max(0, len(content) - 1)) < rows:
            print(f"{self._file} has lost rows: {found} of {rows} are there", file=sys.stderr)
        kept = [row[:columns] for row in content[: rows + 1]] if columns else []
        self._replace(kept)
        self._columns, self._count = (kept[0] if kept else []), max(0, len(kept) - 1)

    def _rows(self) -> list[list[str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            return list(csv.reader(file))

    def _add_columns(self, new: list[str]) -> None:
        self._columns += new
        rows = [row + [""] * (len(self._columns) - len(row)) for row in self._rows()[1:]]
        self._replace([self._columns, *rows])

    def _replace(self, content: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(content)
        write_atomically(self._file, text.getvalue())


class Wandb(WandbLogger):
    """Weights & Biases: online if credentials are configured, offline otherwise, without prompts and without hanging.

    An offline run is complete: `wandb sync` sends it later, `wandb leet` shows it in the terminal. The id of the W&B run is
    the name of the run directory, its config is the run's config.yaml.

    Args:
        project: name of the W&B project.
        mode: online, offline or disabled; null: $WANDB_MODE, else online if credentials are configured, else offline.
        connect_timeout: seconds to wait for the W&B server before the run goes offline.
        finish_timeout: most seconds that the end of a run waits for uploads; the data stay on disk.
        save_dir: the run directory; set by the command line.
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
        """The wandb run, which starts at first use."""
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
        """Do nothing: the W&B run starts with the whole config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row, with the step as a column of it."""
        super().log_metrics(metrics if step is None else {**metrics, STEP: step})

    def _send_fragments(self) -> None:
        """Send what earlier processes of a resumed run logged offline, so that rows arrive in their order."""
        logs = self._folder.glob("wandb/offline-run-*/run-*.wandb")
        unsent = [log for log in logs if not log.with_name(f"{log.name}.synced").exists()]
        if unsent:
            print("W&B: sending what was logged offline", file=sys.stderr)
            command = [sys.executable, "-m", "wandb", "sync", *(str(log.parent) for log in sorted(unsent))]
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, timeout=SYNC_TIMEOUT)
        if any(not log.with_name(f"{log.name}.synced").exists() for log in unsent):
            command_line = f"wandb sync {self._folder}/wandb/offline-run-*"
            print(f"W&B: not all could be sent; {command_line} sends it later", file=sys.stderr)

    def _begin(self, mode: WandbMode) -> None:
        import wandb

        # of processes that were killed at once: wandb sync stops at an empty log
        for log in self._folder.glob("wandb/*run-*/run-*.wandb"):
            if log.stat().st_size <= EMPTY_LOG:
                shutil.rmtree(log.parent)
        if mode == "online":
            self._send_fragments()

        # the arguments of wandb.init
        config = yaml.safe_load((self._folder / "config.yaml").read_text())
        config["git_commit"] = json.loads((self._folder / "run.json").read_text())["git"]["commit"]
        self._wandb_init["mode"] = mode
        self._wandb_init["config"] = config
        self._wandb_init["settings"] = wandb.Settings(
            init_timeout=self._connect_timeout,
            finish_timeout=self._finish_timeout,
            disable_git=True,  # code.patch of the run directory has the uncommitted changes, without secrets
            x_transaction_log_flush_interval=2,  # seconds; a killed process loses 15 with W&B's default
            silent=mode != "online",  # the line printed above is enough; online, W&B's warnings stay
            quiet=True,  # otherwise init asks the server for the user's name first, without init_timeout
        )
        super().experiment  # noqa: B018  # Lightning's property calls wandb.init

        # the x-axis of all charts, and which value of the monitored metric is the summary
        self.experiment.define_metric(STEP)
        self.experiment.define_metric("*", step_metric=STEP, step_sync=True)
        monitor, best = config["checkpoint"]["monitor"], config["checkpoint"]["mode"]
        if monitor:
            self.experiment.define_metric(monitor, summary=best, step_metric=STEP, step_sync=True)


def choose_mode(mode: WandbMode | None) -> tuple[WandbMode, str]:
    """The mode of W&B and the reason, from this machine's settings alone: no prompt, no request.

    Args:
        mode: as configured; None to choose.
    """
    if mode:
        return mode, "as configured"
    if (named := os.environ.get("WANDB_MODE", "").lower()) in ("online", "offline", "disabled", "dryrun"):
        return ("offline" if named == "dryrun" else named), "WANDB_MODE"  # type: ignore[return-value]
    import wandb

    # silent: otherwise login asks the server for the user's name, to print it
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "credentials found"
    except wandb.errors.AuthenticationError as error:
        return "offline", str(error)
    return "offline", "no credentials; wandb login, or wandb sync later"


def finish_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one, and wait for its uploads as long as the logger allows."""
    if (wandb := sys.modules.get("wandb")) and getattr(wandb, "run", None):
        wandb.finish(exit_code=exit_code)
