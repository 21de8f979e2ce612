"""What a data set of cells holds: counted, and shown on a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.seeding import numpy_generator
from cellfluxrl.terminal import text_table

REPORT_NAME = "build_report.json"
COUNT_COLUMNS = ["split", "plate", "compound", "concentration", "moa"]

Cells: TypeAlias = "datasets.Dataset | datasets.DatasetDict"

# --------------------------------------------------------------------------------------------------------------------
# Counts
# --------------------------------------------------------------------------------------------------------------------


def count_cells(source: str | Path | Cells) -> pd.DataFrame:
    """Count the cells of each split, plate, compound, concentration and MoA; no image is read.

    Args:
        source: A data set, or a folder with `data/SPLIT/*.parquet`, as `cellfluxrl data build` writes it.

    Returns:
        `pandas.DataFrame` with the columns `split`, `plate`, `compound`, `concentration` (uM), `moa` and `cells`.

    Raises:
        FileNotFoundError: If the folder has no Parquet files.
        ValueError: If columns are missing.
    """
    if isinstance(source, (str, Path)):
        files = _parquet_files(source)
        # One file at a time: strings of millions of rows are large.
        parts = [
            _count(pq.read_table(_checked(file, pq.read_schema(file).names), columns=COUNT_COLUMNS)) for file in files
        ]
    else:
        splits = source.values() if isinstance(source, datasets.DatasetDict) else [source]
        parts = []
        for split in splits:
            _checked("the data set", split.column_names)
            parts += [
                _count(batch) for batch in split.select_columns(COUNT_COLUMNS).with_format("arrow").iter(100_000)
            ]
    counts = pd.concat(parts) if parts else pd.DataFrame(columns=[*COUNT_COLUMNS, "cells"])
    return counts.groupby(COUNT_COLUMNS, as_index=False)["cells"].sum()


def _parquet_files(folder: str | Path) -> list[Path]:
    files = sorted(Path(folder).glob("data/*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no data/*/*.parquet: it is not a data set that was built")
    return files


def _checked(source: str | Path, columns: Sequence[str]) -> str | Path:
    missing = [column for column in COUNT_COLUMNS if column not in columns]
    if missing:
        raise ValueError(f"{source} lacks the columns {missing}; it has {list(columns)}")
    return source


def _count(table) -> pd.DataFrame:
    """Count the rows of a `pyarrow.Table`; an unknown MoA is the empty string."""
    frame = table.to_pandas().fillna({"moa": ""})
    return frame.groupby(COUNT_COLUMNS, as_index=False).size().rename(columns={"size": "cells"})


def count_tables(counts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Sum [`count_cells`]'s result up: per split, plate, mechanism of action and compound.

    Returns:
        By title, tables to show as they are.
    """
    counts = counts.astype({"concentration": float, "cells": int})
    # The MoA of controls is "DMSO" whatever a user's control compound is called.
    counts["kind"] = np.where(counts["moa"] == CONTROL, "control cells", "treated cells")
    plates = counts.groupby("split", sort=False)["plate"].nunique().rename("plates")
    per_split = _wide(counts, ["split"], "kind").join(plates)
    treated_compounds = counts.groupby("moa")["compound"].nunique().rename("compounds")
    doses = counts.groupby(["compound", "moa"])["concentration"].agg(
        lambda c: ", ".join(f"{d:g}" for d in sorted(set(c)))
    )
    per_compound = _wide(counts, ["compound", "moa"], "split").join(doses.rename("doses (uM)"))
    return {
        "cells per split": per_split.reset_index()[["split", "plates", *per_split.columns[:-1]]],
        "cells per plate": _wide(counts, ["split", "plate"], "kind").reset_index(),
        "cells per mechanism of action": _wide(counts, ["moa"], "split").join(treated_compounds).reset_index(),
        "cells per compound": _controls_first(per_compound.reset_index()),
    }


def _wide(counts: pd.DataFrame, rows: list[str], columns: str) -> pd.DataFrame:
    """Cells by `rows`, with one column for each value of `columns`; train comes before test."""
    table = counts.pivot_table(index=rows, columns=columns, values="cells", aggfunc="sum", fill_value=0)
    table.columns.name = None
    # "test" after "train", wherever splits stand.
    return table.sort_index(key=_train_first).sort_index(axis=1, key=_train_first)


def _train_first(names: pd.Index) -> pd.Index:
    return pd.Index(["" if name == "train" else name for name in names])


