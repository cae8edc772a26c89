"""A hub on this machine that speaks what huggingface_hub says to the real one when it commits.

Repositories begin with a commit, files are asked for (preupload), large ones go through the
LFS batch API (basic transfer), a commit is NDJSON on a parent. `fail` makes requests go wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "fakefakefake" * 3
LARGE = (".safetensors", ".gguf", "tokenizer.json")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: its commits (id, header, files changed) and its files at the head."""

    private: bool
    commits: list[tuple[str, dict, list[str]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def commit(self, header: dict[str, Any], files: dict[str, bytes], large: set[str]) -> None:
        said = f"{len(self.commits)} {header} {sorted(files)}".encode()
        self.commits.append((hashlib.sha1(said).hexdigest(), header, sorted(files)))
        self.files |= files
        self.large |= large


class FakeHub:
    """`url`, `repos` by (type, id), `objects` by SHA-256, `requests` as "METHOD path"."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[list[Any]] = []
        self.before_commit = lambda: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fail(self, pattern: str, status: int, times: int = 1, after: bool = False) -> None:
        """Answer the next requests whose "METHOD path" matches with a status.

        after: do what was asked all the same, so that only the answer is lost.
        """
        self.faults.append([re.compile(pattern), status, times, after])

    def fault(self, request: str) -> tuple[int, bool] | None:
        for fault in self.faults:
            if fault[2] and fault[0].search(request):
                fault[2] -= 1
                return fault[1], fault[3]
        return None

    def asked(self, pattern: str) -> list[str]:
        return [r for r in self.requests if re.search(pattern, r)]

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if method == "PUT" and (found := re.fullmatch(r"/lfs/(\w+)", path)):
            if hashlib.sha256(body).hexdigest() != found[1]:
                return 400, {"error": "wrong content"}
            self.objects[found[1]] = body
            return 200, {}
        if token != TOKEN:
            return 401, {"error": f"Invalid credentials: {token}"}  # an echo must not be shown
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            said = json.loads(body)["content"].split("---\n")[1]
            return (200, {}) if isinstance(yaml.safe_load(said), dict) else (400, {"errors": []})
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/.*)?", path):
            repo = self.repos.get((found[1], found[2]))
            if repo is None:
                return 404, {"error": "Repository not found"}
            return getattr(self, f"on_{found[3] or 'revision'}")(repo, body)
        return 404, {"error": f"no such route: {path}"}

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        key = (asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
        url = {"url": f"{self.url}/{key[1]}"}
        if key in self.repos:
            return 409, {"error": "You already created this repo", **url}
        self.repos[key] = Repo(private=asked.get("visibility") == "private")
        self.repos[key].commit({"summary": "initial commit"}, {".gitattributes": b"*"}, set())
        return 200, url

    def batch(self, asked: dict[str, Any]) -> tuple[int, Any]:
        objects = []
        for wanted in asked["objects"]:
            if wanted["oid"] not in self.objects:
                href = f"{self.url}/lfs/{wanted['oid']}"
                wanted = {**wanted, "actions": {"upload": {"href": href}}}
            objects.append(wanted)
        return 200, {"transfer": "basic", "objects": objects}

    def on_revision(self, repo: Repo, body: bytes) -> tuple[int, Any]:
        (id,) = (key[1] for key, known in self.repos.items() if known is repo)
        facts = {"id": id, "sha": repo.head, "private": repo.private}
        return 200, {**facts, "tags": [], "siblings": [], "downloads": 0, "likes": 0}

    def on_tree(self, repo: Repo, body: bytes) -> tuple[int, Any]:
        found = []
        for path, content in repo.files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if path in repo.large:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            found.append(entry)
        return 200, found

    def on_preupload(self, repo: Repo, body: bytes) -> tuple[int, Any]:
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return 200, {"files": files}

    def on_commit(self, repo: Repo, body: bytes) -> tuple[int, Any]:
        self.before_commit()
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, repo.head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files, large = {}, set()
        for operation in operations:
            said = operation["value"]
            if operation["key"] == "lfsFile":
                if said["oid"] not in self.objects:
                    return 400, {"error": f"{said['path']} was not uploaded"}
                files[said["path"]] = self.objects[said["oid"]]
                large.add(said["path"])
            else:
                files[said["path"]] = base64.b64decode(said["content"])
        repo.commit(header["value"], files, large)
        return 200, {"commitUrl": f"{self.url}/commit/{repo.head}", "commitOid": repo.head}


def handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    """The request handler of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            path = self.path.partition("?")[0]
            body = self.body()
            hub.requests.append(f"{self.command} {path}")
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
            fault = hub.fault(f"{self.command} {path}")
            status, content = fault[0] if fault else 0, {"error": "injected"}
            if fault is None or fault[1]:
                done = hub.answer(self.command, path, body, token)
                status, content = (status, content) if fault else done
            sent = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
