"""Some cells of each condition of a data set, in one picture."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.images import PALETTE, channel_colors, composite, from_rgb
from cellfluxrl.data.info import Cells, parquet_files
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.files import write_whole
from cellfluxrl.seeding import numpy_generator

CONDITION = ["compound", "moa", "concentration"]
MAX_ROWS = 40  # with more conditions than this, the highest dose of each compound stands for it
CROP_PIXELS = 96  # crops are enlarged to at least this
GAP, MARGIN = 4, 14  # px
BACKGROUND, TEXT, FAINT = (20, 21, 24), (235, 235, 235), (160, 164, 172)


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
    """
    if isinstance(source, (str, Path)):
        source = _FolderRows(parquet_files(source))
    elif isinstance(source, datasets.DatasetDict):
        source = datasets.concatenate_datasets(list(source.values()))
    names = channel_names_of(source)
    if not 2 <= len(names) <= len(PALETTE):
        raise ValueError(f"a contact sheet shows 2 to {len(PALETTE)} channels, got {len(names)}: {names}")
    if len(source) == 0:
        raise ValueError("the data set is empty: there are no cells to show")
    if cells_per_row < 1:
        raise ValueError(f"cells_per_row must be at least 1, got {cells_per_row}")
    colors = channel_colors(len(names))
    chosen = _choose_cells(_conditions(source), cells_per_row, seed)
    rows = [
        (condition, [_enlarged(composite(crop, colors)) for crop in _read_crops(source.select(indices))])
        for condition, indices in chosen
    ]
    write_whole(path, _draw_sheet(rows, list(zip(names, colors, strict=True))).save)


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
    """Decode uint8 crops of shape `(C, H, W)`."""
    crops = cells.select_columns(["image"]).with_format("numpy")[:]["image"]
    is_png = isinstance(cells.features["image"], datasets.Image)
    return [from_rgb(np.asarray(crop)) if is_png else np.asarray(crop) for crop in crops]


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
