import csv
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from exactness import deterministic
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
    """W&B without the state of another test; where the command runs, that has to switch W&B's telemetry off."""
    if "project" in request.fixturenames:
        monkeypatch.delenv("WANDB_ERROR_REPORTING")
    wandb.teardown()
    yield
    wandb.finish()  # of a test that failed before it could
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that all of W&B talks to, if it talks to any."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """An API key in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return KEY


def run_folder(parent: Path, name: str = "run") -> Path:
    """What a logger needs of a run directory."""
    folder = parent / "experiment" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("checkpoint: {monitor: val/accuracy, mode: max}\nseed_everything: 7\n")
    (folder / "run.json").write_text('{"git": {"commit": "abc"}}')
    return folder


def set_loggers(project: Path, **options: Any) -> tuple[str, ...]:
    """The arguments for an overlay with these options of the W&B logger."""
    content = {"trainer": {"logger": [{"class_path": "litlab.training.loggers.Wandb", "init_args": options}]}}
    (project / "configs" / "wandb.yaml").write_text(json.dumps(content))
    return "-c", "configs/wandb.yaml"


def latest(project: Path) -> Path:
    return (project / "runs" / "latest").resolve()


def inspect(run: Path) -> list[dict[str, Any]]:
    """All records of the W&B run in a run directory."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run / "wandb" / "latest-run")]
    outcome = subprocess.run(command, env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, check=True)
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def accuracies(run: Path) -> list[tuple[float, float]]:
    """Step and value of val/accuracy in metrics.csv."""
    return [(row["step"], row["val/accuracy"]) for row in directory.rows(run) if "val/accuracy" in row]


def logged(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The same in W&B's history."""
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


def test_metrics_csv_of_an_earlier_process_is_continued(tmp_path: Path) -> None:
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


def test_an_explicit_mode_wins(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode("online")[0] == "online"
    assert choose_mode("disabled")[0] == "disabled"


@pytest.mark.parametrize(
    ("named", "mode"),
    [("online", "online"), ("offline", "offline"), ("dryrun", "offline"), ("DISABLED", "disabled")],
)
def test_the_mode_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, key: str, named: str, mode: str) -> None:
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


def test_a_malformed_key_means_offline_and_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short-and-secret")
    mode, reason = choose_mode(None)
    assert mode == "offline"
    assert "WANDB_API_KEY" in reason
    assert "short-and-secret" not in reason


def test_choosing_a_mode_sends_no_request(server: WandbServer, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, addresses = socket.socket.connect, []

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:  # W&B's own process, on this machine
            addresses.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    assert choose_mode(None)[0] == "online"
    wandb.teardown()  # waits for W&B's own process
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


def test_a_run_without_credentials_asks_nothing_on_a_terminal(project: Path, server: WandbServer) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "litlab", "fit", *SMALL, "-c", "configs/debug/tiny.yaml"]
    environment = {**os.environ, "TERM": "xterm"}  # W&B asks no questions on a dumb terminal
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    os.close(end)
    deadline, output = time.monotonic() + 60, b""
    try:
        while select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                output += os.read(terminal, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
        assert process.wait(timeout=max(1, deadline - time.monotonic())) == 0, output.decode()
    finally:
        process.kill()
        os.close(terminal)
    assert b"W&B: offline" in output


def test_a_run_with_a_key_arrives_at_the_server_and_the_key_stays_out_of_the_run_directory(
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


def test_waiting_for_a_silent_server_ends_after_connect_timeout(tmp_path: Path, server: WandbServer, key: str) -> None:
    server.hang()
    logger = Wandb(save_dir=str(run_folder(tmp_path)), connect_timeout=2)
    started = time.monotonic()
    logger.log_metrics({"val/accuracy": 0.5}, step=1)
    assert time.monotonic() - started < 2 + 15  # W&B's own processes start and end on a busy machine
    wandb.finish()


def test_a_key_that_the_server_refuses_means_offline(tmp_path: Path, server: WandbServer, key: str) -> None:
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
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"begun\n"
            assert run.name in server.configs
            getattr(server, failure)()
            started = time.monotonic()
            process.communicate(b"\n", timeout=60)
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
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        time.sleep(4)  # W&B's log is written every two seconds
        os.killpg(process.pid, signal.SIGKILL)


def test_a_run_that_was_killed_offline_continues_online_as_one_run_with_all_its_rows(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    run = run_folder(tmp_path)
    log_and_die(run, [0.1, 0.2], 1)
    empty = run / "wandb" / "offline-run-20000101_000000-run"  # of a process that was killed at once
    empty.mkdir()
    (empty / "run-run.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    log_and_die(run, [0.3], 3)
    assert not server.rows
    Wandb(save_dir=str(run)).log_metrics({"val/accuracy": 0.4}, step=4)
    wandb.finish()
    assert list(server.rows) == ["run"] and logged(server.rows["run"]) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert not empty.exists()


def test_offline_fragments_of_one_run_can_be_sent_later(tmp_path: Path, server: WandbServer, key: str) -> None:
    run = run_folder(tmp_path)
    log_and_die(run, [0.1, 0.2], 1)
    Wandb(save_dir=str(run), mode="offline").log_metrics({"val/accuracy": 0.3}, step=3)
    wandb.finish()
    fragments = sorted(map(str, run.glob("wandb/offline-run-*")))
    assert len(fragments) == 2
    subprocess.run([sys.executable, "-m", "wandb", "sync", *fragments], capture_output=True, check=True)
    assert list(server.rows) == ["run"] and logged(server.rows["run"]) == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize("failure", ["hang", "die", "fail"])
def test_a_server_that_fails_in_the_middle_changes_nothing_of_a_training(
    inside: Path, server: WandbServer, key: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, *set_loggers(inside, finish_timeout=2), "--trainer.max_epochs=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        alone = fit(*options).path
    wandb.teardown()  # a process of its own would not know WANDB_MODE either

    def fail() -> None:
        assert server.configs and len(accuracies(latest(inside))) == 2
        getattr(server, failure)()

    Interrupter(monkeypatch).after_steps(40, fail)
    run = fit(*options).path
    assert run != alone and deterministic(run) == deterministic(alone)
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
    wandb.teardown()  # waits for the process that uploads
    assert server.requests == []
    assert logged(history(second)) == [(1, 0.6)]


def test_an_offline_run_does_not_keep_a_later_one_in_the_same_process_from_finding_the_key(
    tmp_path: Path, server: WandbServer, key: str
) -> None:
    Wandb(save_dir=str(run_folder(tmp_path)), mode="offline").log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert choose_mode(None)[0] == "online"


def test_a_disabled_logger_leaves_nothing(tmp_path: Path, server: WandbServer, key: str) -> None:
    run = run_folder(tmp_path)
    Wandb(save_dir=str(run), mode="disabled").log_metrics({"val/accuracy": 0.5}, step=1)
    wandb.finish()
    assert server.requests == []
    assert not (run / "wandb").exists()


def test_the_step_keeps_its_name_whatever_lightning_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    }  # the last wins
    assert axes["*"] == axes["val/accuracy"] == "trainer/global_step"


def test_the_summary_of_the_monitored_score_is_its_best_value(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    logger = Wandb(save_dir=str(run))
    for step, value in enumerate((0.5, 0.9, 0.7)):
        logger.log_metrics({"val/accuracy": value}, step=step)
    wandb.finish()
    updates = [record["summary"]["update"] for record in inspect(run) if record["type"] == "summary"]
    assert [update["val/accuracy"] for update in updates if "val/accuracy" in update][-1] == {"max": 0.9}
