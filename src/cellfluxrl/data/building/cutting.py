"""One plate of microscope images -> crops around its nuclei, with illumination and intensities evened out.

A plate is read once. Nuclei are found and raw crops cut field by field, while block means of all fields are summed;
then the crops, not the fields, are divided by the illumination at their place, and stretched by percentiles of all
cells of the plate. Crops wait in a scratch folder, so that memory holds a few fields a process whatever the plate.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfluxrl.data.building.downloads import ArchiveError
from cellfluxrl.data.building.fields import ImageError, read_image
from cellfluxrl.data.building.illumination import block_mean, crop_corners, illumination_at, illumination_function
from cellfluxrl.data.building.normalization import LEVELS, intensity_histogram, plate_stretch, to_8_bits
from cellfluxrl.data.building.nuclei import MIN_DIAMETER, find_nuclei
from cellfluxrl.data.building.zip_archive import PlateArchive
from cellfluxrl.data.cells import FIELD_COLUMNS, ROW_COLUMNS, Cells, Map, PlateLog

FIELDS_PER_CHUNK = 8
BLOCK = 16
ILLUMINATION_WINDOW = 1 / 8  # of the field's width
MIN_FIELDS_FOR_ILLUMINATION = 20


@dataclass(frozen=True)
class ImageFile:
    """Where one channel of a field of view is: a file, or an entry of a ZIP archive; `page` of a file of several."""

    path: str
    archive: str | None = None
    page: int | None = None


@dataclass(frozen=True)
class CropSettings:
    """How crops are cut: sizes in pixels of the field of view, and the index of the channel that stains DNA.

    They are resized to `image_size`.
    """

    crop_size: int
    image_size: int
    nucleus_diameter: float
    nucleus_channel: int = 0

    def __post_init__(self) -> None:
        for name, least in (("crop_size", 1), ("image_size", 1), ("nucleus_diameter", MIN_DIAMETER)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least {least} pixels, got {getattr(self, name)}")


@dataclass(frozen=True)
class FieldCrops:
    """The uncorrected crops of one field of view, and block means of the field for the illumination."""

    crops: np.ndarray  # (N, C, S, S), uint16
    centres: np.ndarray  # (N, 2), row and column of the nuclei
    near_border: int  # nuclei whose crop would leave the field
    means: np.ndarray  # (C, h, w)


@dataclass(frozen=True)
class _Field:
    name: str
    site: int
    images: tuple[ImageFile, ...]


@dataclass(frozen=True)
class _Chunk:
    """Fields of view that are worked on together, and the file where their crops wait."""

    fields: list[_Field]
    path: Path


@dataclass(frozen=True)
class _CutField:
    """What is known of a field while its crops wait; `problem` says why it is not used."""

    centres: np.ndarray  # of the crops that wait, also where there is a problem
    near_border: int = 0
    kind: str = ""  # size and depth of its images
    means: np.ndarray | None = None
    problem: str | None = None


def cut_plate(
    fields: pd.DataFrame,
    images: Sequence[tuple[ImageFile, ...]],
    settings: CropSettings,
    scratch: Path,
    log: PlateLog,
    map: Map = map,
    progress: Callable[[int], Any] = int,
) -> Iterator[Cells]:
    """Cut one plate: yield chunks of crops, in the order of the fields and, in a field, of the nuclei from the top.

    A field of view whose images cannot be read, or differ in size or depth from most of the plate's, is left out, and
    named in the log.

    Args:
        fields: One row a field of view with `FIELD_COLUMNS`.
        images: Of each field, its channels in order.
        settings: Sizes in pixels.
        scratch, log, map, progress: As for [`Source.read`]; about 55 kB a cell wait for three channels of 96 x 96.
    """
    known = [_Field(*f) for f in zip(fields["field"], fields["site"].tolist(), images, strict=True)]
    parts = [slice(start, start + FIELDS_PER_CHUNK) for start in range(0, len(fields), FIELDS_PER_CHUNK)]
    chunks = [_Chunk(known[part], scratch / f"{part.start:06d}.npy") for part in parts]

    cut: list[list[_CutField]] = []
    light: dict[tuple[str, int], _Light] = defaultdict(_Light)  # by kind of images, and site
    for chunk, result in zip(chunks, map(partial(_cut_chunk, settings=settings), chunks), strict=True):
        for field, found in zip(chunk.fields, result, strict=True):
            if found.means is not None:
                light[found.kind, field.site].add(found.means)
        cut.append([dataclasses.replace(found, means=None) for found in result])
        progress(len(chunk.fields))
    kind = _most_common_kind(cut)
    cut = [[_compared_with(kind, found) for found in result] for result in cut]
    _log_fields(chunks, cut, log)

    light = {site: sums for (of_kind, site), sums in light.items() if of_kind == kind}
    illumination = _illumination(light, log)
    waiting = [i for i, chunk in enumerate(chunks) if chunk.path.exists()]
    corrections = [[illumination.get(field.site) for field in chunks[i].fields] for i in waiting]
    work = [(chunks[i].path, cut[i], functions) for i, functions in zip(waiting, corrections, strict=True)]
    histogram = sum(map(_correct_chunk, work), start=np.zeros(1, int))
    if not histogram.any():  # no nucleus
        return
    finish = partial(_finish_chunk, stretch=plate_stretch(histogram), image_size=settings.image_size)
    for i, pixels in zip(waiting, map(finish, [chunks[i].path for i in waiting]), strict=True):
        centres = [found.centres if found.problem is None else found.centres[:0] for found in cut[i]]
        rows = _rows(fields.iloc[parts[i]], centres)
        log.cells += len(rows)
        yield Cells(pixels, rows)


def cut_field(channels: np.ndarray, settings: CropSettings) -> FieldCrops:
    """Cut the crops of one field of view, `(C, H, W)` uint8 (spread over 16 bits) or uint16, that lie inside it."""
    if channels.dtype == np.uint8:
        channels = channels.astype(np.uint16) * 257
    size = settings.crop_size
    centres = find_nuclei(channels[settings.nucleus_channel], settings.nucleus_diameter)
    corners = crop_corners(centres, size)
    inside = ((corners >= 0) & (corners <= np.array(channels.shape[1:]) - size)).all(axis=1)
    crops = np.empty((int(inside.sum()), len(channels), size, size), np.uint16)
    for crop, (row, column) in zip(crops, corners[inside], strict=True):
        crop[:] = channels[:, row : row + size, column : column + size]
    means = np.stack([block_mean(channel, BLOCK) for channel in channels])
    return FieldCrops(crops, centres[inside], int((~inside).sum()), means)


def _cut_chunk(chunk: _Chunk, settings: CropSettings) -> list[_CutField]:
    result, crops = [], []
    with _Reader() as read:
        for field in chunk.fields:
            try:
                channels = read(field.images)
            except (ImageError, ArchiveError, OSError) as error:
                result.append(_CutField(np.empty((0, 2)), problem=str(error)))
                continue
            found = cut_field(channels, settings)
            crops.append(found.crops)
            kind = f"{channels.shape[1]} x {channels.shape[2]} pixels of {8 * channels.itemsize} bits"
            result.append(_CutField(found.centres, found.near_border, kind, found.means))
    if any(len(found) for found in crops):
        _save(chunk.path, np.concatenate(crops))
    return result


def _save(path: Path, crops: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(crops))
        file.write(crops.data)  # `numpy.save` does not say so where the disk is full


class _Reader:
    """Reads the channels of fields of view; an archive stays open until another is needed."""

    def __enter__(self) -> _Reader:
        self._archives = ExitStack()
        self._open: tuple[str, PlateArchive] | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._archives.close()

    def _content(self, image: ImageFile) -> bytes | Path:
        if image.archive is None:
            return Path(image.path)
        if self._open is None or self._open[0] != image.archive:
            self._archives.close()
            self._open = image.archive, self._archives.enter_context(PlateArchive(Path(image.archive)))
        return self._open[1].read(image.path)

    def __call__(self, images: tuple[ImageFile, ...]) -> np.ndarray:
        """Read one field as `(C, H, W)`."""
        channels = [read_image(self._content(image), image.path, image.page) for image in images]
        kinds = {(channel.shape, str(channel.dtype)) for channel in channels}
        if len(kinds) > 1:
            raise ImageError(f"the channels differ in size or depth: {sorted(kinds)}")
        return np.stack(channels)


def _most_common_kind(cut: list[list[_CutField]]) -> str:
    kinds = Counter(found.kind for result in cut for found in result if found.problem is None)
    return kinds.most_common(1)[0][0] if kinds else ""


def _compared_with(kind: str, found: _CutField) -> _CutField:
    """Images of another size or depth cannot be put right with the light and the intensities of the others."""
    if found.problem is not None or found.kind == kind:
        return found
    return dataclasses.replace(found, problem=f"its images have {found.kind}, most of the plate's have {kind}")


def _log_fields(chunks: list[_Chunk], cut: list[list[_CutField]], log: PlateLog) -> None:
    for chunk, result in zip(chunks, cut, strict=True):
        for field, found in zip(chunk.fields, result, strict=True):
            if found.problem is None:
                log.fields += 1
                log.near_border += found.near_border
            else:
                log.skip(field.name, found.problem)


class _Light:
    """Sum of the block means of some fields."""

    def __init__(self) -> None:
        self.total: np.ndarray | float = 0.0
        self.count = 0

    def add(self, means: np.ndarray, count: int = 1) -> None:
        self.total = self.total + means.astype(np.float64)
        self.count += count


def _illumination(light: dict[int, _Light], log: PlateLog) -> dict[int, np.ndarray]:
    """Functions `(C, h, w)` by site; a site with few fields takes that of all sites."""
    all_sites = _Light()
    for sums in light.values():
        all_sites.add(sums.total, sums.count)
    if all_sites.count < MIN_FIELDS_FOR_ILLUMINATION:
        if all_sites.count:
            log.warnings.append(
                f"illumination was not corrected: {MIN_FIELDS_FOR_ILLUMINATION} fields of view are needed, "
                f"the plate has {all_sites.count}"
            )
        return {}
    functions = {}
    for site, sums in light.items():
        chosen = sums if sums.count >= MIN_FIELDS_FOR_ILLUMINATION else all_sites
        # A channel without any light has no illumination to correct.
        functions[site] = np.stack(
            [
                illumination_function(mean, ILLUMINATION_WINDOW * max(mean.shape)) if mean.any() else mean + 1
                for mean in chosen.total / chosen.count
            ]
        )
    return functions


def _correct_chunk(work: tuple[Path, list[_CutField], list[np.ndarray | None]]) -> np.ndarray:
    """Divide the waiting crops by the illumination at their place, drop those of no use; returns their histogram."""
    path, cut, illumination = work
    crops = np.load(path, allow_pickle=False)
    size, start, used = crops.shape[-1], 0, []
    for found, functions in zip(cut, illumination, strict=True):
        part = crops[start : start + len(found.centres)]
        start += len(found.centres)
        if found.problem is not None:
            continue
        used.append(part)
        for c, function in enumerate(() if functions is None else functions):
            corrected = part[:, c] / illumination_at(function, found.centres, size, BLOCK)
            part[:, c] = np.minimum(np.round(corrected), LEVELS - 1)
    crops = np.concatenate(used) if used else crops[:0]
    _save(path, crops)
    return intensity_histogram(crops)


def _finish_chunk(path: Path, stretch: np.ndarray, image_size: int) -> np.ndarray:
    crops = np.load(path, allow_pickle=False)
    path.unlink()
    return to_8_bits(crops, stretch, image_size)


def _rows(fields: pd.DataFrame, centres: list[np.ndarray]) -> pd.DataFrame:
    counts = [len(c) for c in centres]
    rows = fields.loc[fields.index.repeat(counts), list(FIELD_COLUMNS)].reset_index(drop=True)
    rows["cell_id"] = np.concatenate([np.arange(n) for n in counts])
    places = np.concatenate(centres)
    return rows.assign(x=places[:, 1], y=places[:, 0])[list(ROW_COLUMNS)]
