"""Rows of cells as Parquet files that the Hub's viewer and `datasets` read."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cellfluxrl.data.cells import Cells
from cellfluxrl.files import contained_path

if TYPE_CHECKING:  # processes that only encode do not wait for it
    import datasets

ROWS_PER_SHARD = 20_000
ROWS_PER_GROUP = 1_000


def row_groups(cells: Iterable[Cells]) -> Iterator[Cells]:
    """Cut up what is too large for one row group of a file."""
    for part in cells:
        for start in range(0, len(part.rows), ROWS_PER_GROUP):
            chosen = slice(start, start + ROWS_PER_GROUP)
            yield Cells(part.images[chosen], part.rows.iloc[chosen])


def encode_cells(cells: Cells) -> tuple[pd.DataFrame, Sequence[bytes | np.ndarray]]:
    """Rows, and images as they are published: PNG of three channels (red is the last), arrays of other numbers."""
    if cells.images.shape[1] != 3:
        return cells.rows, cells.images
    return cells.rows, [_png(image) for image in np.ascontiguousarray(cells.images[:, ::-1].transpose(0, 2, 3, 1))]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    # Run-length matching suits the noise of microscopes: smaller than the default at level 1, and four times as fast
    # as at level 6.
    Image.fromarray(image).save(file, "png", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


class ShardWriter:
    """Writes `folder/NAME-00000.parquet`, `-00001`, ... with at most `ROWS_PER_SHARD` rows each."""

    def __init__(self, folder: Path, name: str, features: datasets.Features):
        self.folder, self.name, self.features = folder, name, features
        self.schema = features.arrow_schema
        self.rows: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, rows: pd.DataFrame, images: Sequence[bytes | np.ndarray]) -> None:
        """Append rows, as one row group."""
        if self._writer is None or next(reversed(self.rows.values())) + len(rows) > ROWS_PER_SHARD:
            self.close()
            file = f"{self.name}-{len(self.rows):05d}.parquet"
            self.rows[file] = 0
            self._writer = pq.ParquetWriter(contained_path(self.folder, file), self.schema, write_page_index=True)
        columns = [
            _image_column(images, field.type)
            if field.name == "image"
            else pa.array(rows[field.name].to_numpy(), field.type)
            for field in self.schema
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self.rows[next(reversed(self.rows))] += len(rows)

    def close(self) -> dict[str, int]:
        """Finish the last file; returns the number of rows by file name."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return self.rows

    def abandon(self) -> None:
        """Let go of a file that is of no use."""
        with suppress(OSError):
            self.close()


def _image_column(images: Sequence[bytes | np.ndarray], type: pa.DataType) -> pa.Array:
    if isinstance(type, pa.StructType):
        return pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.nulls(len(images), pa.string())], fields=list(type)
        )
    stack = np.stack(images)
    storage = pa.array(stack.ravel())
    for size in reversed(stack.shape[1:]):
        storage = pa.ListArray.from_arrays(np.arange(0, len(storage) + 1, size, dtype=np.int32), storage)
    return pa.ExtensionArray.from_storage(type, storage)
