"""A small stand-in for the Hub's HTTP interface: what a push asks for, kept in memory.

Files are taken as the Hub takes small ones, within the commit; there is no large-file storage."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub:
    "Repositories: name → branch → path → content; `requests` are those that changed something."

    def __init__(self):
        self.repos, self.requests, self.down, self.url = {}, [], False, ""

    def create(self, asked: dict) -> tuple[int, dict]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in self.repos else 200
        self.repos.setdefault(name, {"main": {}})
        return status, {"url": f"{self.url}/{name}", "id": name, "error": "exists already"}

    def branch(self, repo: str, name: str) -> tuple[int, dict]:
        if name in self.repos[repo]:
            return 409, {"error": "exists already"}
        self.repos[repo][name] = {}
        return 200, {}

    def commit(self, repo: str, revision: str, lines: list[dict]) -> tuple[int, dict]:
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                assert value["encoding"] == "base64"
                self.repos[repo][revision][value["path"]] = base64.b64decode(value["content"])
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/c", "commitOid": "c" * 40}

    def post(self, path: str, body: bytes) -> tuple[int, dict]:
        "Status and answer of a POST to `path` below /api."
        words = [unquote(word) for word in path.strip("/").split("/")]
        if words == ["repos", "create"]:
            return self.create(json.loads(body))
        if words == ["validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        repo, verb, revision = "/".join(words[1:3]), words[3], words[4]
        if repo not in self.repos:
            return 404, {"error": "no such repository"}
        if verb == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": files}
        if verb == "branch":
            return self.branch(repo, revision)
        return self.commit(repo, revision, [json.loads(line) for line in body.splitlines()])

    def get(self, path: str) -> tuple[int, dict | list]:
        "Status and answer of a GET to `path` below /api."
        words = [unquote(word) for word in path.strip("/").split("/")]
        repo = "/".join(words[1:3])
        if repo not in self.repos:
            return 404, {"error": "no such repository"}
        if words[3:] == ["refs"]:
            names = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": "c" * 40}
                     for n in self.repos[repo]]  # fmt: skip
            return 200, {"branches": names, "converts": [], "tags": []}
        if words[3:4] == ["commits"]:
            date = "2026-11-02T10:30:00.000Z"
            return 200, [{"id": "c" * 40, "authors": [], "date": date, "title": "", "message": ""}]
        return 200, {"id": repo, "siblings": [], "sha": "c" * 40, "private": False, "tags": []}


def _handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, action):
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            status, content = 503, {"error": "down"}
            if not hub.down:
                path = urlsplit(self.path).path.removeprefix("/api")
                status, content = action(path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_HEAD(self):
            self.answer(lambda path, body: (200, {}))

        def do_GET(self):
            self.answer(lambda path, body: hub.get(path))

        def do_POST(self):
            hub.requests.append((self.path, self.headers.get("Authorization")))
            self.answer(hub.post)

        def log_message(self, *args):
            pass

    return Handler


@contextmanager
def serve():
    "A `Hub` that answers at its `url` while the body runs."
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
