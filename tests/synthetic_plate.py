"""A plate of simulated cells in BBBC021's published raw layout: one ZIP of 16-bit TIFFs, and the three tables.

A field is a dark background on which single cells of `simulate_cells` lie, seen through the vignette of its site and
channel, with the camera's noise. Fields, ZIP and tables have the names, sizes and ranges of the published ones [1]_;
what is true of them comes back with the plate.

References:
    .. [1] https://bbbc.broadinstitute.org/BBBC021
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from scipy import ndimage

from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.seeding import numpy_generator

CHANNEL_COLUMNS = ("DAPI", "Tubulin", "Actin")  # in the published tables' column names
WAVELENGTHS = ("w1", "w2", "w4")  # of the same channels, in file names
WELLS = tuple(f"{row}{column:02d}" for row in "BCDEFG" for column in range(2, 12))

PATCH_SIZE = 96  # a simulated crop of this size has nuclei 32 px across, as BBBC021 has
POOL_SIZE = 32  # cells rendered per compound
# Camera counts, DNA, tubulin, actin: like the real crops'.
BACKGROUND = np.array([45, 60, 45], dtype=np.float32)
COUNTS = np.array([800, 700, 450], dtype=np.float32)  # of the brightest pixel a simulated crop can show
NOISE_VARIANCE = 0.15  # per count
SATURATION = 4095


@dataclass(frozen=True)
class SyntheticPlate:
    """A plate on disk and what is true about it.

    Attributes:
        archive: the ZIP, `BBBC021_v1_images_PLATE.zip`.
        truth: one row per nucleus: `field` (stem of the DNA file), `row` and `column` of its centre and its
            `diameter` (of a circle of the same area), in pixels.
        illumination: (H, W) float32, mean 1, by (channel index, site): what the light was multiplied by.
    """

    archive: Path
    truth: pd.DataFrame
    illumination: dict[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class _Cells:
    """Single cells on black: `patches` (N, 3, S, S) in counts, `centres` (N, 2) and `diameters` (N,) of the nuclei."""

    patches: np.ndarray
    centres: np.ndarray
    diameters: np.ndarray


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def published_rows(
    plate: str = "Week4_27821",
    compounds: Sequence[tuple[str, float]] = ((CONTROL, 0.0), ("taxol", 0.3)),
    wells_per_compound: int = 2,
    sites: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Invent the rows of one plate in `BBBC021_v1_image.csv`: one per field, columns and file names as published."""
    random = numpy_generator(seed, f"published rows of {plate}")
    conditions = [condition for condition in compounds for _ in range(wells_per_compound)]
    if len(conditions) > len(WELLS):
        raise ValueError(f"{len(conditions)} wells do not fit on a plate of {len(WELLS)}")
    rows = []
    for well, (compound, concentration) in zip(WELLS, conditions, strict=False):
        for site in range(1, sites + 1):
            row = {"TableNumber": 4, "ImageNumber": len(rows) + 1}
            for channel, wavelength in zip(CHANNEL_COLUMNS, WAVELENGTHS, strict=True):
                row[f"Image_FileName_{channel}"] = f"{well}_s{site}_{wavelength}{_guid(random)}.tif"
                row[f"Image_PathName_{channel}"] = f"{plate.split('_')[0]}/{plate}"
            row |= {"Image_Metadata_Plate_DAPI": plate, "Image_Metadata_Well_DAPI": well, "Replicate": 1}
            row |= {"Image_Metadata_Compound": compound, "Image_Metadata_Concentration": concentration}
            rows.append(row)
    return pd.DataFrame(rows)


