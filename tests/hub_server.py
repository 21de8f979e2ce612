"""A small Hugging Face Hub on loopback, in memory: what the clients need to push and to load repositories.

The clients read HF_ENDPOINT when they are imported, so they run in a process of their own:

    with HubServer() as hub:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **hub.environment(tmp_path)}, check=True)
        assert hub.repos["datasets/org/name"].files["README.md"].content
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"  # of the owner of all repositories
READER = "hf_reader"  # of somebody else
LFS_SUFFIXES = (".parquet", ".png", ".safetensors", ".npz", ".bin")


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        lines = [
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        ]
        return "\n".join([*lines, ""]).encode()

    @property
    def blob_id(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def as_json(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.lfs:
            lfs = {"size": len(self.content), "pointerSize": len(self.pointer)}
            entry["lfs"] = {
                **lfs,
                "oid": self.sha256,
                "sha256": self.sha256,
            }  # trees name it one way, repositories the other
        return entry


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    summary: str
    files: dict[str, File]


@dataclass
class Repo:
    """`key` is the path in a URL: `org/name` for a model, `datasets/org/name`, `spaces/org/name`."""

    key: str
    private: bool = False
    gated: bool = False  # its files are for those who have accepted its terms, which nobody has
    tags: dict[str, str] = field(default_factory=dict)  # commits by name
    commits: list[Commit] = field(default_factory=list)  # of the branch main, oldest first
    blobs: dict[str, bytes] = field(default_factory=dict)  # LFS uploads by SHA-256, committed or not
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)  # of such uploads, by number

    def __post_init__(self) -> None:
        self.add_commit("initial commit", {".gitattributes": File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")})

    @property
    def files(self) -> dict[str, File]:
        return self.commits[-1].files

    def at(self, revision: str) -> Commit | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        sha = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == sha), None)

    def add_commit(self, summary: str, files: dict[str, File]) -> Commit:
        parent = self.commits[-1].sha if self.commits else None
        listing = [(path, file.blob_id) for path, file in sorted(files.items())]
        sha = hashlib.sha1(repr((self.key, parent, summary, listing)).encode()).hexdigest()
        self.commits.append(Commit(sha, parent, summary, files))
        return self.commits[-1]


@dataclass
class Request:
    method: str
    path: str
    status: int | None = None  # None: the connection was cut


@dataclass
class Failure:
    """Of requests whose `METHOD /path` matches the pattern, `skip` are served and the next `times` fail."""

    pattern: str
    status: int | None = None  # answer with this
    cut: bool = False  # close the connection half-way
    delay: float = 0  # seconds before the answer
    skip: int = 0
    times: int = 1


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """
    Attributes:
        endpoint: For HF_ENDPOINT.
        repos: By key.
        requests: Everything that was asked, in order.
        part_size: Bytes of the parts in which large files are taken; in one part without it.
    """

    def __init__(self, token: str = TOKEN):
        self.token = token
        self.part_size: int | None = None
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._failures: list[Failure] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a client process with its caches in `home`; `token=None` is a user without an account."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
        }

    def fail(self, pattern: str, **how: float) -> None:
        """Let requests fail as a [`Failure`] says: `hub.fail("PUT", cut=True, times=2)`."""
        self._failures.append(Failure(pattern, **how))

    def stop_failing(self) -> None:
        """Serve everything again."""
        with self.lock:
            self._failures.clear()

    def failure_for(self, request: str) -> Failure | None:
        with self.lock:
            for failure in self._failures:
                if failure.times and re.search(failure.pattern, request):
                    if failure.skip:
                        failure.skip -= 1
                        continue
                    failure.times -= 1
                    return failure
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.path, self.query = unquote(url.path), parse_qs(url.query)
        request = Request(self.command, self.path)
        self.hub.requests.append(request)
        failure = self.hub.failure_for(f"{self.command} {self.path}")
        self.cut = failure is not None and failure.cut
        if failure is not None:
            time.sleep(failure.delay)
        try:
            body = self._read_body()
            if failure is not None and failure.status is not None:
                raise HubError(failure.status, "failure injected by the test")
            with self.hub.lock:
                status, headers, content = self._route(body)
        except HubError as error:
            status, headers = error.status, {"X-Error-Message": str(error), "X-Error-Code": error.code}
            content = json.dumps({"error": str(error), "errors": [{"message": str(error)}]}).encode()
        except ConnectionAbortedError:
            return
        request.status = None if self.cut else status
        self._send(status, headers, content)

    do_HEAD = do_POST = do_PUT = do_GET

    def _read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2 if self.cut else length)
        if self.cut and self.command in ("PUT", "POST"):
            self.close_connection = True
            raise ConnectionAbortedError
        return body

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
        self.close_connection = self.close_connection or self.cut

    # --- routes: each returns status, headers, content ---

    def _route(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and self.command in method.split():
                answer = action(self, body, **match.groupdict())
                return answer if isinstance(answer, tuple) else (200, _JSON, json.dumps(answer).encode())
        raise HubError(404, f"no such page: {self.command} {self.path}")

    def _repo(self, kind: str | None, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(_key(kind, repo_id))
        is_owner = self._authorize(required=write or repo is None or repo.private, code="RepoNotFound")
        if repo is None or (repo.private and not is_owner):
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and not is_owner:
            raise HubError(403, "You don't have the rights to write here")
        return repo

    def _authorize(self, required: bool, code: str = "") -> bool:
        """Whether it is the owner who asks."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not given and required:
            raise HubError(401, "Invalid username or password.", code)
        if given and given not in (self.hub.token, READER):
            raise HubError(401, "Invalid credentials in Authorization header")
        return given == self.hub.token

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self, body: bytes) -> dict:
        name = "tester" if self._authorize(required=True) else "reader"
        return {"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token"}}

    def create_repo(self, body: bytes) -> object:
        if not self._authorize(required=True):
            raise HubError(403, "You don't have the rights to create a model under this namespace")
        asked = json.loads(body)
        repo_id = f"{asked['organization'] or 'tester'}/{asked['name']}"
        key = _key(f"{asked.get('type', 'model')}s", repo_id)
        answer = {"url": f"{self.hub.endpoint}/{key}", "id": repo_id, "name": repo_id}
        if key in self.hub.repos:
            answer["error"] = "You already created this repo"
            return 409, _JSON, json.dumps(answer).encode()
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[key] = Repo(key, private=bool(private))
        return answer

    def validate_yaml(self, body: bytes) -> dict:
        content = json.loads(body)["content"]
        if not content.startswith("---"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            yaml.safe_load(content.split("---")[1])
        except (IndexError, yaml.YAMLError) as error:
            raise HubError(400, f"no valid YAML header: {error}") from error
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> dict:
        files = self._commit(self._repo(kind, repo_id, write=True), revision).files
        answers = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"}
            if path in files:
                answer["oid"] = files[path].sha256 if files[path].lfs else files[path].blob_id
            answers.append({**answer, "shouldIgnore": False})
        return {"files": answers}

    def lfs_batch(self, body: bytes, kind: str | None, repo_id: str) -> dict:
        repo = self._repo(kind, repo_id, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            url = f"{self.hub.endpoint}/lfs/{repo.key}"
            upload = {"href": f"{url}/{asked['oid']}"}
            if self.hub.part_size and asked["size"] > self.hub.part_size:
                count = math.ceil(asked["size"] / self.hub.part_size)
                parts = {str(k): f"{url}/{asked['oid']}/{k}" for k in range(1, count + 1)}
                upload = {"href": f"{url}/{asked['oid']}/complete", "header": {"chunk_size": str(self.hub.part_size)}}
                upload["header"] |= parts
            wanted = {"upload": upload, "verify": {"href": f"{url}/verify"}}
            objects.append({**asked, **({} if asked["oid"] in repo.blobs else {"actions": wanted})})
        return {"transfer": "basic", "objects": objects}

    def put_blob(self, body: bytes, key: str, oid: str) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, f"the content is not that of {oid}")
        self.hub.repos[key].blobs[oid] = body
        return {}

    def put_part(self, body: bytes, key: str, oid: str, part: str) -> tuple:
        self.hub.repos[key].parts[oid, int(part)] = body
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""

    def complete_blob(self, body: bytes, key: str, oid: str) -> dict:
        parts = self.hub.repos[key].parts
        content = [parts.pop((oid, part["partNumber"])) for part in json.loads(body)["parts"]]
        return self.put_blob(b"".join(content), key, oid)

    def verify_blob(self, body: bytes, key: str) -> dict:
        asked = json.loads(body)
        if len(self.hub.repos[key].blobs.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(404, f"{asked['oid']} was not uploaded")
        return {}

    def commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> dict:
        repo = self._repo(kind, repo_id, write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        summary = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        files = dict(self._commit(repo, revision).files)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in repo.blobs:
                    raise HubError(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(repo.blobs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        new = repo.add_commit(summary, files)
        return {"success": True, "commitOid": new.sha, "commitUrl": f"{self.hub.endpoint}/{repo.key}/commit/{new.sha}"}

    def repo_info(self, body: bytes, kind: str, repo_id: str, revision: str = "main") -> dict:
        repo = self._repo(kind, repo_id)
        commit = self._commit(repo, revision or "main")
        siblings = [{"rfilename": path, **file.as_json(path)} for path, file in sorted(commit.files.items())]
        fixed = {"lastModified": "2024-01-01T00:00:00.000Z", "tags": [], "gated": False, "disabled": False}
        return {"id": repo_id, "sha": commit.sha, "private": repo.private, "siblings": siblings, **fixed}

    def refs(self, body: bytes, kind: str, repo_id: str) -> dict:
        repo = self._repo(kind, repo_id)
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].sha}
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
        return {"branches": [branch], "tags": tags, "converts": []}

    def tree(self, body: bytes, kind: str, repo_id: str, revision: str, folder: str | None) -> list[dict]:
        files = self._commit(self._repo(kind, repo_id), revision).files
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        inside = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path, file in inside.items():
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                entries[name] = _folder_json(name)
            if recursive or len(parts) == 1:
                entries[path] = file.as_json(path)
        return list(entries.values())

    def paths_info(self, body: bytes, kind: str, repo_id: str, revision: str) -> list[dict]:
        files = self._commit(self._repo(kind, repo_id), revision).files
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        found = [files[path].as_json(path) for path in paths if path in files]
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
        return found + [_folder_json(path) for path in folders]

    def resolve(self, body: bytes, kind: str | None, repo_id: str, revision: str, path: str) -> tuple:
        repo = self._repo(kind, repo_id)
        if repo.gated:
            raise HubError(403, "Access to this model is restricted", "GatedRepo")
        commit = self._commit(repo, revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        file = commit.files[path]
        content, status = file.content, 200
        headers["ETag"] = f'"{file.sha256 if file.lfs else file.blob_id}"'
        if file.lfs:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": headers["ETag"]}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            if first > last:
                raise HubError(416, "Range not satisfiable")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return status, headers, content


_JSON = {"Content-Type": "application/json"}
_REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create_repo),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/api/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/api/{_REPO}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("GET", rf"/api/{_REPO}", _Handler.repo_info),
    ("GET", rf"/api/{_REPO}/refs", _Handler.refs),
    ("GET", rf"/api/{_REPO}/revision/(?P<revision>.+)", _Handler.repo_info),
    ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<key>.+)/(?P<oid>[0-9a-f]{64})", _Handler.put_blob),
    ("PUT", r"/lfs/(?P<key>.+)/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", _Handler.put_part),
    ("POST", r"/lfs/(?P<key>.+)/(?P<oid>[0-9a-f]{64})/complete", _Handler.complete_blob),
    ("POST", r"/lfs/(?P<key>.+)/verify", _Handler.verify_blob),
    ("GET HEAD", rf"{_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


def _key(kind: str | None, repo_id: str) -> str:
    return repo_id if kind in (None, "models") else f"{kind}/{repo_id}"


def _folder_json(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


class HubUser:
    """A process of a user of the Hub, which imports the libraries once and then does as it is told."""

    LOOP = """
import json, sys, time
time.sleep = lambda seconds: None  # between the client's retries
out, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    values = {}
    try:
        exec(json.loads(line), values)
        answer = ["done", values["result"]]
    except Exception as error:
        answer = ["failed", f"{type(error).__name__}: {error}"]
    print(json.dumps(answer), file=out, flush=True)
"""

    def __init__(self, hub: HubServer, home: Path, token: str | None, **variables: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        environment = {**os.environ, **hub.environment(home, token), **variables}
        self.process = subprocess.Popen([sys.executable, "-c", self.LOOP], env=environment, **pipes)

    def __call__(self, code: str, fails: bool = False) -> Any:
        """Run code; returns its `result`, or the error where it should fail."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        state, answer = json.loads(self.process.stdout.readline())
        assert (state == "failed") == fails, answer
        return answer
