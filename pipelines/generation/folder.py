"""The folder of a run that generates: who may write to it, what is finished, and with what it was made."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfluxrl.files import contained_path, write_whole

logger = logging.getLogger(__name__)

TABLE = "generated.parquet"
PROVENANCE = "provenance.json"
FINISHED = ".finished"  # folder with the table of each finished batch
RESULTS = (TABLE, PROVENANCE, FINISHED, "images", "data", "README.md")  # what a run leaves in its folder
# What the images follow from, and how a difference is reported: a run resumes only where all of it is the same.
COMPARED = {
    "components": "another",
    "settings": "",
    "controls_sha256": "other controls",
    "treatments": "other compounds",
}
PACKAGES = ("cellfluxrl", "torch", "diffusers", "numpy", "scikit-image", "scipy", "opencv-python-headless", "cellpose")


def resume(folder: Path, provenance: dict[str, Any], *, overwrite: bool) -> tuple[list[dict[str, Any]], bool]:
    """Find the earlier sessions of a run, and whether it is finished; refuse a folder that holds anything else."""
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found and PROVENANCE not in found:
        raise ValueError(f"{str(folder)!r} holds {found[:5]}, and no generated images: choose another --output_dir")
    if overwrite or not found:
        _clear(folder)
        return [], False
    try:
        before = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        sessions, is_complete = before["sessions"], before["complete"]
    except (ValueError, KeyError, TypeError):
        message = f"{folder / PROVENANCE} is damaged: choose another --output_dir or pass --overwrite"
        raise ValueError(message) from None
    differing = _difference(before, provenance)
    if differing and not is_complete and count_finished(folder) == 0:  # an attempt that failed at its first image
        _clear(folder)
        return [], False
    if differing:
        raise ValueError(
            f"{str(folder)!r} holds images that were made with {differing}: choose another --output_dir, resume "
            "with what it was begun with, or pass --overwrite"
        )
    if is_complete:
        shutil.rmtree(folder / FINISHED, ignore_errors=True)
    return sessions, is_complete


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Describe the first difference in what the images follow from."""
    for key, words in COMPARED.items():
        old, new = before.get(key), now[key]
        if old == new:
            continue
        if not isinstance(old, dict):
            return words
        name = next(name for name in (*new, *old) if old.get(name) != new.get(name))
        return f"{words} {name}" if words else f"{name} {old.get(name)!r} instead of {new.get(name)!r}"
    return None


def _clear(folder: Path) -> None:
    for path in (folder / name for name in RESULTS):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def record_batch(folder: Path, number: int, table: pd.DataFrame) -> None:
    """Record that a batch is finished, once its images are written."""
    write_whole(_record(folder, number), table.to_parquet)


def read_batch(folder: Path, number: int) -> pd.DataFrame | None:
    """The table of a batch, if it is finished and its images are there."""
    try:
        table = pq.ParquetFile(_record(folder, number)).read().to_pandas()
    except (OSError, pa.ArrowInvalid):  # absent; or, after a power failure, not whole
        return None
    files = [contained_path(folder, *name.split("/")) for name in table.get("file", ())]
    return table if all(path.is_file() for path in files) else None


def count_finished(folder: Path) -> int:
    """Count the images of finished batches."""
    finished = 0
    for path in (folder / FINISHED).glob("[0-9]*.parquet"):
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            finished += pq.read_metadata(path).num_rows
    return finished


def _record(folder: Path, number: int) -> Path:
    return folder / FINISHED / f"{number:06d}.parquet"


@contextlib.contextmanager
def session(
    folder: Path, provenance: dict[str, Any], earlier: list[dict[str, Any]], device: str
) -> Iterator[dict[str, Any]]:
    """Write `provenance.json` with the times, devices and versions of all sessions; `"images"` is to be counted up."""
    entry: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": None,
        "images": 0,
        "device": device,
        "versions": _versions(),
    }
    if earlier and earlier[-1]["versions"] != entry["versions"]:
        logger.warning("the images so far were made with other versions of packages, see %s", folder / PROVENANCE)
    begin = time.monotonic()

    def save(*, is_complete: bool) -> None:
        text = json.dumps({"complete": is_complete, **provenance, "sessions": [*earlier, entry]}, indent=1)
        write_whole(folder / PROVENANCE, lambda partial: partial.write_text(text, encoding="utf-8"))

    save(is_complete=False)
    try:
        yield entry
    except BaseException:
        entry["seconds"] = round(time.monotonic() - begin, 1)
        with contextlib.suppress(OSError):  # the disk may be full, which is what is reported then
            save(is_complete=False)
        raise
    entry["seconds"] = round(time.monotonic() - begin, 1)
    save(is_complete=True)
    shutil.rmtree(folder / FINISHED)


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
