"""Plates of anybody: a table of images on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellfluxrl.data.building.cutting import CropSettings, ImageFile, cut_plate
from cellfluxrl.data.cells import Cells, Map, PlateLog, chosen_plates
from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.data.splits import PUBLISHED_SPLITS, batch_of
from cellfluxrl.data.tables import (
    check_filled,
    check_known,
    check_names,
    check_same,
    check_smiles,
    check_text,
    check_unique,
    numbers,
    read_table,
    refuse,
)
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import file_sha256

PREFIX = "image_"
REQUIRED = ("plate", "well", "site", "compound", "concentration")
OPTIONAL = ("smiles", "moa", "replicate", "batch", "split")
MIN_CHANNELS, MAX_CHANNELS = 2, 8


class PlateFolder:
    """Plates that a CSV file describes, one row a field of view.

    Columns: `image_CHANNEL` for each of 2 to 8 channels, whose order is kept: a path, relative to the CSV file, of an
    8 or 16 bit TIFF, OME-TIFF or PNG of one channel (`stack.tif#2` is the third page of a file of several);
    `plate`, `well`, `site`, `compound`, `concentration` (uM; may be empty for controls); and, if known,

    - `smiles`: filled in from [`known_compounds`] where it is empty;
    - `moa`: that of controls is "DMSO" whatever the table says;
    - `replicate`: 1 by default;
    - `batch`: what is before the last underscore of the plate by default;
    - `split`: "train", "test", "val" or "ood", for the split scheme `"published"`.

    Args:
        table: The CSV file.
        nucleus_diameter: Typical diameter of a nucleus in pixels of the images.
        plates: All by default.
        nucleus_channel: The channel that stains DNA.
        control: The compound of the untreated wells.
        crop_size, image_size: See [`CropSettings`].

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: For a table that cannot be used, with the line and the value.
    """

    def __init__(
        self,
        table: str | Path,
        nucleus_diameter: float,
        plates: Sequence[str] | None = None,
        nucleus_channel: str = "dna",
        control: str = CONTROL,
        crop_size: int = 96,
        image_size: int | None = None,
    ):
        path = Path(table)
        rows = read_table(path, REQUIRED)
        self.channel_names = _channel_names(list(rows.columns), path)
        if nucleus_channel not in self.channel_names:
            raise unknown_name("nucleus channel", nucleus_channel, self.channel_names)
        self.fields = _choose_plates(_fields(rows, self.channel_names, control, path), plates, control, path)
        self.crop_settings = CropSettings(
            crop_size,
            crop_size if image_size is None else image_size,
            nucleus_diameter,
            self.channel_names.index(nucleus_channel),
        )
        self.image_size = self.crop_settings.image_size
        self.settings = {
            "table_sha256": file_sha256(path),
            "crop_size": crop_size,
            "image_size": self.image_size,
            "nucleus_diameter": nucleus_diameter,
            "nucleus_channel": nucleus_channel,
            "control": control,
        }

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """See [`Source`]."""
        fields = self.fields[self.fields["plate"] == plate]
        images = fields["images"].tolist()
        for cells in cut_plate(fields, images, self.crop_settings, scratch, log, map, progress):
            rows = cells.rows
            if "split" in fields:
                rows = rows.assign(split=rows["field"].map(fields.set_index("field")["split"]))
            yield Cells(cells.images, rows)


def _channel_names(columns: list[str], path: Path) -> tuple[str, ...]:
    for column in columns:
        if not column.startswith(PREFIX) and column not in (*REQUIRED, *OPTIONAL):
            raise unknown_name(f"column in {path}:", column, (*REQUIRED, *OPTIONAL, f"{PREFIX}CHANNEL"))
    names = [column.removeprefix(PREFIX) for column in columns if column.startswith(PREFIX)]
    if not MIN_CHANNELS <= len(names) <= MAX_CHANNELS:
        raise ValueError(
            f"{path}, line 1: {MIN_CHANNELS} to {MAX_CHANNELS} columns {PREFIX}CHANNEL are needed, got {len(names)}; "
            f"the columns are {columns}"
        )
    for name in names:
        if not re.fullmatch(r"[\w+.-]+", name):
            raise ValueError(
                f"{path}, line 1: {PREFIX + name!r}: a channel's name must be letters, digits, '_', '-', '+' or '.'"
            )
    return tuple(names)


def _fields(table: pd.DataFrame, channel_names: tuple[str, ...], control: str, path: Path) -> pd.DataFrame:
    """Check the cells of the table and add the columns that may be missing."""
    images = [PREFIX + name for name in channel_names]
    given = [column for column in ("batch", "split") if column in table]
    check_text(table, path)
    check_filled(table, path, ["plate", "well", "compound", *given, *images])
    check_names(table, path, "plate")
    check_names(table, path, "well")
    table["is_control"] = table["compound"] == control
    if not table["is_control"].any():
        raise unknown_name(f"control (no row of {path} has this compound):", control, set(table["compound"]))

    unstated = table["is_control"] & (table["concentration"] == "")
    table["concentration"] = table["concentration"].mask(unstated, "0")
    table["concentration"] = numbers(table, path, "concentration")
    table["site"] = numbers(table, path, "site", whole=True)
    table["replicate"] = numbers(table, path, "replicate", whole=True) if "replicate" in table else 1
    if "batch" not in table:
        table["batch"] = table["plate"].map(batch_of)
    if "split" in table:
        check_known(table, path, "split", PUBLISHED_SPLITS)
    _add_chemistry(table, path)

    check_unique(table, path, ["plate", "well", "site"])
    for column in ("compound", "concentration", "moa", "replicate", *given):
        check_same(table, path, column, within=["plate", "well"])
    check_same(table, path, "batch", within=["plate"])
    check_same(table, path, "smiles", within=["compound"])
    check_same(table, path, "moa", within=["compound", "concentration"])
    folded = table.assign(folded=table["plate"].str.casefold())
    # Two files that some file systems cannot tell apart.
    check_same(folded, path, "plate", within=["folded"])

    table["field"] = table["well"] + "_s" + table["site"].astype(str)
    table["images"] = _image_files(table[images], path)
    return table.sort_values(["plate", "well", "site"]).reset_index(drop=True)


def _add_chemistry(table: pd.DataFrame, path: Path) -> None:
    """Structures that the table does not have but that are known by name; the mechanism of controls."""
    for column in ("smiles", "moa"):
        if column not in table:
            table[column] = ""
    known = table["compound"].map(known_compounds()["smiles"]).fillna("")
    table["smiles"] = table["smiles"].mask(table["smiles"] == "", known)
    check_smiles(table, path, "smiles")
    treated_as_control = ~table["is_control"] & (table["moa"] == CONTROL)
    refuse(table, path, "moa", treated_as_control, "is the mechanism of controls, and the compound is not the control")
    table.loc[table["is_control"], "moa"] = CONTROL


def _image_files(table: pd.DataFrame, path: Path) -> list[tuple[ImageFile, ...]]:
    """The image of each channel, row by row; each is to be used once in the whole table."""
    used: dict[tuple[str, int], int] = {}
    files = []
    for line, *cells in table.itertuples(name=None):
        files.append(tuple(_image_file(cell, path.parent) for cell in cells))
        for cell, image in zip(cells, files[-1], strict=True):
            # The only page of a file needs no number.
            key = os.path.normpath(image.path), image.page or 0
            if key in used:
                raise ValueError(
                    f"{path}, line {line}: image {cell!r}: there a second time, first in line {used[key]}"
                )
            used[key] = line
    return files


def _image_file(cell: str, folder: Path) -> ImageFile:
    match = re.fullmatch(r"(.+)#([0-9]{1,6})", cell)
    return ImageFile(str(folder / match[1]), page=int(match[2])) if match else ImageFile(str(folder / cell))


def _choose_plates(fields: pd.DataFrame, plates: Sequence[str] | None, control: str, path: Path) -> pd.DataFrame:
    names = chosen_plates(plates, fields["plate"], f" (not in {path}):")
    chosen = fields[fields["plate"].isin(names)].reset_index(drop=True)
    has_control = chosen.groupby("plate")["is_control"].any()
    if not has_control.all():
        raise ValueError(f"{path}: plate {has_control.idxmin()!r} has no well with the control {control!r}")
    return chosen
