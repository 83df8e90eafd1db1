"""A small Hugging Face Hub on the loopback interface, with the endpoints `transformers` and `datasets` load from."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?")
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubServer:
    """Runs during the `with` block, for processes with HF_ENDPOINT=<url> and an empty HF_HOME.

    `folder` contains models/<organization>/<name>/ and datasets/<organization>/<name>/, which are read again at every
    request. Each repository has one revision, `main`, at the commit `commits[id]`, or at `commit` by default.
    `requests` lists all requests, for example "HEAD /org/name/resolve/main/config.json". Files of repositories in
    `gated` are refused. If `status` is set, every response is that error, as from a Hub that is down.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = "c0ffee" + "0" * 34
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.status: int | None = None
        self.requests: list[str] = []
        self._answers = threading.Event()
        self._answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.die()
        self._answers.set()

    def die(self) -> None:
        """Close the port, so that connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def hang(self) -> None:
        """Accept connections, but send no responses."""
        self._answers.clear()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
                server.requests.append(f"{self.command} {self.path}")
                server._answers.wait()
                status, headers, content = server._answer(self.path, form, "Authorization" in self.headers)
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if span and status == 200:
                    first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                    status, content = 206, content[first : last + 1]
                with contextlib.suppress(ConnectionError):  # the client may have disconnected
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(content))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_HEAD = do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Print nothing to stderr."""

        return Handler

    def _answer(self, target: str, form: dict[str, list[str]], known: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response to one request; `known` is true if it came with a token."""
        if self.status:
            return _error(self.status, "")
        # which repository, revision and file is requested
        address = urlsplit(target)
        if api := API.fullmatch(address.path):
            kind, name, endpoint, revision, inner = api.groups(default="")
        elif file := FILE.fullmatch(address.path):
            endpoint, (kind, name, revision, inner) = "resolve", file.groups(default="models")
        else:
            return _error(404, "")
        # refuse what does not exist or is gated
        folder, commit = self.folder / kind / name, self.commits.get(name, self.commit)
        if not folder.is_dir():  # without a token, the real Hub answers 401 for private and for missing repositories
            return _error(404 if known else 401, "RepoNotFound")
        if endpoint == "resolve" and name in self.gated:
            return _error(403 if known else 401, "GatedRepo")
        if unquote(revision) not in ("", "main", commit):
            return _error(404, "RevisionNotFound")
        # answer by endpoint: a file, a list of files, some files, or the repository
        files = {entry.relative_to(folder).as_posix(): entry for entry in folder.rglob("*")}
        where = files.get(unquote(inner))
        if endpoint == "resolve":
            if where is None or where.is_dir():
                return _error(404, "EntryNotFound", {"X-Repo-Commit": commit})
            content = where.read_bytes()
            return 200, {"ETag": f'"{_oid(where)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, content
        if endpoint == "tree":
            if inner and where is None:
                return _error(404, "EntryNotFound")
            top, deep = where or folder, parse_qs(address.query).get("recursive", ["false"])[0].lower() == "true"
            answer: Any = [
                _entry(path, entry)
                for path, entry in files.items()
                if (top in entry.parents if deep else top == entry.parent)
            ]
        elif endpoint == "paths-info":
            answer = [_entry(path, files[path]) for path in form.get("paths", []) if path in files]
        else:
            siblings = [{"rfilename": path} for path, entry in files.items() if entry.is_file()]
            answer = {"id": name, "sha": commit, "private": False, "gated": name in self.gated, "siblings": siblings}
        return 200, {"Content-Type": "application/json", "X-Repo-Commit": commit}, json.dumps(answer).encode()


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, **(headers or {})}, json.dumps({"error": code}).encode()


def _entry(name: str, file: Path) -> dict[str, Any]:
    if file.is_dir():
        return {"type": "directory", "path": name, "oid": "", "size": 0}
    return {"type": "file", "path": name, "oid": _oid(file), "size": file.stat().st_size}


def _oid(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
