"""The 96 x 96 crops that IMPA and CellFlux preprocessed, and their index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfluxrl.data.building.bbbc021_index import read_index
from cellfluxrl.data.cells import ROW_COLUMNS, Cells, Map, PlateLog, chosen_plates
from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.data.splits import PUBLISHED_SPLITS
from cellfluxrl.data.tables import (
    check_filled,
    check_known,
    check_same,
    check_smiles,
    check_text,
    check_unique,
    numbers,
    read_table,
    refuse,
)
from cellfluxrl.files import contained_path, file_sha256

COLUMNS = ("SAMPLE_KEY", "BATCH", "CPD_NAME", "SMILES", "DOSE", "ANNOT", "STATE", "SPLIT")
# Whether it is a control; pandas writes whole numbers as 1.0 where a column once had a gap.
STATES = {"control": True, "trt": False, "0": True, "1": False, "0.0": True, "1.0": False}
SAMPLE_KEY = r"([A-Za-z0-9]{1,40})_([A-Za-z0-9]{1,40})_([0-9]{1,9})_([0-9]{1,9})_([0-9]{1,9})(?:\.0)?"
IMAGE_TABLE = "BBBC021_v1_image.csv"
IMAGE_SIZE = 96
CELLS_PER_CHUNK = 512
STORED_CHANNELS = ("actin", "tubulin", "dna")


class ImpaCrops:
    """Crops as IMPA (Palma et al., Nature Communications 2025) published them and CellFlux trains on them.

    A crop `Week1_22123_1_11_3.0` is `Week1/22123/1_11_3.0.npy`: uint8 (96, 96, 3), actin, tubulin and DNA, already
    evened out. The numbers are BBBC021's TableNumber and ImageNumber and the nucleus' ObjectNumber: where `data_dir`
    also holds the image set's published tables (`BBBC021_v1_image.csv` and `BBBC021_v1_moa.csv`), each crop is joined
    to its well, site and replicate. Without them `well` is empty, `site` and `replicate` are 0, `field` is `1_11`, and
    the images of a control well may fall into different splits where a plate is divided.

    `STATE` is "trt" or 1 for treated cells, "control" or 0 for controls, which are those of the compound DMSO; their
    dose is 0, their mechanism "DMSO" and their structure that of DMSO, whatever the index says. `SPLIT` is for the
    split scheme `"published"`.

    Args:
        data_dir: Folder with `Week1`, `Week2`, ...
        table: The index, a CSV file with the columns `COLUMNS`, and any others.
        plates: Such as `"Week1_22123"`; all by default.

    Raises:
        FileNotFoundError: If folder or table are not there.
        ValueError: For a table that cannot be used, with the line and the value.
    """

    channel_names = CHANNEL_NAMES
    image_size = IMAGE_SIZE

    def __init__(self, data_dir: str | Path, table: str | Path, plates: Sequence[str] | None = None):
        self.folder, path = Path(data_dir), Path(table)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not a folder")
        cells = _cells(read_table(path, COLUMNS)[list(COLUMNS)], path)
        tables = [path, *sorted(p for name in ("image", "moa") for p in self.folder.glob(f"BBBC021_v1_{name}.csv*"))]
        self.has_wells = any((self.folder / name).is_file() for name in (IMAGE_TABLE, f"{IMAGE_TABLE}.gz"))
        if self.has_wells:
            cells = _join(cells, read_index(self.folder), path)
        else:
            # Only the image is known: it stands for the well where wells must not be parted.
            cells = cells.assign(well=cells["field"], site=0, replicate=0)
        cells = cells[cells["plate"].isin(chosen_plates(plates, cells["plate"], f" (not in {path}):"))]
        self.cells = cells.sort_values(["plate", "table_number", "image_number", "cell_id"]).reset_index(drop=True)
        self.fields = self.cells.drop_duplicates(["plate", "field", "split"]).reset_index(drop=True)
        self.settings = {"table_sha256": {p.name: file_sha256(p) for p in tables}}

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """See [`Source`]; crops that cannot be used are logged by their SAMPLE_KEY."""
        cells = self.cells[self.cells["plate"] == plate]
        chunks = [cells.iloc[i : i + CELLS_PER_CHUNK] for i in range(0, len(cells), CELLS_PER_CHUNK)]
        paths = [
            [str(contained_path(self.folder, *path.split("/"), follow_links=True)) for path in chunk["path"]]
            for chunk in chunks
        ]
        first_of_field = ~cells.duplicated(["field", "split"])
        for chunk, (images, problems) in zip(chunks, map(_load_crops, paths), strict=True):
            for row, reason in problems.items():
                log.skip(chunk["key"].iloc[row], reason)
            kept = chunk.drop(index=chunk.index[list(problems)]).assign(x=np.nan, y=np.nan)
            if not self.has_wells:
                kept = kept.assign(well="")
            log.cells += len(kept)
            progress(int(first_of_field[chunk.index].sum()))
            if len(kept):
                yield Cells(images, kept[[*ROW_COLUMNS, "split"]].reset_index(drop=True))
        log.fields += cells["field"].nunique()


def _cells(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """One row a crop, with the lines of the index as the table's."""
    check_text(table, path)
    check_filled(table, path, ["CPD_NAME"])
    parts = table["SAMPLE_KEY"].str.extract(rf"^{SAMPLE_KEY}\Z")
    refuse(table, path, "SAMPLE_KEY", parts[0].isna(), "not like 'Week1_22123_1_11_3.0'")
    plate = parts[0] + "_" + parts[1]
    # IMPA's has the plate; others have its two halves in BATCH and PLATE.
    for_this_plate = (table["BATCH"] == plate) | (table["BATCH"] == parts[0]) | (table["BATCH"] == parts[1])
    refuse(table, path, "BATCH", ~for_this_plate, "not the plate of the SAMPLE_KEY")
    check_known(table, path, "STATE", STATES)
    is_control = table["STATE"].map(STATES).astype(bool)
    contradicts = is_control != (table["CPD_NAME"] == CONTROL)
    refuse(table, path, "STATE", contradicts, f"contradicts CPD_NAME, as the controls are those of {CONTROL}")
    check_known(table, path, "SPLIT", PUBLISHED_SPLITS)
    refuse(table, path, "ANNOT", ~is_control & (table["ANNOT"] == CONTROL), "the mechanism of controls")
    known = table["CPD_NAME"].map(known_compounds()["smiles"]).fillna("")
    structures = table[["CPD_NAME"]].assign(SMILES=table["SMILES"].mask(is_control | (table["SMILES"] == ""), known))
    check_smiles(structures, path, "SMILES")
    check_same(structures, path, "SMILES", within=["CPD_NAME"])
    cells = pd.DataFrame(
        {
            "key": table["SAMPLE_KEY"],
            "path": parts[0] + "/" + parts[1] + "/" + table["SAMPLE_KEY"].str.split("_", n=2).str[2] + ".npy",
            "table_number": parts[2].astype(int),
            "image_number": parts[3].astype(int),
            "cell_id": parts[4].astype(int),
            "compound": table["CPD_NAME"],
            "smiles": structures["SMILES"],
            "concentration": numbers(table.assign(DOSE=table["DOSE"].mask(is_control, "0")), path, "DOSE"),
            "moa": table["ANNOT"].mask(is_control, CONTROL),
            "plate": plate,
            "batch": parts[0],
            "field": parts[2] + "_" + parts[3],
            "is_control": is_control,
            "split": table["SPLIT"],
        }
    )
    check_unique(cells, path, ["plate", "table_number", "image_number", "cell_id"])
    for column in ("compound", "concentration", "moa"):
        check_same(cells, path, column, within=["plate", "field"])
    return cells


