"""The published tables of BBBC021v1, joined into one row per field of view."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.tables import check_known, check_same, check_text, check_unique, numbers, read_table, refuse

URL = "https://data.broadinstitute.org/bbbc/BBBC021/"
NUM_SITES = 4

# Published column -> ours. The three paths are checked against the plate, and not kept.
IMAGE_COLUMNS = {
    "TableNumber": "table_number",
    "ImageNumber": "image_number",
    "Image_FileName_DAPI": "dna",
    "Image_PathName_DAPI": "dna_path",
    "Image_FileName_Tubulin": "tubulin",
    "Image_PathName_Tubulin": "tubulin_path",
    "Image_FileName_Actin": "actin",
    "Image_PathName_Actin": "actin_path",
    "Image_Metadata_Plate_DAPI": "plate",
    "Image_Metadata_Well_DAPI": "well",
    "Replicate": "replicate",
    "Image_Metadata_Compound": "compound",
    "Image_Metadata_Concentration": "concentration",
}
WAVELENGTHS = {"dna": "1", "tubulin": "2", "actin": "4"}
INDEX_COLUMNS = (
    "plate",
    "batch",
    "well",
    "site",
    "replicate",
    "compound",
    "concentration",
    "smiles",
    "moa",
    "is_control",
    "field",
    "table_number",
    "image_number",
    "dna",
    "tubulin",
    "actin",
)

_WELL = r"[A-P](?:0[1-9]|1[0-9]|2[0-4])"
# G10_s1_w1GUID.tif in week 4; Week1_150607_B02_s1_w1GUID.tif, Week7_7__G10_s1_w1GUID.tif elsewhere.
_FILE_NAME = re.compile(
    rf"(?P<prefix>(?:(?P<batch>Week[0-9]+)_[0-9A-Za-z_]*_)?)(?P<well>{_WELL})_s(?P<site>[1-9])_w(?P<wavelength>[1-9])"
    r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}\.tif"
)
_PLATE = r"Week[0-9]{1,3}_[0-9]+"


def read_index(folder: Path | str) -> pd.DataFrame:
    """Read the published tables of BBBC021v1: one row per field of view, in the order published.

    `BBBC021_v1_image.csv` and `BBBC021_v1_moa.csv` (each may be gzipped) are needed. SMILES are those of
    [`known_compounds`], which CellFlux's fingerprints were made from, else of `BBBC021_v1_compound.csv` where it is
    there; a compound of neither has "". `batch` is the week, `site` 1 to 4, `concentration` in uM, `moa` "DMSO" for
    controls and "" where not labelled, `field` the DNA file's stem; `dna`, `tubulin` and `actin` are file names.

    A table that was damaged on the way is refused with a `ValueError` that names file, line and value: the four sites
    of a well have to be there, and to agree with each other and with what the file names say. No reader can notice
    that whole wells or whole lines of the MoA table are missing.
    """
    folder = Path(folder)
    path = _find(folder, "BBBC021_v1_image.csv")
    index = _read_columns(path, IMAGE_COLUMNS)
    index = _convert(index, path)
    index = _parse_file_names(index, path)
    _check_wells(index, path)
    index["is_control"] = index["compound"] == CONTROL
    refuse(index, path, "concentration", index["is_control"] != (index["concentration"] == 0), "0 is for DMSO alone")
    index["field"] = index["dna"].str.removesuffix(".tif")
    index["moa"] = _moa_of(index, _find(folder, "BBBC021_v1_moa.csv"))
    smiles = _read_smiles(folder) | known_compounds()["smiles"].to_dict()
    index["smiles"] = index["compound"].map(smiles).fillna("")
    return index[list(INDEX_COLUMNS)].reset_index(drop=True)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no {name} (or {name}.gz), which is published at {URL}{name}")


def _read_columns(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Columns of a table as text, named as `columns` says."""
    table = read_table(path, list(columns))[list(columns)].rename(columns=columns)
    check_text(table, path)
    return table


