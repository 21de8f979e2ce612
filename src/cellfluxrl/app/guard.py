"""What the server of the app refuses before gradio sees it: requests for other hosts, large ones, and errands."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections import deque
from collections.abc import Sequence

import psutil
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY_ADDRESS = ("0.0.0.0", "::", "")
MAX_BODY = 2**18  # bytes of a request that uploads nothing; the page sends less than a hundredth of it
MAX_KEPT = 2**31  # bytes of all uploads that are kept at a time


def allowed_hosts(host: str, more: Sequence[str] = ()) -> list[str]:
    """The names that the page may be asked for by; a page of another site can have any other name lead here.

    Args:
        host: Address that the server listens on.
        more: Names besides, such as that of a proxy; `*.name` stands for all names below one.

    Returns:
        Those of this machine as far as the server can be reached by them, that of the Hugging Face Space that it runs
        in (`SPACE_HOST`), and `more`.

    Raises:
        ValueError: If one of `more` has a `*` elsewhere.
    """
    for name in more:
        if "*" in name.removeprefix("*.") and name != "*":
            raise ValueError(f"a host is a name, or '*.name' for all names below one, got {name!r}")
    hosts = {"localhost", "127.0.0.1", "[::1]", *more}
    if host in ANY_ADDRESS:
        own = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
        own = [address.address for address in own if address.family in (socket.AF_INET, socket.AF_INET6)]
        hosts |= {_bracketed(address.partition("%")[0]) for address in own}
        hosts |= {socket.gethostname(), socket.getfqdn()}
    else:
        hosts.add(_bracketed(host))
    if space := os.environ.get("SPACE_HOST"):
        hosts |= {*space.split(","), "*.hf.space"}
    return sorted(hosts)


def _bracketed(host: str) -> str:
    """As in a URL."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


class RequestGuard:
    """ASGI middleware that bounds what one request and all uploads together bring, and sends the server nowhere.

    Args:
        app: What it guards.
        max_upload: Bytes of one upload.
        keep_seconds: How long uploads are kept. Together they have at most `MAX_KEPT` bytes.
    """

    def __init__(self, app: ASGIApp, max_upload: int, keep_seconds: float) -> None:
        self.app, self.max_upload, self.keep_seconds = app, max_upload, keep_seconds
        self._uploads: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if "/file=http" in path or "/proxy=" in path:  # gradio would fetch that for whoever asks
            await PlainTextResponse("this server fetches nothing", 403)(scope, receive, send)
            return
        is_upload = path.rstrip("/").endswith("/upload")
        limit = self._room() if is_upload else MAX_BODY
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"more than the {limit} bytes that this server takes")
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            if is_upload:
                self._uploads.append((time.monotonic(), received))

    def _room(self) -> int:
        """Bytes that may be uploaded now."""
        while self._uploads and self._uploads[0][0] < time.monotonic() - self.keep_seconds:
            self._uploads.popleft()
        return min(self.max_upload, MAX_KEPT - sum(size for _, size in self._uploads))
