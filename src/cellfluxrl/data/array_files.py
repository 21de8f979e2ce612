"""Images in `.npy` and `.npz` files, which may come from anybody: sizes are known before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellfluxrl.data.building.fields import ImageError
from cellfluxrl.data.building.zip_archive import BoundedReader

MAX_BYTES = 2**30  # of an array that is unpacked whole
MAX_BYTES_AT_ONCE = 2**20  # numpy asks for a quarter of it
IMAGES = "images"  # the array of an `.npz` that holds several


def open_array(file: Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Open the array of a file; the last one stays open, until its file is another.

    Args:
        file: `.npy`, which is mapped; or `.npz`, which is unpacked: its only array, or the one named `images`.
        max_bytes: An `.npz` whose array has more is refused.

    Raises:
        ImageError: If it cannot be read, or is too large.
        OSError: If there is no such file.
    """
    stat = file.stat()
    return _open_array(file, max_bytes, (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=1)  # the images of a file are read one after the other
def _open_array(file: Path, max_bytes: int, _version: tuple[int, int]) -> np.ndarray:
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        return _unpack(file, max_bytes)
    except (ValueError, OSError):
        raise
    except Exception as error:  # on damaged files numpy and zipfile raise whatever they stumble over
        raise ImageError(f"damaged, {type(error).__name__}: {str(error)[:200]}") from error


def _unpack(file: Path, max_bytes: int) -> np.ndarray:
    with BoundedReader(FileIO(file)) as opened:
        opened.limit = MAX_BYTES_AT_ONCE
        archive = zipfile.ZipFile(opened)
        members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if len(members) != 1 and IMAGES not in members:
            raise ImageError(f"it holds the arrays {list(members)[:20]}: name that of the images {IMAGES!r}")
        member = members[IMAGES] if IMAGES in members else next(iter(members.values()))
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError("its compression is not one of numpy's")
        with archive.open(member) as packed:
            shape, dtype = _header(packed)
        size = math.prod(shape) * dtype.itemsize
        if size > max_bytes:
            raise ImageError(
                f"{size} bytes unpacked, more than the {max_bytes} that are read of an .npz; an .npy is read image "
                "by image"
            )
        with archive.open(member) as packed:
            return np.lib.format.read_array(packed, allow_pickle=False)


def _header(packed: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(packed)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ImageError(f"version {version} of numpy's format, which is not for images")
    shape, _, dtype = read(packed)
    return shape, dtype
