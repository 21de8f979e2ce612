"""What hostile requests do to the app: it runs in a process and a temporary folder of its own, on this machine only.

Run as `OMP_NUM_THREADS=1 python benchmarks/hostile_requests.py` on Linux. Sent are session names and file names that
are paths, paths of other files, names of other hosts, files that unpack to many times their size, scripts, values that
the page does not offer, and malformed requests. Looked at is whether anything outside of the app's own folders has
changed or was served (files with known content lie around them), whether a script comes back unescaped, what the
server answers, and its peak memory; and whether an ordinary visitor is served afterwards. The exit status is 0 if all
is well.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tifffile

CANARY = "this file is none of the app's"
CANARIES = ("canary.txt", "tmp/canary.txt", "tmp/others/canary.txt", "home/canary.txt")
OWN = ("tmp/cellfluxrl-app-", "tmp/gradio")  # folders of the app
TIMEOUT = 120  # seconds, of one request

NAMES = (
    "",
    ".",
    "..",
    "../..",
    "../../escaped",
    "../../../../../../../../tmp/escaped-from-the-app",
    "..\\..\\escaped",
    "{place}/escaped",
    "{place}/tmp/others",
    "{place}/tmp/canary.txt",
    "~/escaped",
    "a\0b",
    "a\nb",
    "a" * 5000,
    "C:\\escaped",
    "con",
    "<script>alert(1)</script>",
    "%2e%2e%2fescaped",
    "$(touch escaped)",
    "\u202eexe.gnp",
)
HOSTS = (
    "example.org",
    "example.org:{port}",
    "localhost.example.org",
    "127.0.0.1.example.org",
    "0.0.0.0:{port}",
    "192.0.2.1",
    "user:password@localhost",
    "localhost/..",
    "",
    "*",
    "[::2]",
    "xn--lcalhost-54a",
)
ROUTES = (
    "gradio_api/file={place}/canary.txt",
    "gradio_api/file={place}/tmp/canary.txt",
    "gradio_api/file={place}/tmp/gradio/../canary.txt",
    "gradio_api/file=..%2f..%2fcanary.txt",
    "gradio_api/file=file://{place}/canary.txt",
    "gradio_api/file=http://127.0.0.1:{port}/config",
    "gradio_api/file=http://example.org/",
    "gradio_api/proxy=http://127.0.0.1:{port}/config",
    "gradio_api/file/{place}/canary.txt",
    "static/..%2f..%2f..%2f..%2f..%2f{place}/canary.txt",
    "assets/..%2f..%2f..%2f..%2f..%2f{place}/canary.txt",
    "svelte/..%2f..%2f..%2f..%2f..%2f{place}/canary.txt",
    "gradio_api/custom_component/1/client/component/..%2f..%2fcanary.txt",
    "gradio_api/stream/..%2f../..%2f../1/playlist.m3u8",
    "gradio_api/upload_progress?upload_id=..%2f..",
    "gradio_api/deep_link?session_hash=..%2f..",
)
# What is alive where it is not escaped.
SCRIPTS = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'><svg onload=alert(1)>", "=1+1", "{{7*7}}")


# --------------------------------------------------------------------------------------------------------------------
# A visitor
# --------------------------------------------------------------------------------------------------------------------


class Visitor:
    """Speaks to the app as the page does, but says what it likes.

    Args:
        address: Of the page.
        session_hash: What it calls its session; by default a name that nobody has.
    """

    def __init__(self, address: str, session_hash: str | None = None) -> None:
        self.address = address
        self.session_hash = uuid.uuid4().hex if session_hash is None else session_hash
        config = requests.get(f"{address}config", timeout=TIMEOUT).json()
        components = {component["id"]: component for component in config["components"]}
        self.functions = {entry["api_name"]: entry for entry in config["dependencies"]}
        self.values = {}
        for number in self.functions["run"]["inputs"]:
            properties = components[number]["props"]
            name = properties.get("elem_id") or properties.get("label") or f"{components[number]['type']}-{number}"
            self.values[name] = properties.get("value")
        self.values |= {"cf-images": 1, "cf-candidates": 1, "Steps of the solver": 1}

    def join(self, function: str, data: list[Any]) -> requests.Response:
        """Put a call of a function into the queue."""
        body = {"fn_index": self.functions[function]["id"], "data": data, "session_hash": self.session_hash}
        return requests.post(f"{self.address}gradio_api/queue/join", json=body, timeout=TIMEOUT)

    def messages(self) -> list[dict]:
        """Of this session, until its calls are over."""
        url = f"{self.address}gradio_api/queue/data"
        with requests.get(url, params={"session_hash": self.session_hash}, stream=True, timeout=TIMEOUT) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines]

    def call(self, function: str, data: list[Any]) -> dict:
        """The last message of a call; `{}` if it was not let into the queue."""
        if not self.join(function, data).ok or not self.session_hash:
            return {}
        return next((message for message in self.messages() if message["msg"] == "process_completed"), {})

    def generate(self, **changes: Any) -> dict:
        return self.call("run", list((self.values | changes).values()))

    def take(self, file: dict | None, channels: str = "") -> dict:
        """Have a file read as a control."""
        return self.call("load", [file and {"meta": {"_type": "gradio.FileData"}, **file}, channels])

    def upload(self, name: str, content: bytes) -> requests.Response:
        """Under exactly this name: `requests` would quote it."""
        head = f'--part\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + b"\r\n--part--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=part"}
        return requests.post(f"{self.address}gradio_api/upload", body, headers=headers, timeout=TIMEOUT)

    def heartbeat(self, quoted: str) -> int:
        """Say that a session is there, and leave; its name is sent as it is written. Returns the status."""
        prepared = requests.Request("GET", f"{self.address}gradio_api/heartbeat/x").prepare()
        prepared.url = f"{self.address}gradio_api/heartbeat/{quoted}"
        with requests.Session() as session, session.send(prepared, stream=True, timeout=TIMEOUT) as answer:
            if answer.ok:
                next(answer.iter_lines())
            return answer.status_code


# --------------------------------------------------------------------------------------------------------------------
# Files that unpack to many times their size
# --------------------------------------------------------------------------------------------------------------------


@cache
def bombs() -> dict[str, bytes]:
    """By file name: each has less than 2 MB, and unpacks to 100 MB or more or claims to."""
    tiff = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    planar = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "metadata": None}
    large = np.zeros((6000, 6000), np.uint8)
    return {
        "large.png": _png(13_000, 13_000),
        "huge.png": _png(20_000, 20_000),
        "grey.png": _png(20_000, 20_000, colour=0),
        "planar.tif": _tiff(np.broadcast_to(large, (3, *large.shape)), **planar),
        "page.tif": _tiff(np.concatenate([large] * 3), **tiff),
        "pages.tif": _tiff(np.zeros((5000, 256, 256), np.uint8), **tiff),
        "strip.tif": _tiff_strip(16, 300 << 20),
        "wide.tif": _tiff_strip(512, 300 << 20),
        "zeros.npz": _npz("(8, 3, 4096, 4096)", "<f4", 1 << 20),
        "more.npz": _npz("(3, 16, 16)", "|u1", 300 << 20),
        "claims.npz": _npz("(99999999, 3, 96, 96)", "<f8", 1 << 10),
        "claims.npy": _npy_header("(99999999, 3, 96, 96)", "<f8"),
        "header.npz": _npz("(" * 60 + "1" + ")" * 60, "<f8", 100),
        "entries.npz": _many_entries(20_000),
    }


def _tiff(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


def _tiff_strip(side: int, size: int) -> bytes:
    """`side` x `side` pixels, of which the one strip unpacks to `size` bytes."""
    pixels = np.zeros((side, side), np.uint8)
    plain = bytearray(_tiff(pixels, photometric="minisblack", rowsperstrip=side, metadata=None))
    strip = _deflated_zeros(size)
    with tifffile.TiffFile(io.BytesIO(plain)) as tiff:
        tags = tiff.pages[0].tags
        places = {name: tags[name].valueoffset for name in ("Compression", "StripOffsets", "StripByteCounts")}
        sizes = {name: tags[name].dtype.name for name in places}
    for name, value in (("Compression", 8), ("StripOffsets", len(plain)), ("StripByteCounts", len(strip))):
        width = {"SHORT": 2, "LONG": 4}[sizes[name]]
        plain[places[name] : places[name] + width] = min(value, 256**width - 1).to_bytes(width, "little")
    return bytes(plain) + strip


def _png(width: int, height: int, colour: int = 2) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    pixels = _deflated_zeros(height * (1 + width * (3 if colour == 2 else 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _deflated_zeros(size: int) -> bytes:
    """As `zlib.compress` does, but of parts that are packed once."""
    packer, block = zlib.compressobj(9, wbits=-15), bytes(1 << 20)
    packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    part = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(block[: size % len(block)]) + packer.flush()
    checksum = (size % 65521 << 16 | 1).to_bytes(4, "big")  # Adler-32
    return b"\x78\xda" + part * (size // len(block)) + end + checksum


def _npy_header(shape: str, dtype: str) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _npz(shape: str, dtype: str, size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as member:
        member.write(_npy_header(shape, dtype))
        for _ in range(0, size, 1 << 20):
            member.write(bytes(min(size, 1 << 20)))
    return file.getvalue()


def _many_entries(count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for k in range(count):
            archive.writestr(f"{k}.npy", b"")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------------------
# The requests
# --------------------------------------------------------------------------------------------------------------------

Request = tuple[str, Callable[[], Any]]


def hostile_requests(address: str, place: Path) -> Iterator[Request]:
    """The kind of each request, and what sends it and returns the answer, its status or the last message.

    Args:
        address: Of the page.
        place: Folder that the canaries lie in.
    """
    yield from small_requests(address, place)
    for name, content in bombs().items():
        yield "unpacks to much", lambda name=name, content=content: _take_upload(Visitor(address), name, content)


def _take_upload(visitor: Visitor, name: str, content: bytes) -> Any:
    answer = visitor.upload(name, content)
    return visitor.take({"path": answer.json()[0]}) if answer.ok else answer


def small_requests(address: str, place: Path) -> Iterator[Request]:
    """All of them but the files that unpack to much."""
    port = urllib.parse.urlsplit(address).port
    names = [name.format(place=place) if "{place}" in name else name for name in NAMES]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 48, 48), np.uint8)
    array = io.BytesIO()
    np.save(array, pixels)
    for name in names:
        quoted = urllib.parse.quote(name[:2000], safe="")
        yield "session that is a path", lambda n=name: Visitor(address, n).generate()
        yield "session that is a path", lambda n=name: Visitor(address, n).take(None)
        yield "end of such a session", lambda q=quoted: Visitor(address).heartbeat(q or "%00")
        yield "file name", lambda n=name: _take_upload(Visitor(address), f"{n[:200]}.npy", array.getvalue())
        yield "path of a file", lambda n=name: Visitor(address).take({"path": n, "orig_name": n})
    for url in (f"http://127.0.0.1:{port}/config", "https://example.org/a.npy", "HTTP://example.org/a.npy"):
        yield "errand", lambda u=url: Visitor(address).take({"path": u, "url": u})
    for route in ROUTES:
        yield "route", lambda r=route: _get(address + r.format(place=place, port=port))
    for host in HOSTS:
        host = host.format(port=port)
        for method, path in (("GET", "/"), ("POST", "/gradio_api/queue/join")):
            yield "foreign host", lambda h=host, m=method, p=path: _as_host(port, h, m, p)
    for text in SCRIPTS:
        yield "script", lambda t=text: Visitor(address).generate(**{"cf-mode": "Paste a SMILES", "cf-smiles": t})
        yield "script", lambda t=text: Visitor(address).generate(**{"cf-compound": t, "cf-channel": t})
        yield "script", lambda t=text: Visitor(address).take(None, t)
    for name in ("cf-images", "cf-candidates", "Steps of the solver", "Seed"):
        for value in (10**12, -1, 1e308, "1; rm", None, [1], {"a": 1}):
            yield "value", lambda n=name, v=value: Visitor(address).generate(**{n: v})
    yield "large", lambda: requests.post(f"{address}gradio_api/queue/join", b"[" * 2**23, timeout=TIMEOUT)
    yield "large", lambda: Visitor(address).upload("a.npy", bytes(25 << 20))
    yield "large", lambda: Visitor(address).take(None, "x" * 2**20)
    for body in (
        b"",
        b"{",
        b"[" * 10_000,
        b"null",
        b"\xff" * 100,
        b'{"fn_index": -1, "data": [], "session_hash": "a"}',
    ):
        for route in ("queue/join", "cancel", "component_server", "call/run", "run/run", "upload"):
            yield "malformed", lambda b=body, r=route: _post(f"{address}gradio_api/{r}", b)


def _get(url: str) -> requests.Response:
    prepared = requests.Request("GET", "http://127.0.0.1/").prepare()
    prepared.url = url  # as it is, with its dots
    with requests.Session() as session:
        return session.send(prepared, timeout=TIMEOUT)


def _post(url: str, body: bytes) -> requests.Response:
    return requests.post(url, body, headers={"Content-Type": "application/json"}, timeout=TIMEOUT)


def _as_host(port: int, host: str, method: str, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def outcome(answer: Any) -> str:
    """In a word."""
    status = answer if isinstance(answer, int) else getattr(answer, "status_code", getattr(answer, "status", None))
    if status is not None:
        return str(status)
    return "not queued" if not answer else "answered" if answer.get("success") else "error"


def harm(answer: Any) -> str | None:
    """What an answer holds that it must not: a canary, or a script on the page."""
    text = answer.text if isinstance(answer, requests.Response) else json.dumps(answer, default=str)
    if CANARY in text:
        return "a canary"
    is_shown = isinstance(answer, dict) and answer.get("success")
    data = json.dumps(answer["output"]["data"], ensure_ascii=False) if is_shown else ""
    return next((script for script in SCRIPTS if script.startswith("<") and script in data), None)


# --------------------------------------------------------------------------------------------------------------------
# What must not change
# --------------------------------------------------------------------------------------------------------------------


def lay_out(place: Path) -> None:
    """Put the canaries into a folder."""
    for name in CANARIES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(CANARY)


def foreign_files(place: Path) -> dict[str, str]:
    """SHA-256 of all that lies in a folder, but for the app's own folders; "" for a folder."""
    found = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*"))}
    own = {name: path for name, path in found.items() if not name.startswith(OWN)}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for name, p in own.items()}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lay_out(place)
        environment = {**os.environ, "TMPDIR": str(place / "tmp"), "HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-m", "cellfluxrl.commands.cli", "app", "--cpu"]
        with subprocess.Popen(
            words, cwd=place / "home", env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                lines = iter(server.stdout.readline, "")
                address = next(m.group(1) for line in lines if (m := re.search(r"the app is at (http://\S+)", line)))
                return _attack(address, place, server.pid)
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(60)


def _attack(address: str, place: Path, server: int) -> int:
    assert Visitor(address).generate()["success"]
    before, base = foreign_files(place), _peak_memory(server)
    outcomes: dict[str, Counter] = {}
    harmful, slowest = [], (0.0, "")
    for kind, send in hostile_requests(address, place):
        start = time.monotonic()
        try:
            answer = send()
        except (requests.RequestException, http.client.HTTPException, UnicodeError) as error:
            answer = {"success": False, "raised": type(error).__name__}
        slowest = max(slowest, (time.monotonic() - start, kind))
        outcomes.setdefault(kind, Counter())[outcome(answer)] += 1
        harmful += [f"{found} ({kind})"] if (found := harm(answer)) else []
    for kind, counted in outcomes.items():
        print(f"{kind:24} {counted.total():4}   " + ", ".join(f"{word}: {n}" for word, n in sorted(counted.items())))
    after, peak = foreign_files(place), _peak_memory(server)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    escaped = [path for path in (Path("/tmp/escaped-from-the-app"), Path("/escaped")) if path.exists()]
    still = Visitor(address).generate().get("success", False)
    print(f"requests: {sum(counted.total() for counted in outcomes.values())}")
    print(f"changed outside of the app's folders: {[*changed, *map(str, escaped)] or 'nothing'}")
    print(f"answers with what is none of the app's, or with a script: {harmful or 'none'}")
    print(f"slowest: {slowest[0]:.1f} s ({slowest[1]})")
    print(f"peak memory of the server: {peak} MB, after one generation {base} MB")
    print(f"an ordinary visitor afterwards: {'served' if still else 'NOT SERVED'}")
    return int(bool(changed or escaped or harmful or not still))


def _peak_memory(pid: int) -> int:
    return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) // 1024


if __name__ == "__main__":
    sys.exit(main())
