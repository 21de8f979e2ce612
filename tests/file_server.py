"""A web server on loopback that serves a folder, with resumable downloads and failures on demand.

with FileServer(folder) as server:
    server.script = [Answer(cut_after=1000), Answer(status=503)]  # the first two; then `server.default`
    download(server.url + "plate.zip", ...)
    assert [request.start for request in server.requests] == [0, 1000, 1000]
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 1 << 18


@dataclass
class Answer:
    """How to answer one request; the default serves the file as a good server does."""

    status: int | None = None  # an error to answer with
    cut_after: int | None = None  # close the connection after this many bytes of the body
    wait: threading.Event | None = None  # ... but only when this is set
    pause: float = 0.0  # seconds after each chunk
    extra_length: int = 0  # announce this many bytes more than there are
    etag: str | None = "from file"
    last_modified: bool = True
    ranges: bool = True  # heed Range
    if_range: bool = True  # heed If-Range
    max_range: int | None = None  # answer a Range with at most this many bytes
    headers: dict[str, str] = field(default_factory=dict)  # sent in addition


@dataclass
class Request:
    """What was asked and what was answered."""

    path: str
    start: int = 0  # of the Range, 0 without one
    if_range: str | None = None
    status: int = 0
    sent: int = 0  # bytes of the body


class FileServer:
    """Serves `folder` at `url` (ends in a slash) inside of a `with` block, and records `requests`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self.script: list[Answer] = []
        self.default = Answer()
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> FileServer:
        loopback = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        self._environment = mock.patch.dict(os.environ, loopback)
        self._environment.start()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._environment.stop()

    def next_answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            return self.script.pop(0) if self.script else self.default


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def do_GET(self) -> None:
        request = Request(unquote(urlsplit(self.path).path), if_range=self.headers.get("If-Range"))
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        request.start = int(asked[1]) if asked else 0
        answer = self.files.next_answer(request)
        path = (self.files.folder / request.path.lstrip("/")).resolve()
        if answer.status or not path.is_file() or self.files.folder not in path.parents:
            self._head(request, answer.status or 404, {"Content-Length": "0"})
            return

        size = path.stat().st_size
        validators = self._validators(path, answer)
        same = not answer.if_range or request.if_range is None or request.if_range in validators.values()
        headers = validators | answer.headers
        if asked and answer.ranges and same:
            if request.start >= size:
                self._head(request, 416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
                return
            status, start = 206, request.start
            length = min(size - start, answer.max_range or size)
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        else:
            status, start, length = 200, 0, size
        headers["Content-Length"] = str(length + answer.extra_length)
        self._head(request, status, headers)
        self._body(request, answer, path, start, length)

    do_HEAD = do_GET

    def _validators(self, path: Path, answer: Answer) -> dict[str, str]:
        file = path.stat()
        validators = {}
        if answer.etag:
            validators["ETag"] = f'"{file.st_mtime_ns}-{file.st_size}"' if answer.etag == "from file" else answer.etag
        if answer.last_modified:
            validators["Last-Modified"] = formatdate(file.st_mtime, usegmt=True)
        return validators

    def _head(self, request: Request, status: int, headers: dict[str, str]) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, request: Request, answer: Answer, path: Path, start: int, length: int) -> None:
        if self.command == "HEAD":
            return
        remaining = length if answer.cut_after is None else min(length, answer.cut_after)
        self.close_connection = answer.cut_after is not None or answer.extra_length != 0
        with open(path, "rb") as file:
            file.seek(start)
            while remaining and (chunk := file.read(min(CHUNK_BYTES, remaining))):
                request.sent += len(chunk)  # before: a client that has read it all may ask at once what was sent
                try:
                    self.wfile.write(chunk)
                except ConnectionError:  # the client has left
                    request.sent -= len(chunk)
                    self.close_connection = True
                    return
                remaining -= len(chunk)
                time.sleep(answer.pause)
        if answer.wait:
            answer.wait.wait()

    def log_message(self, *message: object) -> None:
        pass
