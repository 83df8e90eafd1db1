"""Where training starts: anew, in a run that exists (resume), or with the state (fork) or weights (init) of one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from litlab.errors import BadInput
from litlab.runs.checkpoint import load
from litlab.runs.config_file import file_problem
from litlab.runs.directory import RunDirectory, all_runs, find

# settings that may change when a run continues: hardware, logging, time limits and safeguards
CHANGEABLE: tuple[str, ...] = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
)
CHANGEABLE += ("trainer.enable_progress_bar", "trainer.max_time", "trainer.profiler", "last_checkpoint", "guard")
MAX_DIFFERENCES = 5  # differing settings in one message


@dataclass
class Request:
    """What the user asks to start from.

    Args:
        resume: the run to continue, as for `find`; auto: the newest unfinished run with the same settings.
        fork: the run whose state a new run continues from.
        init: the run or the checkpoint file whose weights a new run starts with.
    """

    resume: str | None = None
    fork: str | None = None
    init: str | None = None

    @property
    def source(self) -> str | None:
        """The run or file that the user named, or None."""
        return self.fork or self.init or (self.resume if self.resume != "auto" else None)


@dataclass
class Start:
    """Where training starts.

    Args:
        run: the run directory, locked if it exists.
        checkpoint: the checkpoint to continue from; None: start at step 0.
        weights: the checkpoint whose weights a new run starts with.
        parent: the run that a new run is forked or initialized from, for run.json.
        copied: files of another run that a new run copies, by their names in the new run.
    """

    run: RunDirectory
    checkpoint: Path | None = None
    weights: Path | None = None
    parent: dict[str, Any] | None = None
    copied: dict[str, Path] = field(default_factory=dict)


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two configurations: dotted name -> both values."""
    one, two = dict(_flat(before)), dict(_flat(after))
    return {
        name: (one.get(name), two.get(name))
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    }


def describe_differences(changes: dict[str, tuple[Any, Any]]) -> str:
    """Return differences as text: `model.hidden 128 -> 64`."""
    first = [f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in list(changes.items())[:MAX_DIFFERENCES]]
    others = len(changes) - len(first)
    return ", ".join(first) + (f" and {others} more" if others else "")


def choose_start(request: Request, config: str, planned: RunDirectory) -> Start:
    """Decide where training starts, and lock the run if it exists already.

    Args:
        request: what the user asks to start from.
        config: the whole configuration, as YAML, redacted.
        planned: the directory for a new run.

    Raises:
        BadInput: if the run does not exist, is in use or finished, or its checkpoint or configuration does not match.
    """
    runs, settings = planned.path.parent.parent, yaml.safe_load(config)
    # a new run
    start = Start(planned)
    if request.resume == "auto" and request.source:
        _refuse_moving(request.source, runs)
    if request.fork:
        start = _forked(find(runs, request.fork), settings, planned)
    if request.init:
        start = _initialised(request.init, runs, planned)
    # an existing run; with auto, only one with the same settings and parent
    if request.resume == "auto":
        for path in reversed(all_runs(runs, planned.experiment)):
            if run := _adopted(path, settings, start.parent):
                with _released_if_refused(run):
                    return _continued(run, settings)
    elif request.resume:
        run = find(runs, request.resume)
        run.acquire()
        with _released_if_refused(run):
            if run.record().get("status") == "finished":
                raise BadInput(f"{run.path} is finished; --fork={request.resume} continues it in a new run.")
            _refuse_changes(_settings(run), settings, f"{run.path} was started", request.resume)
            return _continued(run, settings)
    return start


