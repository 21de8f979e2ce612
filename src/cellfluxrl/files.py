"""Files that are whole or not there, whenever the process that writes them is killed."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

STALE_SECONDS = 3600  # a file that is being written changes every few seconds


def write_whole(path: str | Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """Have `write` make a file beside `path`, and move it there once it is whole.

    Args:
        path: The file; its folder is made.
        write: Called with the path of a new file, whose name ends as that of `path` does.
        shared: Whether several processes may write it at the same time: each then makes another file, and what
            killed ones left there an hour ago is removed.

    Example:
        >>> write_whole("runs/settings.json", lambda path: path.write_text("{}"))      # doctest: +SKIP
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        _remove_stale(path)
    owner = f"{uuid.uuid4().hex}-" if shared else ""
    partial = path.with_name(f".partial-{owner}{path.name}")  # ends as `path` does: writers go by that
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f".partial-*-{path.name}"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()


@contextmanager
def locked(folder: str | Path, refusal: str) -> Iterator[None]:
    """Make a folder, and keep other processes that lock it out for as long as the block runs.

    Raises:
        ValueError: With the text `refusal` if another process is in it; or if it is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file, but must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(refusal) from None
    try:
        yield
    finally:
        lock.release()


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
