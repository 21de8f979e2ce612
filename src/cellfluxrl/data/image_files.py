"""Images to score, from data sets, folders and files, read one by one so that a bad one spoils nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from cellfluxrl.data.array_files import MAX_BYTES, open_array
from cellfluxrl.data.building.fields import TIFF_MAGICS, ImageError, check_compression, read_image
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import as_model_images, from_rgb, to_unit
from cellfluxrl.data.schema import channel_names_of, channel_order
from cellfluxrl.data.tables import read_table, refuse
from cellfluxrl.files import contained_path

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz")
MAX_VALUES = 2**24  # of one image over all channels, such as 3 x 2364 x 2364; images are of single cells


@dataclass(frozen=True)
class ImagesToScore:
    """Images that are read one by one.

    Args:
        rows: One row an image: `source` says where it is from, `moa` what it is compared with, and the other columns
            (compound, plate, well, ...) what it is.
        read: Reads the image of a row: `(C, H, W)`, uint8 or float32 in [0, 1]. Raises a `ValueError` or `OSError` for
            one that cannot be used.
        skipped: Files that could not be opened, each with the reason.
    """

    rows: pd.DataFrame
    read: Callable[[int], np.ndarray]
    skipped: list[str] = field(default_factory=list)


def images_of_dataset(
    cells: datasets.Dataset, channel_names: Sequence[str], moa: str | None = None, whose: str = "the suite"
) -> tuple[ImagesToScore, int]:
    """Take the images of a data set, and count the rows that were left out because they have no MoA.

    Args:
        cells: Rows of the cell schema ([`cell_features`]); only `image` is needed, and `moa` unless given.
        channel_names: The channels that are wanted, in the order that the images shall have.
        moa: Compare all with real cells of this MoA, instead of each with those of its MoA.
        whose: What the channels are those of, for the message.
    """
    order = channel_order(channel_names_of(cells), channel_names, whose)
    if moa is None and "moa" not in cells.column_names:
        raise ValueError(f"the data set has no column 'moa': name one MoA for all; its columns: {cells.column_names}")
    rows = cells.remove_columns("image").to_pandas()
    rows.insert(0, "source", [f"row {i}" for i in range(len(rows))])
    if moa is not None:
        rows["moa"] = moa
    kept = np.flatnonzero(rows["moa"].fillna("") != "")
    if len(kept) == 0:
        raise ValueError("no image of the data set has a MoA: name one for all")
    images = open_images(cells)

    def read(row: int) -> np.ndarray:
        return images[int(kept[row])][order]

    return ImagesToScore(rows.iloc[kept].reset_index(drop=True), read), len(rows) - len(kept)


def images_of_files(
    path: str | Path,
    channel_names: Sequence[str],
    moa: str | None = None,
    table: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> ImagesToScore:
    """Take the images of a file or of a folder.

    PNG in RGB (three channels: red is the last, blue the first) or grey (one channel), TIFF and OME-TIFF `(C, H, W)`,
    and `.npy` and `.npz` of `(C, H, W)` or `(N, C, H, W)`. Arrays are uint8, or floats in [0, 1] or [-1, 1]; an
    `.npz` holds one array, or several of which one is named `images`. It is read whole, an `.npy` image by image.
    Nothing is unpacked before its size is known: an image of more than `MAX_VALUES` values is left out.

    Args:
        path: A file; or a folder, with one sub-folder a MoA unless `moa` or `table` is given.
        channel_names: The channels of the images, in order.
        moa: Compare all with real cells of this MoA.
        table: CSV file with the columns `file` (relative to the folder) and `moa`; further columns are kept.
        max_bytes: An `.npz` that unpacks to more is left out.
    """
    path = Path(path)
    listed = _listed_files(path, moa, table)
    rows, places, skipped = [], [], []
    for entry in listed.to_dict(orient="records"):
        name = entry.pop("file")
        try:
            file = contained_path(path, *PurePosixPath(name).parts, follow_links=True) if path.is_dir() else path
            count = _count_images(file, max_bytes)
        except (ValueError, OSError, EOFError) as error:
            skipped.append(_named(name, error))
            continue
        for i in range(count or 1):
            rows.append({"source": name if count is None else f"{name}[{i}]", **entry})
            places.append((file, name, None if count is None else i))
    if not rows:
        raise ValueError(f"no image can be read of the {len(skipped)} files; the first: {skipped[0]}")

    def read(row: int) -> np.ndarray:
        return _read_image_of(*places[row], tuple(channel_names), max_bytes)

    return ImagesToScore(pd.DataFrame(rows), read, skipped)


def _listed_files(path: Path, moa: str | None, table: str | Path | None) -> pd.DataFrame:
    """Columns `file`, `moa`, and those of the table."""
    if table is not None:
        return _read_table(path, table, moa)
    if path.is_file():
        files = [path.name]
    else:
        files = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{str(path)!r} holds no images ({', '.join(SUFFIXES)}), and is not a data set")
    if moa is not None:
        return pd.DataFrame({"file": files, "moa": moa})
    loose = [name for name in files if "/" not in name]
    if loose:
        raise ValueError(
            f"nothing says the MoA of {loose[0]!r}: name one for all (--moa), put the images into one sub-folder a "
            "MoA, or list them in a CSV file (--table)"
        )
    return pd.DataFrame({"file": files, "moa": [name.split("/")[0] for name in files]})


def _read_table(path: Path, table: str | Path, moa: str | None) -> pd.DataFrame:
    if not path.is_dir():
        raise ValueError(f"a table lists the files of a folder; {str(path)!r} is not one")
    table = Path(table)
    listed = read_table(table, ["file"] if moa else ["file", "moa"])
    if moa is not None:
        listed["moa"] = moa
    for column in ("file", "moa"):
        refuse(listed, table, column, listed[column] == "", "it is needed")
    return listed


def _count_images(file: Path, max_bytes: int) -> int | None:
    """Images in an array file; None for a file of one image."""
    if file.suffix.lower() not in (".npy", ".npz"):
        if not file.is_file():
            raise FileNotFoundError("there is no such file")
        return None
    array = open_array(file, max_bytes)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ImageError(f"an array of (C, H, W) or (N, C, H, W) is needed, it is {array.shape}")
    _check_size(array.shape[-3:])
    return len(array) if array.ndim == 4 else None


def _check_size(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise ImageError(f"an image of shape {shape} has more than the {MAX_VALUES} values that are read")


def _read_image_of(
    file: Path, name: str, index: int | None, channel_names: tuple[str, ...], max_bytes: int
) -> np.ndarray:
    suffix = file.suffix.lower()
    if suffix in (".npy", ".npz"):
        image = _from_array(file, index, max_bytes)
    elif suffix == ".png" and len(channel_names) == 3:
        image = _read_rgb(file, name)
    elif suffix == ".png":
        image = read_image(file, name, max_pixels=MAX_VALUES)[None]
    else:
        image = _read_planes(file, name, len(channel_names))
    in_model_range = as_model_images(image, channel_names)[0]  # or it raises what is wrong
    return image if image.dtype == np.uint8 else to_unit(in_model_range).numpy()


def _read_rgb(file: Path, name: str) -> np.ndarray:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            _check_size((len(image.getbands()), image.height, image.width))
            mode, pixels = image.mode, np.asarray(image)
    except (SyntaxError, OSError, Image.DecompressionBombError) as error:  # Pillow raises these for a broken PNG
        raise ImageError(f"{name}: damaged, or not a PNG: {error}") from error
    if mode != "RGB":
        raise ImageError(f"{name}: images of three channels are PNGs in RGB, this one has mode {mode!r}")
    return from_rgb(pixels)


def _read_planes(file: Path, name: str, channels: int) -> np.ndarray:
    """The planes of a TIFF, `(C, H, W)`."""
    with file.open("rb") as opened:
        if opened.read(4) not in TIFF_MAGICS:
            raise ImageError(f"{name}: not a TIFF")
    try:
        with tifffile.TiffFile(file, is_ome=False) as tiff:
            page = tiff.pages[0]
            for shape in ((page.samplesperpixel, page.imagedepth, page.imagelength, page.imagewidth), page.chunks):
                _check_size(shape)
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
                # How tifffile writes three uint8 planes by default. It would fill what is missing with 0.
                if max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) > tiff.filehandle.size:
                    raise ImageError("truncated")
                check_compression(page)
                return page.asarray()
            if page.samplesperpixel > 1:
                raise ImageError("its colours are not planes: channels come before height and width")
            count = max(len(tiff.pages), len(tiff.series[0]))
            if count > channels:
                raise ImageError(f"it has {count} planes, and the channels are {channels}")
    except Exception as error:  # on damaged data tifffile raises whatever it stumbles over
        raise ImageError(f"{name}: {error}") from error
    return np.stack([read_image(file, name, page=k, max_pixels=MAX_VALUES // count) for k in range(count)])


@lru_cache(maxsize=1)
def _has_negative(file: Path, max_bytes: int) -> bool:
    """Whether the floats of a file lie in [-1, 1]: what one image alone may not show."""
    array = open_array(file, max_bytes)
    return any(bool((part < 0).any()) for part in (array if array.ndim == 4 else array[None]))


def _from_array(file: Path, index: int | None, max_bytes: int) -> np.ndarray:
    array = open_array(file, max_bytes)
    if index is not None and index >= len(array):
        raise ImageError(f"it held more than {len(array)} images when it was opened first")
    image = np.array(array if index is None else array[index])
    if np.issubdtype(image.dtype, np.floating) and _has_negative(file, max_bytes):
        return to_unit(image)
    return image


def _named(name: str, error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"