def newest_checkpoint(run: RunDirectory) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest undamaged checkpoint of a run, and its content; None if there is none.

    Raises:
        BadInput: if that checkpoint has no optimizer states.
    """
    files = list((run.path / "checkpoints").glob("*.ckpt"))
    for path in sorted(files, key=lambda path: (path.stem != "last", -path.stat().st_mtime)):
        try:
            content = load(path)
        except BadInput as error:
            print(f"{error} Trying an older one.", file=sys.stderr)
            continue
        if "litlab" in content:
            if "optimizer_states" not in content:
                raise BadInput(
                    f"{path} has no optimizer states, so a run cannot continue from it; --init={path} starts a new run with its weights."
                )
            if path.stem != "last":
                print(f"continuing from {path}, step {content['global_step']:,}", file=sys.stderr)
            return path, content
    if files:
        print(f"no checkpoint in {run.path} is usable", file=sys.stderr)
    return None


def _continued(run: RunDirectory, settings: dict[str, Any]) -> Start:
    """Return the start of a locked run that continues."""
    parent = run.record().get("parent")
    if found := newest_checkpoint(run):
        path, content = found
        origin = content["litlab"]
        if origin["run"] not in (run.id, (parent or {}).get("run")):
            _refuse_changes(
                origin["config"],
                settings,
                f"{path} belongs to the run {origin['run']}, which was started",
                origin["run"],
            )
        return Start(run, checkpoint=path, parent=parent)
    weights = Path(parent["checkpoint"]) if parent and parent["how"] == "init" else None
    return Start(run, weights=weights, parent=parent)


def _refuse_moving(reference: str, runs: Path) -> None:
    """Refuse latest or an experiment with --resume=auto: when the command is repeated, it would name the new run."""
    if not reference.endswith(".ckpt") and (run := find(runs, reference)).id != Path(reference).name:
        raise BadInput(
            f"{reference} names a newer run when a command with --resume=auto is repeated: use the run id {run.id}."
        )


def _forked(parent: RunDirectory, settings: dict[str, Any], planned: RunDirectory) -> Start:
    """Return the start of a new run with the state of another run."""
    found = newest_checkpoint(parent)
    if found is None:
        raise BadInput(f"{parent.path} has no checkpoint that a run can continue from: choose another run.")
    if changes := differences(_settings(parent), settings):
        print(f"changed    {describe_differences(changes)}", file=sys.stderr)
    copied = {f"checkpoints/{file.name}": file for file in (parent.path / "checkpoints").glob("*.ckpt")}
    copied["checkpoints/last.ckpt"] = found[0]
    if (rows := parent.path / "metrics.csv").exists():
        copied["metrics.csv"] = rows
    origin = {"how": "fork", "run": found[1]["litlab"]["run"], "step": found[1]["global_step"]}
    return Start(planned, checkpoint=planned.path / "checkpoints/last.ckpt", parent=origin, copied=copied)


def _initialised(reference: str, runs: Path, planned: RunDirectory) -> Start:
    """Return the start of a new run with the weights of another run or of a checkpoint file."""
    path = Path(reference)
    if path.suffix != ".ckpt":
        run = find(runs, reference)
        path = run.path / "checkpoints/best.ckpt"
        path = path if path.exists() else run.checkpoint("last")
    content = load(path.resolve())
    origin = {"how": "init", "run": content.get("litlab", {}).get("run"), "checkpoint": str(path.resolve())}
    return Start(planned, weights=path.resolve(), parent=origin)


def _adopted(path: Path, settings: dict[str, Any], parent: dict[str, Any] | None) -> RunDirectory | None:
    """Lock and return a run if it is unfinished, not in use, and has these settings and this parent; otherwise None."""
    run = RunDirectory(path)
    try:
        if (
            run.record().get("status") == "finished"
            or _origin(run.record().get("parent")) != _origin(parent)
            or _settings(run) != settings
        ):
            return None
        run.acquire()
    except BadInput:
        return None
    if run.record().get("status") == "finished":  # another process has finished it meanwhile
        run.release()
        return None
    return run


def _origin(parent: dict[str, Any] | None) -> tuple[Any, ...]:
    """Return the values that identify a parent, without its step."""
    return tuple((parent or {}).get(name) for name in ("how", "run", "checkpoint"))


@contextmanager
def _released_if_refused(run: RunDirectory) -> Iterator[None]:
    try:
        yield
    except BadInput:
        run.release()
        raise


def _settings(run: RunDirectory) -> dict[str, Any]:
    file = run.config()
    if problem := file_problem(file):
        raise BadInput(problem)
    return yaml.safe_load(file.read_text())


def _refuse_changes(before: dict[str, Any], after: dict[str, Any], what: str, reference: str) -> None:
    changes = differences(before, after)
    if wrong := {name: values for name, values in changes.items() if not name.startswith(CHANGEABLE)}:
        raise BadInput(
            f"{what} with other settings: {describe_differences(wrong)}; use those, or continue in a new run with --fork={reference}."
        )
    if changes:
        print(f"changed    {describe_differences(changes)}", file=sys.stderr)


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its dotted name."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for name, value in items:
        if isinstance(value, dict | list) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}".replace("init_args.", ""), value


def _short(value: Any) -> str:
    return "null" if value is None else f"{value!s:.40}"