def _controls_first(table: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort([table["compound"], table["moa"], table["moa"] != CONTROL])
    return table.iloc[order].reset_index(drop=True)


def summarize(source: str | Path | Cells) -> str:
    """Describe a data set in tables for the terminal: cells per split, plate, MoA and compound, and what went wrong.

    Args:
        source: As for [`count_cells`]; a folder's `build_report.json`, if there is one, adds the fields of view that
            could not be used.

    Raises:
        FileNotFoundError: If the folder has no Parquet files.
        ValueError: If columns are missing.

    Example:
        >>> print(summarize("my_cells"))                                              # doctest: +SKIP
    """
    tables = count_tables(count_cells(source))
    if isinstance(source, (str, Path)) and (Path(source) / REPORT_NAME).is_file():
        report = json.loads((Path(source) / REPORT_NAME).read_text(encoding="utf-8"))
        if not report.get("complete"):
            tables["not complete"] = pd.DataFrame({"": ["the build did not finish; run the same command again"]})
        tables["problems"] = problems_of(report)
    return "\n\n".join(_as_text(title, table) for title, table in tables.items())


def reported_counts(report: dict) -> pd.DataFrame:
    """What [`count_cells`] gives, from a build report instead of from the cells."""
    rows = report["counts"] if "counts" in report else [row for p in report["plates"].values() for row in p["counts"]]
    return pd.DataFrame(rows, columns=[*COUNT_COLUMNS, "cells"]).fillna({"moa": ""})


def problems_of(report: dict) -> pd.DataFrame:
    """Fields of view that the build could not use: columns `plate`, `field` and `reason`."""
    rows = [
        {"plate": plate, "field": problem["field"], "reason": problem["reason"]}
        for plate, entry in report["plates"].items()
        for problem in entry.get("problems", [])
    ]
    return pd.DataFrame(rows, columns=["plate", "field", "reason"])


def _as_text(title: str, table: pd.DataFrame) -> str:
    return f"{title}: none" if table.empty else f"{title}\n{text_table(table)}"


# --------------------------------------------------------------------------------------------------------------------
# Contact sheet
# --------------------------------------------------------------------------------------------------------------------

MAX_ROWS = 40  # with more conditions than this, the highest dose of each compound stands for it
CROP_PIXELS = 96  # crops are enlarged to at least this
GAP, MARGIN = 4, 14  # px
BACKGROUND, TEXT, FAINT = (20, 21, 24), (235, 235, 235), (160, 164, 172)
# In the order of the channels; three channels are shown in pure blue, green and red.
PALETTE = (
    (0, 90, 255),
    (0, 220, 60),
    (255, 40, 20),
    (230, 180, 0),
    (220, 0, 220),
    (0, 200, 220),
    (255, 120, 0),
    (160, 160, 160),
)
BLUE_GREEN_RED = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def contact_sheet(source: str | Path | Cells, path: str | Path, cells_per_row: int = 8, seed: int = 0) -> None:
    """Show random cells of each compound and dose, controls first, and write a PNG.

    Where there are more than 40 conditions, a compound is shown at its highest dose only. A condition with fewer cells
    than fit into its row leaves the rest of the row empty. Only the cells that are shown are decoded.

    Args:
        source: Rows of the cell schema ([`cell_features`]), with 2 to 8 channels, or a folder with
            `data/SPLIT/*.parquet`.
        path: Of the PNG file.
        cells_per_row: At most so many cells of a condition.
        seed: Decides which cells.

    Raises:
        FileNotFoundError: If the folder has no Parquet files.
        ValueError: If the data set is empty, or has another number of channels.

    Example:
        >>> contact_sheet("my_cells", "my_cells/contact_sheet.png")                   # doctest: +SKIP
    """
    if isinstance(source, (str, Path)):
        source = _FolderRows(_parquet_files(source))
    elif isinstance(source, datasets.DatasetDict):
        source = datasets.concatenate_datasets(list(source.values()))
    names = channel_names_of(source)
    if not 2 <= len(names) <= len(PALETTE):
        raise ValueError(f"a contact sheet shows 2 to {len(PALETTE)} channels, got {len(names)}: {names}")
    if len(source) == 0:
        raise ValueError("the data set is empty: there are no cells to show")
    if cells_per_row < 1:
        raise ValueError(f"cells_per_row must be at least 1, got {cells_per_row}")
    colors = BLUE_GREEN_RED if len(names) == 3 else PALETTE[: len(names)]
    chosen = _choose_cells(_conditions(source), cells_per_row, seed)
    rows = [
        (condition, [_enlarged(composite(crop, colors)) for crop in _read_crops(source.select(indices))])
        for condition, indices in chosen
    ]
    _draw_sheet(rows, list(zip(names, colors, strict=True))).save(path)


class _FolderRows:
    """As much of `datasets.Dataset` as a contact sheet needs, on Parquet files that are read in place."""

    def __init__(self, files: list[Path]):
        self._files = [pq.ParquetFile(file) for file in files]
        self.features = datasets.Features.from_arrow_schema(self._files[0].schema_arrow)
        self.column_names = list(self.features)

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    def columns(self, names: list[str]) -> pa.Table:
        return pa.concat_tables([file.read(names) for file in self._files])

    def select(self, indices: np.ndarray) -> datasets.Dataset:
        """Read the row groups that hold these rows, one after the other."""
        found: dict[int, pa.Table] = {}
        first = 0
        for file in self._files:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                inside = [index for index in indices.tolist() if first <= index < last]
                if inside:
                    images = file.read_row_group(group, columns=["image"])
                    found |= {index: images.slice(index - first, 1) for index in inside}
                first = last
        table = pa.concat_tables([found[index] for index in indices.tolist()])
        return datasets.Dataset(
            table, info=datasets.DatasetInfo(features=datasets.Features(image=self.features["image"]))
        )


CONDITION = ["compound", "moa", "concentration"]


def _conditions(source: datasets.Dataset | _FolderRows) -> pd.DataFrame:
    is_folder = isinstance(source, _FolderRows)
    table = source.columns(CONDITION) if is_folder else source.select_columns(CONDITION).with_format("arrow")[:]
    return table.to_pandas().fillna({"moa": ""})


def _choose_cells(table: pd.DataFrame, count: int, seed: int) -> list[tuple[tuple[str, float, str], np.ndarray]]:
    """Each row's compound, concentration (uM) and MoA, with the indices of its cells."""
    groups = table.groupby(CONDITION).indices
    conditions = sorted(groups, key=lambda key: (key[1] != CONTROL, key[1], key[0], key[2]))
    if len(conditions) > MAX_ROWS:
        highest = {(compound, moa): dose for compound, moa, dose in conditions}  # the last one, doses being sorted
        conditions = [key for key in conditions if highest[key[:2]] == key[2]]
    chosen = []
    for row, (compound, moa, concentration) in enumerate(conditions):
        indices = groups[compound, moa, concentration]
        random = numpy_generator(seed, "contact sheet", row)
        shown = random.choice(indices, min(count, len(indices)), replace=False)
        chosen.append(((compound, concentration, moa), shown))
    return chosen


def _read_crops(cells: datasets.Dataset) -> list[np.ndarray]:
    """Decode uint8 crops of shape (C, H, W)."""
    crops = cells.select_columns(["image"]).with_format("numpy")[:]["image"]
    is_png = isinstance(cells.features["image"], datasets.Image)
    return [np.asarray(crop)[..., ::-1].transpose(2, 0, 1) if is_png else np.asarray(crop) for crop in crops]


def composite(crop: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Lay coloured channels over each other as light is ("screen": 1 - product of (1 - light)), which cannot overflow.

    More than three channels are dimmed, or else most cells would be white.

    Args:
        crop: `(C, H, W)`; uint8.
        colors: RGB in 0-255 of each channel's brightest pixel.

    Returns:
        `numpy.ndarray` of shape `(H, W, 3)`, uint8. In pure blue, green and red the channels stay apart.

    Example:
        >>> composite(np.full((3, 1, 1), 51, np.uint8), BLUE_GREEN_RED).tolist()
        [[[51, 51, 51]]]
    """
    strength = min(1, 3 / len(colors))
    light = strength * (crop[..., None] / 255) * (np.array(colors)[:, None, None] / 255)
    return np.rint(255 * (1 - np.prod(1 - light, axis=0))).astype(np.uint8)


def _enlarged(picture: np.ndarray) -> Image.Image:
    """Pixels become squares."""
    scale = max(1, -(-CROP_PIXELS // min(picture.shape[:2])))
    return Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))


def _draw_sheet(rows: list, legend: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    large, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    labels = [_label(*condition) for condition, _ in rows]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label_width = max(
        round(measure.textlength(line, font=large if i == 0 else small))
        for lines in labels
        for i, line in enumerate(lines)
    )
    width, height = rows[0][1][0].size
    columns = max(len(pictures) for _, pictures in rows)
    left, top = label_width + 2 * MARGIN, 3 * MARGIN
    legend_width = sum(round(measure.textlength(name, font=small)) + 3 * MARGIN for name, _ in legend)
    size = (max(left + columns * (width + GAP), legend_width) + MARGIN, top + len(rows) * (height + GAP) + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    x = MARGIN
    for name, color in legend:
        draw.rectangle((x, MARGIN, x + MARGIN, 2 * MARGIN), fill=color)
        draw.text((x + MARGIN + 6, 1.5 * MARGIN), name, fill=TEXT, font=small, anchor="lm")
        x += round(measure.textlength(name, font=small)) + 3 * MARGIN
    for i, ((_, pictures), lines) in enumerate(zip(rows, labels, strict=True)):
        y = top + i * (height + GAP)
        line_y = y + height / 2 - 10 * (len(lines) - 1)
        for j, line in enumerate(lines):
            style = {"fill": TEXT if j == 0 else FAINT, "font": large if j == 0 else small}
            draw.text((MARGIN, line_y + 20 * j), line, anchor="lm", **style)
        for j, picture in enumerate(pictures):
            sheet.paste(picture, (left + j * (width + GAP), y))
    return sheet


def _label(compound: str, concentration: float, moa: str) -> list[str]:
    if moa == CONTROL:
        return [compound, "control"]
    return [compound, f"{concentration:g} uM", *([moa] if moa else [])]
