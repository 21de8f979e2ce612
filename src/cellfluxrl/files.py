"""Files that are whole or not there, whenever the process that writes them is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `path`, and move it there once it is whole.

    Args:
        path: The file; its folder is made.
        write: Called with the path of a new file, whose name ends as that of `path` does.

    Example:
        >>> write_whole("runs/settings.json", lambda path: path.write_text("{}"))      # doctest: +SKIP
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")  # ends as `path` does: writers go by that
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