def _guid(random: np.random.Generator) -> str:
    digits = random.bytes(16).hex().upper()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def write_tables(
    folder: Path, rows: pd.DataFrame, moa_rows: Sequence[tuple[str, float, str]] | None = None
) -> dict[str, Path]:
    """Write `BBBC021_v1_image.csv`, `BBBC021_v1_moa.csv` and `BBBC021_v1_compound.csv` as published.

    Args:
        rows: of one or several plates, see `published_rows`.
        moa_rows: (compound, concentration, mechanism); by default those of the compounds that the package knows.

    Returns:
        The paths by name: "image", "moa" and "compound".
    """
    known = known_compounds()
    conditions = rows[["Image_Metadata_Compound", "Image_Metadata_Concentration"]].drop_duplicates()
    conditions = list(conditions.itertuples(index=False, name=None))
    if moa_rows is None:
        moa_rows = [(name, dose, known.loc[name, "moa"]) for name, dose in conditions if name in known.index]
    names = sorted({name for name, _ in conditions})
    tables = {
        "image": rows,
        "moa": pd.DataFrame(list(moa_rows), columns=["compound", "concentration", "moa"]),
        "compound": pd.DataFrame(
            [(name, known["smiles"].get(name)) for name in names], columns=["compound", "smiles"]
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"BBBC021_v1_{name}.csv" for name in tables}
    for name, table in tables.items():
        table.to_csv(paths[name], index=False)
    return paths


# --------------------------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------------------------


def write_plate(
    folder: Path,
    rows: pd.DataFrame,
    shape: tuple[int, int] = (1024, 1280),
    cells_per_field: float = 50,
    seed: int = 0,
) -> SyntheticPlate:
    """Render the fields of one plate and write them as the published ZIP.

    Args:
        rows: of one plate, in the published columns; see `published_rows`. Compounds without a known mechanism of
            action look like DMSO.
        shape: rows and columns of a field.
        cells_per_field: mean number of cells.
    """
    (plate,) = rows["Image_Metadata_Plate_DAPI"].unique()
    sites = rows["Image_FileName_DAPI"].str.extract(r"_s(\d+)_", expand=False).astype(int)
    illumination = {
        (channel, int(site)): _vignette(shape, numpy_generator(seed, f"vignette of {plate}", channel, int(site)))
        for channel in range(len(CHANNEL_COLUMNS))
        for site in sorted(sites.unique())
    }
    pools = {name: _render_cells(name, seed) for name in rows["Image_Metadata_Compound"].unique()}
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"BBBC021_v1_images_{plate}.zip"
    truth = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for index, (row, site) in enumerate(zip(rows.to_dict("records"), sites, strict=True)):
            random = numpy_generator(seed, f"fields of {plate}", index)
            light, nuclei = _compose(pools[row["Image_Metadata_Compound"]], shape, cells_per_field, random)
            truth.append(nuclei.assign(field=Path(row["Image_FileName_DAPI"]).stem))
            for channel, column in enumerate(CHANNEL_COLUMNS):
                image = _photograph(light[channel], illumination[channel, site], random)
                file.writestr(f"{plate}/{row[f'Image_FileName_{column}']}", _tiff(image))
    truth = pd.concat(truth, ignore_index=True)
    return SyntheticPlate(archive, truth[["field", "row", "column", "diameter"]], illumination)


def _render_cells(compound: str, seed: int) -> _Cells:
    """Cut the central cells out of simulated crops, in linear counts."""
    known = known_compounds()
    moa = known.loc[compound, "moa"] if compound in known.index else CONTROL
    crops = simulate_cells([moa] * POOL_SIZE, image_size=PATCH_SIZE, seed=seed)
    cell, nucleus = crops.cell_labels == 1, crops.nucleus_labels == 1
    cut_off = cell[:, [0, -1]].any(axis=(1, 2)) | cell[:, :, [0, -1]].any(axis=(1, 2))
    whole = np.flatnonzero(~cut_off & nucleus.any(axis=(1, 2)))
    near_nucleus = ndimage.distance_transform_edt(~nucleus[whole], sampling=(PATCH_SIZE, 1, 1)) < 4
    visible = np.stack([near_nucleus, cell[whole], cell[whole]], axis=1)
    # A soft edge: the microscope's blur, not scissors.
    edge = ndimage.gaussian_filter(visible.astype(np.float32), sigma=(0, 0, 1.5, 1.5))
    light = (crops.image[whole] / np.float32(255)) ** 2 * edge
    return _Cells(
        patches=light * COUNTS[:, None, None],
        centres=np.array([ndimage.center_of_mass(mask) for mask in nucleus[whole]]),
        diameters=2 * np.sqrt(nucleus[whole].sum(axis=(1, 2)) / np.pi),
    )


def _compose(
    cells: _Cells, shape: tuple[int, int], cells_per_field: float, random: np.random.Generator
) -> tuple[np.ndarray, pd.DataFrame]:
    """Lay cells on the background: the light (3, H, W) in counts, and where the nuclei are."""
    margin = PATCH_SIZE
    light = np.zeros((3, shape[0] + 2 * margin, shape[1] + 2 * margin), dtype=np.float32)
    nuclei = []
    for place in _places(shape, max(1, random.poisson(cells_per_field)), random):
        chosen = random.integers(len(cells.patches))
        quarter_turns, mirrored = random.integers(4), random.random() < 0.5
        patch = np.rot90(cells.patches[chosen], quarter_turns, axes=(1, 2))
        row, column = cells.centres[chosen]
        for _ in range(quarter_turns):
            row, column = PATCH_SIZE - 1 - column, row
        if mirrored:
            patch, column = patch[:, :, ::-1], PATCH_SIZE - 1 - column
        top, left = np.rint(place - (row, column)).astype(int)
        window = light[:, margin + top : margin + top + PATCH_SIZE, margin + left : margin + left + PATCH_SIZE]
        np.maximum(window, patch, out=window)
        nuclei.append((top + row, left + column, cells.diameters[chosen]))
    light = light[:, margin:-margin, margin:-margin] + BACKGROUND[:, None, None]
    return light, pd.DataFrame(nuclei, columns=["row", "column", "diameter"])


def _places(shape: tuple[int, int], count: int, random: np.random.Generator) -> np.ndarray:
    """Centres of nuclei (count, 2): most a cell apart, one in seven beside another so that their nuclei touch."""
    places = np.empty((0, 2))
    while len(places) < count:
        if len(places) and random.random() < 0.15:
            angle, distance = random.uniform(0, 2 * np.pi), random.uniform(33, 40)
            candidates = places[random.integers(len(places))] + distance * np.array([[np.sin(angle), np.cos(angle)]])
            closest_allowed = 33
        else:
            candidates, closest_allowed = random.uniform((0, 0), shape, size=(30, 2)), 52
        inside = ((candidates >= 0) & (candidates <= np.array(shape) - 1)).all(axis=1)
        gap = np.linalg.norm(candidates[:, None] - places[None], axis=2).min(axis=1, initial=np.inf)
        allowed = np.flatnonzero(inside & (gap >= closest_allowed))
        if len(allowed) == 0 and len(candidates) > 1:
            break  # the field is full
        places = np.concatenate([places, candidates[allowed[:1]]])
    return places


def _vignette(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Smooth fall-off, to about half at the far corner, around a centre off the image's own; (H, W), mean 1."""
    row, column = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    centre = random.uniform(-0.4, 0.4, size=2)
    width = random.uniform(1.3, 1.7)
    light = np.exp(-((row - centre[0]) ** 2 + (column - centre[1]) ** 2) / (2 * width**2))
    return (light / light.mean()).astype(np.float32)


def _photograph(light: np.ndarray, illumination: np.ndarray, random: np.random.Generator) -> np.ndarray:
    counts = light * illumination
    noise = random.standard_normal(counts.shape, dtype=np.float32)
    noise *= np.sqrt(NOISE_VARIANCE * counts)
    return np.clip(np.rint(counts + noise), 0, SATURATION).astype(np.uint16)


def _tiff(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, photometric="minisblack", metadata=None)
    return buffer.getvalue()