def _convert(index: pd.DataFrame, path: Path) -> pd.DataFrame:
    for column in ("table_number", "image_number", "replicate"):
        bad = ~index[column].str.fullmatch("[0-9]{1,9}")
        refuse(index, path, column, bad, "not a whole number of at most 9 digits")
        index[column] = index[column].astype(int)
    index["concentration"] = numbers(index, path, "concentration")
    refuse(index, path, "compound", index["compound"] == "", "no compound")
    refuse(index, path, "well", ~index["well"].str.fullmatch(_WELL), "not a well like G10, from A01 to P24")
    refuse(index, path, "plate", ~index["plate"].str.fullmatch(_PLATE), "not a plate like Week4_27481")
    index["batch"] = index["plate"].str.split("_").str[0]
    for channel in WAVELENGTHS:
        column = f"{channel}_path"
        elsewhere = index[column] != index["batch"] + "/" + index["plate"]
        refuse(index, path, column, elsewhere, "not the folder of the row's plate, WEEK/PLATE")
    week = index["batch"].str.removeprefix("Week").astype(int)
    refuse(index, path, "table_number", index["table_number"] != week % 10, "not the last digit of the plate's week")
    refuse(index, path, "replicate", ~index["replicate"].isin((1, 2, 3)), "not 1, 2 or 3")
    return index


def _parse_file_names(index: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Check the three file names of each row against the row and each other, and take the `site` from them."""
    for channel, wavelength in WAVELENGTHS.items():
        matches = [_FILE_NAME.fullmatch(name) for name in index[channel]]
        unlike = np.array([match is None for match in matches])
        refuse(index, path, channel, unlike, "not a file name like [WEEK_DATE_]G10_s1_w1GUID.tif")
        parts = pd.DataFrame([match.groupdict() for match in matches], index=index.index)
        refuse(index, path, channel, parts["wavelength"] != wavelength, f"not wavelength w{wavelength} of {channel}")
        refuse(index, path, channel, parts["well"] != index["well"], "not the well of its row")
        other_batch = parts["batch"].notna() & (parts["batch"] != index["batch"])
        refuse(index, path, channel, other_batch, "not the week of its row's plate")
        if channel == "dna":
            first = parts
            index["site"] = parts["site"].astype(int)
        for part in ("site", "prefix"):
            refuse(index, path, channel, parts[part] != first[part], f"not the {part} of the row's DNA file")
    every_name = pd.concat([index[channel] for channel in WAVELENGTHS]).to_frame("file")
    check_unique(every_name, path, ["file"])
    return index


def _check_wells(index: pd.DataFrame, path: Path) -> None:
    """A well holds one compound at one dose, and was imaged at four sites, which are numbered in a row."""
    check_unique(index, path, ["plate", "well", "site"])
    refuse(index, path, "site", index["site"] > NUM_SITES, f"a well has sites 1 to {NUM_SITES}")
    incomplete = index.groupby(["plate", "well"])["site"].transform("size") != NUM_SITES
    refuse(index, path, "dna", incomplete, f"its well has not all of its {NUM_SITES} sites in the table")
    for column in ("compound", "concentration"):
        check_same(index, path, column, within=["plate", "well"])
    check_same(index, path, "replicate", within=["plate"])
    image_zero = index["image_number"] - index["site"]
    differs = image_zero != image_zero.groupby([index["plate"], index["well"]]).transform("first")
    refuse(index, path, "image_number", differs, "does not continue from the same well's first line")
    check_unique(index, path, ["table_number", "image_number"])


def _moa_of(index: pd.DataFrame, path: Path) -> pd.Series:
    """Mechanism of each row of the index, by compound and concentration."""
    keys = ["compound", "concentration"]
    labels = _read_columns(path, {column: column for column in (*keys, "moa")})
    labels["concentration"] = numbers(labels, path, "concentration")
    check_known(labels, path, "moa", (*MOAS, CONTROL))
    check_unique(labels, path, keys)
    shown = labels.assign(label=labels["compound"] + " at " + labels["concentration"].astype(str) + " uM")
    known = pd.MultiIndex.from_frame(labels[keys]).isin(pd.MultiIndex.from_frame(index[keys]))
    refuse(shown, path, "label", ~known, "in no row of the image table")
    check_same(labels, path, "moa", within=["compound"])
    swapped = (labels["moa"] == CONTROL) != (labels["compound"] == CONTROL)
    refuse(shown, path, "label", swapped, f"the mechanism {CONTROL} is for {CONTROL} alone")
    moa_of = labels.set_index(keys)["moa"]
    return (
        pd.Series(moa_of.reindex(pd.MultiIndex.from_frame(index[keys])).to_numpy(), index=index.index)
        .mask(index["is_control"], CONTROL)
        .fillna("")
    )


def _read_smiles(folder: Path) -> dict[str, str]:
    """Structures by name, of the published table where it is there."""
    try:
        path = _find(folder, "BBBC021_v1_compound.csv")
    except FileNotFoundError:
        return {}
    table = _read_columns(path, {"compound": "compound", "smiles": "smiles"})
    check_unique(table, path, ["compound"])
    table = table[table["smiles"] != ""]
    return dict(zip(table["compound"], table["smiles"], strict=True))
