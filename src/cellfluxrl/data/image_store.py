"""The crops of a data set, decoded once into one file of uint8 pixels from which training reads at random."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from cellfluxrl.data.images import from_rgb
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.files import contained_path, write_whole

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHUNK_BYTES = 32 * 2**20  # of pixels that are decoded at once
PROGRESS_FROM = 10_000  # crops


class StoredImages:
    """The `(N, C, H, W)` uint8 images of a `.npy` file: `images[rows]` reads copies of them from the file.

    Reads, not a memory map: the pages of a map count as resident memory of every process that has touched them, and
    batch schedulers kill jobs for it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape, self.dtype, self._offset = array.shape, array.dtype, array.offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Read one image, a slice of them, or those of an array or tensor of row numbers."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if rows.dtype.kind not in "iu":
            raise IndexError(f"images are chosen by row number, got an index of type {rows.dtype}")
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"row {rows.min() if rows.min() < 0 else rows.max()} is not in 0..{len(self) - 1}")
        images = np.empty((*rows.shape, *self.shape[1:]), dtype=np.uint8)
        size = math.prod(self.shape[1:])
        # Opened anew each time: an instance can be sent to another process, and forks share no position in the file.
        with open(self.path, "rb", buffering=0) as file:
            for image, row in zip(images.reshape(-1, size), rows.ravel().tolist(), strict=True):
                file.seek(self._offset + row * size)
                if file.readinto(image) != size:
                    raise OSError(f"{self.path} ends within row {row}; delete it to have it written again")
        return images

    def __array__(self, dtype: np.dtype | None = None, *, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)


def open_images(dataset: datasets.Dataset, cache_dir: str | Path | None = None) -> StoredImages | np.ndarray:
    """Open the images of a data set, `(N, C, H, W)` uint8, for fast random access, in the order of its rows.

    They are decoded the first time, into a file that is named after the data set's fingerprint and lies beside its
    Arrow files. A data set in memory, which has no files, is decoded into memory, unless there is a `cache_dir`.

    Args:
        dataset: Rows of the cell schema ([`cell_features`]), as they are in memory or as published; possibly selected,
            filtered or shuffled.
        cache_dir: Folder of the file, instead of the data set's own. A folder that cannot be written is replaced by
            one for temporary files, with a warning.

    Raises:
        ValueError:
            If the data set is empty or names no channels, or an image is missing, cannot be decoded, or differs in
            size from the first.
        OSError: If the file cannot be written, for example for want of space. No part of it is left.
    """
    shape = _shape_of(dataset)
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if cache_dir is None and not files:
        images = np.empty(shape, dtype=np.uint8)
        for start, crops in _decoded_chunks(dataset, shape):
            images[start : start + len(crops)] = crops
        return images

    folder = Path(cache_dir) if cache_dir is not None else files[0].parent
    # A fingerprint may depend on where the Arrow files are and not on what they hold, hence their size and time.
    stamps = repr([(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)])
    stamp = hashlib.sha256(stamps.encode()).hexdigest()[:8]
    # The fingerprint of a data set that was saved or downloaded is what a file of it says.
    path = contained_path(folder, f"images-{dataset._fingerprint}-{stamp}-v{FORMAT_VERSION}.npy")
    if not _is_whole(path, shape):
        path = _writable(folder) / path.name
        if not _is_whole(path, shape):
            _write(dataset, path, shape)
    return StoredImages(path)


def _shape_of(dataset: datasets.Dataset) -> tuple[int, int, int, int]:
    names, feature = channel_names_of(dataset), dataset.features["image"]
    if len(dataset) == 0:
        raise ValueError("the data set has no rows: there are no images to open")
    if isinstance(feature, datasets.Array3D):
        if feature.dtype != "uint8" or feature.shape[0] != len(names):
            raise ValueError(
                f"images must be uint8 with the channels {names}, got {feature.dtype} of shape {feature.shape}"
            )
        return len(dataset), *feature.shape
    if len(names) != 3:
        raise ValueError(f"an RGB image holds three channels, the data set names {len(names)}: {names}")
    first = dataset.with_format("arrow", columns=["image"])[:1]["image"][0].as_py()
    return len(dataset), *_decode_picture(first, 0).shape


def _decoded_chunks(dataset: datasets.Dataset, shape: tuple[int, int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of each chunk and its images, `(n, C, H, W)`."""
    decode = _decode_arrays if isinstance(dataset.features["image"], datasets.Array3D) else _decode_pictures
    arrow = dataset.with_format("arrow", columns=["image"])
    rows = max(1, CHUNK_BYTES // math.prod(shape[1:]))
    with datasets.utils.tqdm(
        total=len(dataset), unit=" crops", desc="decoding", disable=len(dataset) < PROGRESS_FROM
    ) as progress:
        for start in range(0, len(dataset), rows):
            crops = decode(arrow[start : start + rows]["image"], shape[1:], start)
            yield start, crops
            progress.update(len(crops))


def _decode_pictures(column: pa.ChunkedArray, shape: tuple[int, int, int], start: int) -> np.ndarray:
    crops = np.empty((len(column), *shape), dtype=np.uint8)
    for i, value in enumerate(column.to_pylist()):
        crop = _decode_picture(value, start + i)
        if crop.shape != shape:
            raise ValueError(f"the image of row {start + i} has shape {crop.shape}, those before it {shape}")
        crops[i] = crop
    return crops


def _decode_picture(value: dict | None, row: int) -> np.ndarray:
    if value is None:
        raise ValueError(f"row {row} has no image")
    try:
        with Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except (OSError, SyntaxError) as error:  # Pillow raises both for a broken PNG
        raise ValueError(f"the image of row {row} cannot be decoded: {error}") from error
    if mode != "RGB":
        raise ValueError(f"the image of row {row} has mode {mode!r}; cells of three channels are stored as 'RGB'")
    return from_rgb(pixels)


def _decode_arrays(column: pa.ChunkedArray, shape: tuple[int, int, int], start: int) -> np.ndarray:
    crops = []
    for chunk in column.chunks:
        values = chunk.storage  # nested lists, of which nothing checks that they have the feature's shape
        for axis, size in enumerate(shape):
            lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != size)
            if len(wrong):
                row = start + wrong[0] // math.prod(shape[:axis])
                raise ValueError(
                    f"the image of row {row} has length {lengths[wrong[0]]} along axis {axis}; all must have the "
                    f"shape {shape}"
                )
            values = values.flatten()
        crops.append(values.to_numpy(zero_copy_only=False).reshape(-1, *shape))
        start += len(chunk)
    return np.concatenate(crops)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):  # absent, empty, truncated, or something else
        return False
    return images.shape == shape and images.dtype == np.uint8


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        other = Path(tempfile.gettempdir()) / f"cellfluxrl-{user}"
        logger.warning("cannot write to %s (%s): the decoded images go to %s", folder, error.strerror, other)
        other.mkdir(mode=0o700, exist_ok=True)
        return other


def _write(dataset: datasets.Dataset, path: Path, shape: tuple[int, int, int, int]) -> None:
    def decode(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for _, crops in _decoded_chunks(dataset, shape):
                file.write(crops.data)
            file.flush()
            os.fsync(file.fileno())

    try:
        write_whole(path, decode, shared=True)
    except OSError as error:
        needed = f"{math.prod(shape) / 1e9:.1f} GB of decoded images cannot be written: {error.strerror}"
        raise OSError(error.errno, needed, str(path)) from error
