"""Processes that start in milliseconds: copies of a process that has imported the libraries, litlab and project.

A new interpreter needs seconds for these imports. They change nothing else in a process (tests/test_house.py), so a copy does
what a new interpreter does. Three kinds of tests need a new interpreter: those of the imports themselves, those of
variables that a library reads while it is imported (HF_*), and those of a terminal.

Run as a script, this file is the process that is copied. It reads requests from its standard input, a socket.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, NoReturn, Self

IMPORTED = (
    "litlab.cli.lightning_cli",
    "litlab.training.fit",
    "litlab.training.evaluate",
    "litlab.training.loggers",
    "project.data.mnist",
    "project.data.text_classification",
    "project.data.summarization",
    "project.models.mnist_mlp",
    "project.models.bert_classifier",
    "project.models.t5_summarizer",
    "pandas",
    "torch._dynamo",  # torch imports it with the first optimizer
    "wandb",
)
LARGEST = 1 << 20  # bytes of a request


@functools.cache
def original() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that is copied, once per process of the tests, and return the socket to it; it ends with them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen([sys.executable, __file__], stdin=theirs, start_new_session=True)
    theirs.close()
    return ours, process


class Forked:
    """A process that runs `python -m module ...` or `python -c code ...`, with the methods of subprocess.Popen.

    Args:
        arguments: command line after `python`.
        cwd: working folder; the default is that of this process.
        env: environment variables; the default is those of this process.
        stdin: None, `subprocess.PIPE` or a file descriptor, as for Popen.
        stdout: the same; with None, `communicate` returns the text.
        stderr: None or a file descriptor.
        start_new_session: whether the process leads a session and a process group.
    """

    def __init__(
        self,
        arguments: list[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args, self.returncode = arguments, None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self._written = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed in __exit__)
        ends = []
        if stdin is None:
            stdin = os.open(os.devnull, os.O_RDONLY)
            ends.append(stdin)
        elif stdin == subprocess.PIPE:
            stdin, end = os.pipe()
            ends.append(stdin)
            self.stdin = os.fdopen(end, "wb", 0)
        if stdout == subprocess.PIPE:
            end, stdout = os.pipe()
            ends.append(stdout)
            self.stdout = os.fdopen(end, "rb", 0)
        files = [
            stdin,
            self._written[0].fileno() if stdout is None else stdout,
            self._written[1].fileno() if stderr is None else stderr,
        ]
        answers, end = os.pipe()
        ends.append(end)
        self._answers = os.fdopen(answers, "rb", 0)
        request = {
            "arguments": arguments,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        socket.send_fds(original()[0], [json.dumps(request).encode()], [*files, end])
        for end in ends:
            os.close(end)
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None if the process has not ended."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: if the process has not ended after `timeout` seconds.
        """
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr."""
        self.wait(timeout)
        return self._read(0), self._read(1)

    def _read(self, number: int) -> str:
        self._written[number].seek(0)
        return self._written[number].read().decode()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wait()
        for file in (self.stdin, self.stdout, self._answers, *self._written):
            if file:
                file.close()


def run(
    arguments: list[str], timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python` with these arguments to its end; see `Forked`."""
    with Forked(arguments, cwd, env) as process:
        try:
            output, errors = process.communicate(timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode or 0, output, errors)


def next_request() -> dict[str, Any]:
    """Copy this process for each request; return the request in the copy, which has its files, folder and environment."""
    requests = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes the processes that have ended
    while True:
        message, files, _, _ = socket.recv_fds(requests, LARGEST, 4)
        if not message:
            sys.exit()  # the tests are over
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    # the first copy waits for the second and reports its exit status
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *files, answers = files
    if pid := os.fork():
        for file in files:
            os.close(file)
        os.write(answers, b"%d\n" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(answers, b"%d\n" % status)
        os._exit(0)
    # the second copy is the process
    os.close(answers)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request = json.loads(message)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return request


def become(request: dict[str, Any]) -> None:
    """Run what a request says, as a new interpreter does."""
    import numpy as np

    random.seed()
    np.random.seed()
    kind, name, *arguments = request["arguments"]
    paths = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [request["folder"] if kind == "-m" else "", *filter(None, paths)]
    importlib.invalidate_caches()
    sys.argv[:] = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(name, "<string>", "exec"), vars(module))


def finish(error: BaseException | None) -> NoReturn:
    """End this process as an interpreter ends, but leave the modules in memory; to remove them takes seconds."""
    if isinstance(error, SystemExit):
        status = error.code
    elif error:
        traceback.print_exception(error)
        status = 1
    else:
        status = 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1 if status else 0)


if __name__ == "__main__":
    own = {str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [path for path in sys.path if path not in own]  # a copy has its own
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # the engine's tests pass without project; a copy that needs it fails
            importlib.import_module(name)
    gc.freeze()  # else the collector reads all of these objects in each copy
    request = next_request()
    try:
        become(request)
    except BaseException as error:
        finish(error)
    finish(None)
