import csv
import json
import os
import pty
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import wandb
from exactness import deterministic
from forked import Forked
from in_process import fit
from interruption import Interrupter
from lightning.pytorch.loggers import WandbLogger
from wandb_server import WandbServer

from litlab.runs import directory
from litlab.training.loggers import MetricsCsv, Wandb, choose_mode

KEY = "0123456789" * 4
SMALL = ("-c", "configs/experiment/small.yaml")


@pytest.fixture(autouse=True)
def fresh_wandb(alone: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset W&B before and after each test. In a project, the litlab command itself must disable W&B's error reporting."""
    if "project" in request.fixturenames:
        monkeypatch.delenv("WANDB_ERROR_REPORTING")
    wandb.teardown()
    yield
    wandb.finish()  # of a test that failed before its own call
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A local W&B server that all requests of W&B go to."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """An API key in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return KEY


def run_folder(parent: Path, name: str = "run") -> Path:
    """Create a run directory with the files that the logger reads."""
    folder = parent / "experiment" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("checkpoint: {monitor: val/accuracy, mode: max}\nseed_everything: 7\n")
    (folder / "run.json").write_text('{"git": {"commit": "abc"}}')
    return folder


def set_loggers(project: Path, **options: Any) -> tuple[str, ...]:
    """Write an overlay with options of the W&B logger and return its command-line arguments."""
    content = {"trainer": {"logger": [{"class_path": "litlab.training.loggers.Wandb", "init_args": options}]}}
    (project / "configs" / "wandb.yaml").write_text(json.dumps(content))
    return "-c", "configs/wandb.yaml"


def latest(project: Path) -> Path:
    return (project / "runs" / "latest").resolve()


def inspect(run: Path) -> list[dict[str, Any]]:
    """Return all records of the W&B run in a run directory."""
    command = ["-m", "wandb", "leet", "inspect", "--json", str(run / "wandb" / "latest-run")]
    outcome = forked.run(command, timeout=60, env={**os.environ, "WANDB_MODE": "offline"})
    outcome.check_returncode()
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def accuracies(run: Path) -> list[tuple[float, float]]:
    """Return step and value of each val/accuracy in metrics.csv."""
    return [(row["step"], row["val/accuracy"]) for row in directory.rows(run) if "val/accuracy" in row]


def logged(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return step and value of each val/accuracy in W&B's history."""
    return [(row["trainer/global_step"], row["val/accuracy"]) for row in rows if "val/accuracy" in row]


def history(run: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in inspect(run) if record["type"] == "history"]


def table(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_metrics_csv_gets_a_row_per_call(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_metrics({"loss": 0.25}, step=2)
    assert table(tmp_path) == [["step", "loss"], ["1", "0.5"], ["2", "0.25"]]


def test_metrics_csv_keeps_old_rows_aligned_when_a_column_is_added(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_metrics({"accuracy": 0.9}, step=2)
    logger.log_metrics({"loss": 0.25}, step=3)
    rows = [["1", "0.5", ""], ["2", "", "0.9"], ["3", "0.25", ""]]
    assert table(tmp_path) == [["step", "loss", "accuracy"], *rows]


def test_metrics_csv_appends_to_the_file_of_an_earlier_process(tmp_path: Path) -> None:
    MetricsCsv(tmp_path).log_metrics({"loss": 0.5}, step=1)
    MetricsCsv(tmp_path).log_metrics({"loss": 0.25}, step=2)
    MetricsCsv(tmp_path).log_metrics({"test": 1.0}, step=3)
    assert table(tmp_path) == [["step", "loss", "test"], ["1", "0.5", ""], ["2", "0.25", ""], ["3", "", "1.0"]]


@pytest.mark.parametrize("odd", ["a,b", 'say "x"', "two\nlines", "\N{LINE SEPARATOR}", " space "])
def test_metrics_csv_keeps_odd_names_and_values(tmp_path: Path, odd: str) -> None:
    logger = MetricsCsv(tmp_path)
    logger.log_metrics({odd: odd}, step=1)  # type: ignore[dict-item]
    logger.log_metrics({odd: 2.0, "new": 3.0}, step=2)
    assert table(tmp_path) == [["step", odd, "new"], ["1", odd, ""], ["2", "2.0", "3.0"]]


def test_the_configured_mode_overrides_the_environment(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode("online")[0] == "online"
    assert choose_mode("disabled")[0] == "disabled"


@pytest.mark.parametrize(
    ("named", "mode"),
    [("online", "online"), ("offline", "offline"), ("dryrun", "offline"), ("DISABLED", "disabled")],
)
def test_the_mode_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, key: str, named: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", named)
    assert choose_mode(None)[0] == mode


def test_no_credentials_means_offline() -> None:
    assert choose_mode(None)[0] == "offline"


def test_a_key_in_the_environment_means_online(key: str) -> None:
    assert choose_mode(None)[0] == "online"


def test_a_key_in_netrc_means_online() -> None:
    netrc = Path.home() / ".netrc"
    netrc.write_text(f"machine api.forge.coreweave.com\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    assert choose_mode(None)[0] == "online"


def test_a_malformed_key_means_offline_and_the_reason_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short-and-secret")
    mode, reason = choose_mode(None)
    assert mode == "offline"
    assert "WANDB_API_KEY" in reason
    assert "short-and-secret" not in reason


def test_choosing_a_mode_sends_no_request(server: WandbServer, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, addresses = socket.socket.connect, []

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:  # W&B's local service process
            addresses.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    assert choose_mode(None)[0] == "online"
    wandb.teardown()  # waits for W&B's local service process
    assert addresses == []
    assert server.requests == []


def test_a_run_without_credentials_is_offline_and_complete(inside: Path, server: WandbServer) -> None:
    run = fit(*SMALL).path
    assert server.requests == []

    records = inspect(run)
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert logged(rows) == accuracies(run)
    assert len(accuracies(run)) == 2  # epochs

    beginning = next(record["run"] for record in records if record["type"] == "run")
    assert beginning["run_id"] == run.name
    config = beginning["config"]["update"]
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["seed_everything"] == 0


def test_a_run_without_credentials_does_not_prompt_on_a_terminal(project: Path, server: WandbServer) -> None:
    terminal, end = pty.openpty()
    command = ["-m", "litlab", "fit", *SMALL, "-c", "configs/debug/tiny.yaml"]
    environment = {**os.environ, "TERM": "xterm"}  # W&B does not prompt on a dumb terminal
    process = Forked(command, project, environment, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    deadline, output = time.monotonic() + 60, b""
    try:
        while select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # on Linux, the other end is closed
                break
        assert process.wait(timeout=max(1, deadline - time.monotonic())) == 0, output.decode()
    finally:
        process.kill()
        os.close(terminal)
    assert b"W&B: offline" in output


def test_a_run_with_a_key_is_uploaded_and_the_key_is_not_in_the_run_directory(
    inside: Path, server: WandbServer, key: str
) -> None:
    run = fit(*SMALL).path
    assert server.keys == {key}
    assert logged(server.rows[run.name]) == accuracies(run)
    assert server.configs[run.name]["data"]["init_args"]["batch_size"] == 32
    assert server.groups[run.name] == "small"
    assert server.exit_codes[run.name] == 0

    files = [file for file in run.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if key.encode() in file.read_bytes()] == []


def test_a_run_whose_server_is_unreachable_goes_offline(
    inside: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with WandbServer() as closed:
        monkeypatch.setenv("WANDB_BASE_URL", closed.url)
    started = time.monotonic()
    run = fit(*SMALL, *set_loggers(inside, connect_timeout=2), "-c", "configs/debug/tiny.yaml").path
    assert time.monotonic() - started < 45
    assert "W&B: offline (the server did not accept the run" in capsys.readouterr().err
    assert logged(history(run)) == accuracies(run)


def test_waiting_for_a_server_that_does_not_respond_ends_after_connect_timeout(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    server.hang()
    logger = Wandb(save_dir=str(run_folder(tmp_path)), connect_timeout=2)
    started = time.monotonic()
    logger.log_metrics({"val/accuracy": 0.5}, step=1)
    assert time.monotonic() - started < 2 + 15  # starting and ending W&B's processes takes time on a busy machine
    wandb.finish()


def test_a_key_that_the_server_rejects_means_offline(tmp_path: Path, server: WandbServer, key: str) -> None:
    server.refuses = True
    run = run_folder(tmp_path)
    Wandb(save_dir=str(run)).log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert logged(history(run)) == [(1, 0.5)]


@pytest.mark.parametrize("failure", ["die", "hang", "fail"])
def test_the_end_waits_no_longer_than_finish_timeout_for_a_server_that_fails(
    tmp_path: Path, server: WandbServer, key: str, failure: str
) -> None:
    run = run_folder(tmp_path)
    script = f"""if True:
        import sys, wandb
        from litlab.training.loggers import Wandb
        logger = Wandb(save_dir={str(run)!r}, finish_timeout=2)
        logger.log_metrics({{"val/accuracy": 0.5}}, step=1)
        print("begun", flush=True)
        sys.stdin.readline()  # until the server has failed
        logger.log_metrics({{"val/accuracy": 0.6}}, step=2)
        wandb.finish()
    """
    with Forked(["-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin and process.stdout and process.stdout.readline() == b"begun\n"
            assert run.name in server.configs
            getattr(server, failure)()
            started = time.monotonic()
            process.stdin.write(b"\n")
            process.wait(timeout=60)
            seconds = time.monotonic() - started
        finally:
            process.kill()
    assert seconds < 2 + 15
    assert process.returncode == 0
    assert logged(history(run)) == [(1, 0.5), (2, 0.6)]


def log_and_die(run: Path, values: list[float], step: int) -> None:
    """Log offline in a process that is killed when its rows are on disk."""
    script = f"""if True:
        import time
        from litlab.training.loggers import Wandb
        logger = Wandb(save_dir={str(run)!r}, mode="offline")
        for step, value in enumerate({values}, {step}):
            logger.log_metrics({{"val/accuracy": value}}, step=step)
        print("begun", flush=True)
        time.sleep(60)
    """
    with Forked(["-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        time.sleep(4)  # W&B's log is written every two seconds
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_was_killed_offline_continues_online_as_one_run_with_all_rows(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    run = run_folder(tmp_path)
    log_and_die(run, [0.1, 0.2], 1)
    empty = run / "wandb" / "offline-run-20000101_000000-run"  # of a process that was killed right after its start
    empty.mkdir()
    (empty / "run-run.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    log_and_die(run, [0.3], 3)
    assert not server.rows
    Wandb(save_dir=str(run)).log_metrics({"val/accuracy": 0.4}, step=4)
    wandb.finish()
    assert list(server.rows) == ["run"] and logged(server.rows["run"]) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert not empty.exists()


def test_offline_logs_of_one_run_can_be_uploaded_later(tmp_path: Path, server: WandbServer, key: str) -> None:
    run = run_folder(tmp_path)
    log_and_die(run, [0.1, 0.2], 1)
    Wandb(save_dir=str(run), mode="offline").log_metrics({"val/accuracy": 0.3}, step=3)
    wandb.finish()
    offline_logs = sorted(map(str, run.glob("wandb/offline-run-*")))
    assert len(offline_logs) == 2
    forked.run(["-m", "wandb", "sync", *offline_logs], timeout=60).check_returncode()
    assert list(server.rows) == ["run"] and logged(server.rows["run"]) == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize("failure", ["hang", "die", "fail"])
def test_a_server_that_fails_during_training_does_not_change_the_results(
    inside: Path, server: WandbServer, key: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, *set_loggers(inside, finish_timeout=2), "--trainer.max_epochs=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        without_wandb = fit(*options).path
    wandb.teardown()  # W&B's service process keeps the WANDB_MODE of its start

    def fail() -> None:
        assert server.configs and len(accuracies(latest(inside))) == 2
        getattr(server, failure)()

    Interrupter(monkeypatch).after_steps(40, fail)
    run = fit(*options).path
    assert run != without_wandb and deterministic(run) == deterministic(without_wandb)
    assert logged(history(run)) == accuracies(run)


def test_an_offline_run_after_an_online_one_in_the_same_process_stays_offline(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    Wandb(save_dir=str(run_folder(tmp_path, "first"))).log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert list(server.rows) == ["first"]
    server.requests.clear()
    second = run_folder(tmp_path, "second")
    Wandb(save_dir=str(second), mode="offline").log_metrics({"val/accuracy": 0.6}, step=1)
    wandb.finish()
    wandb.teardown()  # waits for the uploads
    assert server.requests == []
    assert logged(history(second)) == [(1, 0.6)]


def test_a_run_after_an_offline_run_in_the_same_process_finds_the_key(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    Wandb(save_dir=str(run_folder(tmp_path)), mode="offline").log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert choose_mode(None)[0] == "online"


def test_a_disabled_logger_writes_and_sends_nothing(tmp_path: Path, server: WandbServer, key: str) -> None:
    run = run_folder(tmp_path)
    Wandb(save_dir=str(run), mode="disabled").log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert server.requests == []
    assert not (run / "wandb").exists()


def test_the_name_of_the_step_does_not_depend_on_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def experiment(self: WandbLogger) -> Any:
        run = original(self)
        run.define_metric("*", step_metric="global_step", step_sync=True)
        return run

    original = WandbLogger.experiment.fget
    monkeypatch.setattr(WandbLogger, "experiment", property(experiment))
    run = run_folder(tmp_path)
    Wandb(save_dir=str(run)).log_metrics({"val/accuracy": 0.5}, step=3)
    wandb.finish()
    assert logged(history(run)) == [(3, 0.5)]
    assert not any("global_step" in row for row in history(run))
    metrics = [record["metric"] for record in inspect(run) if record["type"] == "metric"]
    axes = {
        metric.get("glob_name", metric.get("name")): metric.get("step_metric") for metric in metrics
    }  # the last definition applies
    assert axes["*"] == axes["val/accuracy"] == "trainer/global_step"


def test_the_summary_of_the_monitored_metric_is_its_best_value(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    logger = Wandb(save_dir=str(run))
    for step, value in enumerate((0.5, 0.9, 0.7)):
        logger.log_metrics({"val/accuracy": value}, step=step)
    wandb.finish()
    updates = [record["summary"]["update"] for record in inspect(run) if record["type"] == "summary"]
    assert [update["val/accuracy"] for update in updates if "val/accuracy" in update][-1] == {"max": 0.9}
