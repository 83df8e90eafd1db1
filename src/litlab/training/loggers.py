"""Where the numbers of a run go: always metrics.csv in the run directory, and Weights & Biases."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from litlab.files import write_atomically

WandbMode = Literal["online", "offline", "disabled"]

EMPTY_LOG = 7  # bytes: the header alone
SYNC_TIMEOUT = 60  # seconds


class MetricsCsv(Logger):
    """Appends every logged number to metrics.csv: a row per call, a column per name.

    Lightning's own CSVLogger deletes the file of an earlier run in the same folder; this one continues it. Only a name
    that was never logged before makes it write the file again, in one step.

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
        """The run directory; as the first logger's folder it is the trainer's `log_dir`, where profilers write."""
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
        """Nothing to do: config.yaml has them."""

    def length(self) -> tuple[int, int]:
        """Rows and columns, for `shorten`."""
        return self._count, len(self._columns)

    def shorten(self, rows: int, columns: int) -> None:
        """Drop what was logged after the point from which the run continues.

        Args:
            rows: how many to keep.
            columns: how many of the names were known then.
        """
        content = self._rows()
        if (there := max(0, len(content) - 1)) < rows:
            print(f"{self._file} has lost rows: {there} of {rows} are there", file=sys.stderr)
        text = io.StringIO()
        kept = content[: rows + 1] if columns else []
        csv.writer(text, lineterminator="\n").writerows(row[:columns] for row in kept)
        write_atomically(self._file, text.getvalue())
        self._columns, self._count = (content[0][:columns] if kept else []), max(0, len(kept) - 1)

    def _rows(self) -> list[list[str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="") as file:
            return list(csv.reader(file))

    def _add_columns(self, new: list[str]) -> None:
        self._columns += new
        text = io.StringIO()
        rows = [row + [""] * (len(self._columns) - len(row)) for row in self._rows()[1:]]
        csv.writer(text, lineterminator="\n").writerows([self._columns, *rows])
        write_atomically(self._file, text.getvalue())


class Wandb(WandbLogger):
    """Weights & Biases, online if credentials are there, offline otherwise; it never asks and never hangs.

    An offline run is complete: `wandb sync` sends it later, `wandb leet` shows it in the terminal. The W&B run has the
    id of the run directory, and its config is the run's config.yaml.

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
        # W&B's telemetry goes out even in offline mode, and delays the end by 20 seconds if the server does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        folder = Path(save_dir)
        super().__init__(name=folder.name, project=project, save_dir=save_dir, id=folder.name, group=folder.parent.name)
        self._wandb_init.pop("anonymous")  # always passed by Lightning 2.6.6, and deprecated by W&B
        self._folder = folder
        self._mode = mode
        self._connect_timeout = connect_timeout
        self._finish_timeout = finish_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, begun at first use."""
        if self._experiment is None:
            import wandb

            mode, reason = choose_mode(self._mode)
            try:
                self._begin(mode)
            except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
                reason = f"the server did not accept the run: {str(error).splitlines()[0][:80]}"
                mode = "offline"
                wandb.teardown()  # a second init with the same id in the same session fails
                self._begin(mode)
            print(f"W&B: {mode} ({reason})", file=sys.stderr)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run's config is complete from its beginning."""

    def _send_fragments(self) -> None:
        """Send what earlier processes of a run that is continued have logged offline, so that rows arrive in their order."""
        logs = self._folder.glob("wandb/offline-run-*/run-*.wandb")
        unsent = [log for log in logs if not log.with_name(f"{log.name}.synced").exists()]
        if unsent:
            print("W&B: sending what was logged offline", file=sys.stderr)
            command = [sys.executable, "-m", "wandb", "sync", *(str(log.parent) for log in sorted(unsent))]
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, timeout=SYNC_TIMEOUT)
        if any(not log.with_name(f"{log.name}.synced").exists() for log in unsent):
            print(
                f"W&B: not all could be sent; wandb sync {self._folder}/wandb/offline-run-* sends it later",
                file=sys.stderr,
            )

    def _begin(self, mode: WandbMode) -> None:
        import wandb

        for log in self._folder.glob("wandb/*run-*/run-*.wandb"):
            if log.stat().st_size <= EMPTY_LOG:
                shutil.rmtree(
                    log.parent
                )  # of a process that was killed at once; wandb sync sends nothing at all if it meets one
        if mode == "online":
            self._send_fragments()
        config = yaml.safe_load((self._folder / "config.yaml").read_text())
        config["git_commit"] = json.loads((self._folder / "run.json").read_text())["git"]["commit"]
        self._wandb_init["mode"] = mode
        self._wandb_init["config"] = config
        self._wandb_init["settings"] = wandb.Settings(
            init_timeout=self._connect_timeout,
            finish_timeout=self._finish_timeout,
            disable_git=True,  # code.patch of the run directory has the uncommitted changes, without secrets
            x_transaction_log_flush_interval=2,  # seconds; W&B's 15 lose that much to a kill
            silent=mode != "online",  # one line of our own says the same; online, W&B's warnings stay
            quiet=True,  # otherwise init asks for the user's name first, beyond init_timeout
        )
        super().experiment  # noqa: B018  # Lightning's property calls wandb.init with what was collected above
        monitor, best = config["checkpoint"]["monitor"], config["checkpoint"]["mode"]
        if monitor:
            self.experiment.define_metric(monitor, summary=best, step_metric="trainer/global_step", step_sync=True)


def choose_mode(mode: WandbMode | None) -> tuple[WandbMode, str]:
    """Whether W&B is online, and why, without asking anybody or anything but this machine's settings."""
    if mode:
        return mode, "as configured"
    if (named := os.environ.get("WANDB_MODE", "").lower()) in ("online", "offline", "disabled", "dryrun"):
        return ("offline" if named == "dryrun" else named), "WANDB_MODE"  # type: ignore[return-value]
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # login would ask the server for the user's name, to print it
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "credentials found"
    except wandb.errors.AuthenticationError as error:
        return "offline", str(error)
    return "offline", "no credentials; wandb login, or wandb sync later"
