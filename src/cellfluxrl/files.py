"""Files that are whole or not there, and names from elsewhere that stay in their folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MAX_NAME_BYTES = 255  # of one file or folder, on every common file system
RESERVED = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.IGNORECASE)
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
    for partial in path.parent.glob(f".partial-*-{path.name}"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


@contextmanager
def locked(folder: str | Path, refusal: str) -> Iterator[None]:
    """Make a folder, and lock other processes out of it while the block runs.

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


def contained_path(folder: str | Path, *names: str, follow_links: bool = False) -> Path:
    """Join names that somebody else has chosen to a folder, and see that they stay inside of it.

    Args:
        folder: What must not be left.
        names: One for each level below it: sub-folders, and last the file. It need not exist.
        follow_links: Whether a symbolic link below `folder` may lead out of it. Users link folders of images that
            lie on other disks; where something is written or removed, nothing is followed.

    Returns:
        `folder / names[0] / names[1] ...`.

    Raises:
        ValueError: If there are no names; or one is empty, `.` or `..`, has a separator, a drive or a character that
            is not printed, is reserved on Windows or longer than `MAX_NAME_BYTES` bytes; or a link leads out.

    Example:
        >>> contained_path("cells", "train", "plate_1.parquet").as_posix()
        'cells/train/plate_1.parquet'
        >>> contained_path("cells", "../plate_1.parquet")
        Traceback (most recent call last):
        ...
        ValueError: '../plate_1.parquet' cannot be the name of a file or folder in 'cells': it has a separator
    """
    folder = Path(folder)
    where = f"cannot be the name of a file or folder in {str(folder)!r}"
    for name in names or ("",):
        if reason := refusal_of_name(name):
            raise ValueError(f"{name!r} {where}: {reason}")
    path = folder.joinpath(*names)
    if not follow_links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{'/'.join(names)!r} {where}: a link leads out of the folder")
    return path


def refusal_of_name(name: str) -> str | None:
    """Why a name cannot be that of one file or folder on every system, or `None` if it can."""
    if name == "":
        return "it is empty"
    if name in (".", ".."):
        return "it leads to another folder"
    if "/" in name or "\\" in name:
        return "it has a separator"
    if not name.isprintable():
        return "it has a character that is not printed"
    if re.match("[A-Za-z]:", name):
        return "it begins with a drive"
    if name[-1] in ". ":
        return "it ends in a dot or a space, which Windows leaves out"
    if RESERVED.fullmatch(name):
        return "it is reserved on Windows"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has {len(name.encode())} bytes, at most {MAX_NAME_BYTES} are possible"
    return None


def file_name(text: str, max_bytes: int = 80) -> str:
    """Make the name of a file or folder of any text, such as the name of a compound.

    Args:
        text: Everything but letters, digits, `_`, `.`, `+` and `-` becomes `_`.
        max_bytes: Of the name; what is too much is cut off.

    Returns:
        A name that [`contained_path`] takes. Two texts may become the same name.

    Example:
        >>> file_name("Cdk1/2 inhibitor (NU6102)"), file_name("../../etc"), file_name("?")
        ('Cdk1_2_inhibitor_NU6102', 'etc', 'unnamed')
    """
    name = _cut(re.sub(r"[^\w.+-]+", "_", text), max_bytes)
    if RESERVED.fullmatch(name):
        name = _cut(f"name_{name}", max_bytes)
    return name or "unnamed"


def _cut(name: str, max_bytes: int) -> str:
    return name.strip("._").encode()[:max_bytes].decode(errors="ignore").strip("._")
