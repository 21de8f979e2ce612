"""Plates of a few small fields in BBBC021's published layout, quick to write and to cut: nuclei are discs."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from synthetic_plate import CHANNEL_COLUMNS, published_rows, write_tables

SHAPE = (64, 80)
DIAMETER, CROP = 10, 24
SETTINGS = {"crop_size": CROP, "nucleus_diameter": DIAMETER}
OPTIONS = [f"--{name}={value}" for name, value in SETTINGS.items()]
PLACES = np.array([(18, 18), (20, 44), (44, 20), (42, 62)])  # of nuclei, at least half a crop from the border


def tiny_fields(number: int, plate: str) -> np.ndarray:
    """One field of view, uint16 (3, H, W): discs in DNA; noise in the others, unlike in any other field."""
    random = np.random.default_rng([number, *plate.encode()])
    image = random.integers(100, 900, (3, *SHAPE)).astype(np.uint16)
    rows, columns = np.indices(SHAPE)
    image[0] = 100
    for row, column in PLACES + random.integers(-3, 4, 2):
        image[0][(rows - row) ** 2 + (columns - column) ** 2 <= (DIAMETER / 2) ** 2] = 2000 + 100 * number
    return image


def tiff(image: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="minisblack", metadata=None, **options)
    return file.getvalue()


def tiny_entries(rows: pd.DataFrame) -> dict[str, bytes]:
    """Names and contents of a plate's archive."""
    entries = {}
    for number, row in enumerate(rows.to_dict("records")):
        plate = row["Image_Metadata_Plate_DAPI"]
        for channel, column in zip(tiny_fields(number, plate), CHANNEL_COLUMNS, strict=True):
            entries[f"{plate}/{row[f'Image_FileName_{column}']}"] = tiff(channel)
    return entries


def archive_path(folder: Path, plate: str) -> Path:
    return folder / f"BBBC021_v1_images_{plate}.zip"


def write_archive(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def rewrite(folder: Path, plate: str, change) -> None:
    """Change the entries of a plate's archive, a dictionary, in place."""
    path = archive_path(folder, plate)
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    write_archive(path, entries)


def write_tiny_plates(folder: Path, plates: list[str], wells_per_compound: int = 1) -> pd.DataFrame:
    """Write tables and archives; returns the rows of the published image table."""
    tables = []
    for week, plate in enumerate(plates):
        rows = published_rows(plate, wells_per_compound=wells_per_compound, seed=week)
        rows["TableNumber"] = int(plate.removeprefix("Week").split("_")[0]) % 10
        rows["ImageNumber"] += 1000 * week
        tables.append(rows)
    rows = pd.concat(tables, ignore_index=True)
    write_tables(folder, rows)
    for plate, of_plate in rows.groupby("Image_Metadata_Plate_DAPI"):
        write_archive(archive_path(folder, plate), tiny_entries(of_plate))
    return rows
