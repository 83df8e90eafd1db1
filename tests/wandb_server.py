"""A small W&B server on the loopback interface that answers the requests of `wandb` 0.31 and records their data."""

import base64
import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class WandbServer:
    """Runs during the `with` block and records the data that it receives.

    `requests` lists all requests, for example "POST /graphql"; `keys` has the API keys that came with them. The keys of
    the dictionaries are run ids.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self.configs: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, str] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.refuses = False
        self.fails = False
        self._answers = threading.Event()
        self._answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.die()
        self._answers.set()

    def die(self) -> None:
        """Close the port, so that connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def fail(self) -> None:
        """Answer all requests with a server error."""
        self.fails = True

    def hang(self) -> None:
        """Accept connections, but send no responses."""
        self._answers.clear()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.requests.append(f"{self.command} {self.path}")
                scheme, _, user = self.headers.get("Authorization", "").partition(" ")
                if scheme == "Basic":
                    server.keys.add(base64.b64decode(user).decode().removeprefix("api:"))
                server._answers.wait()
                if server.refuses:
                    self.send_error(401)
                    return
                if server.fails:
                    self.send_error(500)
                    return
                answer: dict[str, Any] = {}
                if self.path == "/graphql":
                    answer = {"data": server._graphql(**json.loads(body))}
                elif self.path.endswith("/file_stream"):
                    server._file_stream(self.path.split("/")[-2], json.loads(body))
                content = json.dumps(answer).encode()
                with contextlib.suppress(ConnectionError):  # the client may have disconnected
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST

            def log_message(self, *arguments: Any) -> None:
                """Print nothing to stderr."""

        return Handler

    def _graphql(self, query: str, variables: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
        """The response to one operation; empty for unknown ones, because wandb retries failed requests for minutes."""
        values = variables or {}
        if "upsertBucket" in query:
            run = values["name"]
            if values.get("config"):
                self.configs[run] = {name: item["value"] for name, item in json.loads(values["config"]).items()}
            self.groups[run] = values.get("groupName") or self.groups.get(run, "")
            project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "someone"}}
            lines = len(self.rows.get(run, []))
            bucket = {"id": "b", "name": run, "displayName": run, "project": project, "historyLineCount": lines}
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if "RunResumeStatus" in query:
            return {"model": self._resumed(values)}
        if "createRunFiles" in query:  # without this answer wandb-core crashes
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        return {}

    def _resumed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The state of a run for resuming it; the strings contain JSON."""
        run, entity = values["name"], {"id": "e", "name": "someone"}
        bucket = None
        if rows := self.rows.get(run):
            lines = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
            tails = {"historyTail": json.dumps([json.dumps(rows[-1])]), "eventsTail": "[]", "summaryMetrics": "{}"}
            config = json.dumps({name: {"value": value} for name, value in self.configs.get(run, {}).items()})
            names = {"id": "b", "name": run, "displayName": run, "tags": [], "notes": None, "wandbConfig": None}
            bucket = {**names, **lines, **tails, "config": config}
        return {"id": "p", "name": values["project"], "entity": entity, "bucket": bucket}

    def _file_stream(self, run: str, body: dict[str, Any]) -> None:
        if history := body.get("files", {}).get("wandb-history.jsonl"):
            rows = self.rows.setdefault(run, [])
            rows[history["offset"] :] = map(json.loads, history["content"])
        if body.get("complete"):
            self.exit_codes[run] = body["exitcode"]
