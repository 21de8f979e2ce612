"""Generated cells as files: pictures, arrays, or a data set of the cell schema."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from cellfluxrl.data.cells import Cells
from cellfluxrl.data.images import to_rgb
from cellfluxrl.data.parquet import ShardWriter, encode_cells
from cellfluxrl.data.schema import cell_features
from cellfluxrl.files import write_whole
from cellfluxrl.pipelines.generation.controls import ORIGIN_COLUMNS

SUFFIXES = {"tiff": ".ome.tiff", "png": ".png", "npy": ".npy"}
FORMATS = (*SUFFIXES, "parquet")
CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test/*.parquet
tags:
- generated
- cellfluxrl
---
# Generated cells

No real cell is shown: a model made these images from control cells. `generated.parquet` holds the seed and the rewards
of each, in the order of these rows, and `provenance.json` names the pipeline, its settings and versions.
"""


def write_image(path: Path, image: np.ndarray, channel_names: Sequence[str]) -> None:
    """Write one image, uint8 `(C, H, W)`, in the format that the name of the file ends in.

    `.tiff` is an OME-TIFF with one named plane a channel; in a `.png`, red is the last channel and blue the first.
    """
    if path.suffix == ".npy":
        write_whole(path, lambda partial: np.save(partial, image, allow_pickle=False))
    elif path.suffix == ".png":
        write_whole(path, Image.fromarray(to_rgb(image)).save)
    else:
        # The UUID that tifffile makes is of the moment: the same image written twice would be two different files.
        identifier = uuid.UUID(bytes=hashlib.sha256(image.tobytes()).digest()[:16])
        metadata = {"axes": "CYX", "Channel": {"Name": list(channel_names)}, "UUID": f"urn:uuid:{identifier}"}
        options = {"ome": True, "photometric": "minisblack", "metadata": metadata}
        write_whole(path, lambda partial: tifffile.imwrite(partial, image, **options))


def write_dataset(
    folder: Path,
    batches: Iterable[tuple[pd.DataFrame, np.ndarray]],
    channel_names: Sequence[str],
    shape: tuple[int, int, int],
) -> list[str]:
    """Write cells that `datasets.load_dataset(folder)` and `cellfluxrl rewards score folder` read, as split `test`.

    Each batch is rows of the table of generated images, and their images: uint8, `(N, *shape)`. Returned is, for each
    row, the file it went to, relative to `folder`.
    """
    features = cell_features(channel_names, shape[-1], published=True)
    if isinstance(features["image"], datasets.Array3D):  # which need not be square
        features["image"] = datasets.Array3D(shape, "uint8", id=features["image"].id)
    writer = ShardWriter(folder / "data" / "test", "generated", features)
    try:
        for table, images in batches:
            writer.write(*encode_cells(Cells(images, _cell_rows(table))))
    except BaseException:
        writer.abandon()
        raise
    files = [f"data/test/{name}" for name, rows in writer.close().items() for _ in range(rows)]
    write_whole(folder / "README.md", lambda partial: partial.write_text(CARD, encoding="utf-8"))
    return files


def _cell_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Fill the columns of the cell schema: what was generated, and where its control is from."""
    rows = table[["compound", "smiles", "concentration", "moa"]].fillna({"moa": ""})
    unknown = {"plate": "", "well": "", "field": table["control"], "x": np.nan, "y": np.nan}
    for column in ORIGIN_COLUMNS:
        name = f"control_{column}"
        rows[column] = table[name] if name in table else unknown.get(column, np.full(len(table), None))
    return rows.assign(is_control=False, split="test")