def _join(cells: pd.DataFrame, index: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Take well, site, replicate and the field's name from the index of the image set, and compare the rest."""
    keys = ["table_number", "image_number"]
    images = index.set_index(keys).reindex(pd.MultiIndex.from_frame(cells[keys])).set_index(cells.index)
    refuse(cells, path, "key", images["plate"].isna(), f"{IMAGE_TABLE} has no such TableNumber and ImageNumber")
    for column in ("plate", "compound", "concentration"):
        if column == "concentration":
            differs = ~np.isclose(cells[column], images[column])
        else:
            differs = (cells[column] != images[column]).to_numpy()
        if differs.any():
            published = images[column].iloc[int(np.argmax(differs))]
            refuse(cells, path, column, differs, f"{IMAGE_TABLE} has {published!r} for this crop")
    return cells.assign(
        **{column: images[column] for column in ("well", "field")},
        **{column: images[column].astype(int) for column in ("site", "replicate")},
    )


def _load_crops(paths: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Crops as uint8 (N, 3, 96, 96) in the order of `CHANNEL_NAMES`, and by row what is wrong with the others."""
    images, problems = [], {}
    for row, path in enumerate(paths):
        try:
            images.append(_load_crop(path))
        except Exception as error:  # on damaged files numpy raises whatever it stumbles over
            problems[row] = f"{path}: {error}" if path not in str(error) else str(error)
    order = [STORED_CHANNELS.index(name) for name in CHANNEL_NAMES]
    stack = np.stack(images) if images else np.empty((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return np.ascontiguousarray(stack[..., order].transpose(0, 3, 1, 2)), problems


def _load_crop(path: str) -> np.ndarray:
    # Mapped, so that a damaged header cannot ask for more memory than the file has bytes.
    crop = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = IMAGE_SIZE, IMAGE_SIZE, len(STORED_CHANNELS)
    if not isinstance(crop, np.ndarray):
        raise ValueError("several arrays, not one")
    if crop.shape != shape or crop.dtype != np.uint8:
        raise ValueError(f"{crop.dtype} of shape {crop.shape}, not uint8 of shape {shape}")
    return np.array(crop)
