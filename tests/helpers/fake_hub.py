"""A fake Hugging Face hub: the endpoints that huggingface_hub uses for prompts.

Repositories are in memory; a file is a git blob or, like safetensors on the real hub, stored
outside of git under its SHA-256.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_writes"
READER = "hf_reads"
PAGE = 3  # entries of a listing at once: the library has to follow the links


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]
    message: str


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes], message: str) -> Commit:
        text = f"{len(self.commits)} {message} {branch}"
        self.commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), files, message))
        self.branches[branch] = self.commits[-1].oid
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


class Refused(Exception):
    """An error response: status, code and message."""


class FakeHub(ThreadingHTTPServer):
    """Hub with one owner, ``me``, whose token is `TOKEN`; `READER` may only read."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.uploaded: dict[str, bytes] = {}
        self.outside_of_git = False
        self.damage: dict[str, bytes] = {}
        self.ignored: set[str] = set()
        self.before_commit: Callable[[], object] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        commit = self.repositories[name].at(branch)
        assert commit is not None
        return commit.files

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories.setdefault(name, create(False))
        self.repositories[name].add("main", {**self.files(name), **files}, "by hand")

    def is_outside(self, path: str) -> bool:
        return self.outside_of_git and path.endswith(".safetensors")


def create(private: bool) -> Repository:
    repository = Repository(private)
    repository.add("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
    return repository


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write per response: two would wait for each other
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        method = self.command
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append((method, self.path))
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        try:
            status, data, headers = self.route(parts, parse_qs(address.query), body)
        except Refused as refused:
            status, code, message = refused.args
            data = json.dumps({"error": message}).encode()
            headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send_response(status)
        for key, value in headers.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def route(self, parts: list[str], query: dict, body: bytes) -> tuple[int, bytes, dict]:
        match parts:
            case ["api", "validate-yaml"]:
                return as_json(validated(json.loads(body)["content"]))
            case ["api", "repos", "create"]:
                return as_json(self.create(json.loads(body)))
            case ["api", "models", owner, name, *rest]:
                return self.model(f"{owner}/{name}", rest, query, body)
            case ["storage", digest]:
                assert hashlib.sha256(body).hexdigest() == digest
                self.server.uploaded[digest] = body
                return 200, b"", {}
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return as_json(self.batch(json.loads(body)))
            case [owner, name, "resolve", revision, *path]:
                return self.resolve(f"{owner}/{name}", revision, "/".join(path))
        raise Refused(404, "", "Sorry, we can't find the page you are looking for.")

    def model(self, name: str, rest: list[str], query: dict, body: bytes) -> tuple:
        repository = self.find(name)
        revision = rest[1] if len(rest) > 1 else "main"
        if rest[:1] == ["branch"]:
            self.check_writer(name)
            repository.branches[revision] = repository.branches["main"]
            return as_json({})
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if rest[:1] in ([], ["revision"]):
            about = {"id": name, "modelId": name, "private": repository.private, "tags": []}
            return as_json({**about, "sha": commit.oid, "downloads": 0, "likes": 0})
        if rest[:1] == ["tree"]:
            return self.tree(commit, int(query.get("cursor", ["0"])[0]))
        self.check_writer(name)
        if rest[:1] == ["preupload"]:
            return as_json({"files": [self.mode(each) for each in json.loads(body)["files"]]})
        if rest[:1] != ["commit"]:
            raise Refused(404, "", "Sorry, we can't find the page you are looking for.")
        return as_json(self.commit(name, repository, revision, body))

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def find(self, name: str) -> Repository:
        # Like the real hub, a private repository is not found without its owner's token.
        token = self.token()
        if token not in (None, TOKEN, READER):
            raise Refused(401, "", "Invalid credentials in Authorization header")
        found = self.server.repositories.get(name)
        if found is None or found.private and token != TOKEN:
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def check_writer(self, name: str) -> None:
        if self.token() is None:
            raise Refused(401, "", "Invalid username or password.")
        if self.token() != TOKEN or not name.startswith("me/"):
            raise Refused(403, "", f"You don't have the rights to write to {name}")

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        self.check_writer(name)
        if name in self.server.repositories:
            raise Refused(409, "", "You already created this model repo")
        private = asked.get("visibility") == "private"
        self.server.repositories[name] = create(private)
        return {"url": f"{self.server.url}/{name}", "name": name}

    def tree(self, commit: Commit, start: int) -> tuple[int, bytes, dict]:
        entries = [self.entry(path, data) for path, data in sorted(commit.files.items())]
        folders = {path.rpartition("/")[0] for path in commit.files} - {""}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        status, data, headers = as_json(entries[start : start + PAGE])
        if start + PAGE < len(entries):
            address = f"{self.server.url}{urlsplit(self.path).path}"
            link = f"{address}?recursive=True&cursor={start + PAGE}"
            headers["Link"] = f'<{link}>; rel="next"'
        return status, data, headers

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if self.server.is_outside(path):
            digest = hashlib.sha256(data).hexdigest()
            entry["oid"] = git_sha1(f"oid sha256:{digest}".encode())
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return entry

    def mode(self, asked: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if self.server.is_outside(asked["path"]) else "regular"
        ignored = asked["path"] in self.server.ignored
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": None}

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/storage/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def commit(self, name: str, repository: Repository, branch: str, body: bytes) -> dict:
        if self.server.before_commit:
            self.server.before_commit()
        header, *lines = [json.loads(line) for line in body.splitlines()]
        before = repository.at(branch)
        assert before is not None and header["key"] == "header"
        if header["value"].get("parentCommit", before.oid) != before.oid:
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(before.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.uploaded[value["oid"]]
        done = repository.add(branch, files, header["value"]["summary"])
        return {"commitOid": done.oid, "commitUrl": f"{self.server.url}/{name}/commit/{done.oid}"}

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict]:
        commit = self.find(name).at(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = commit.files[path]
        tag = hashlib.sha256(data).hexdigest() if self.server.is_outside(path) else git_sha1(data)
        data = self.server.damage.get(path, data)
        return 200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": commit.oid}


def as_json(value: Any) -> tuple[int, bytes, dict]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def validated(page: str) -> dict[str, Any]:
    """The front matter has to be YAML between two lines of dashes."""
    import yaml

    lines = page.split("---\n")
    if page.startswith("---\n") and isinstance(yaml.safe_load(lines[1]), dict):
        return {"errors": [], "warnings": []}
    raise Refused(400, "", "no metadata")


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
