"""Folders of `PLATE.npz` files with raw single-cell crops of BBBC021."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.data.cells import ROW_COLUMNS, Cells, Map, PlateLog, chosen_plates
from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.data.splits import batch_of
from cellfluxrl.errors import unknown_name

ARRAYS = ("image", "well", "site", "fov", "cell", "compound", "concentration", "replicate")


class CropFolder:
    """Raw crops of BBBC021, one `PLATE.npz` a plate.

    Each holds `image`, uint16 (N, H, W, 3) in the order DNA, beta-tubulin, actin, and per crop `well`, `site`, `fov`
    (the field of view), `cell`, `compound`, `concentration` (uM) and `replicate`.

    Args:
        data_dir: The folder.
        plates: All by default.
        image_size: Height and width that crops are resized to; by default they keep theirs.

    Raises:
        ValueError: For a file that cannot be used, or an unknown plate or compound.
    """

    channel_names = CHANNEL_NAMES

    def __init__(self, data_dir: str | Path, plates: Sequence[str] | None = None, image_size: int | None = None):
        self.paths = _plate_files(data_dir)
        tables, sizes = [], set()
        for plate in chosen_plates(plates, self.paths):
            arrays = _load(self.paths[plate])
            tables.append(_rows(plate, arrays, self.paths[plate]))
            sizes.add(arrays["image"].shape[1:3])
        if image_size is None and (len(sizes) > 1 or len(set(*sizes)) > 1):
            raise ValueError(f"the crops differ in size, {sorted(sizes)}: image_size must say what to resize them to")
        self.image_size = image_size or min(sizes)[0]
        unique = ["plate", "field", "compound", "concentration"]
        self.fields = pd.concat(tables).drop_duplicates(unique).reset_index(drop=True)
        self.settings = {"image_size": self.image_size}

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """See [`Source`]."""
        arrays = _load(self.paths[plate])
        crops = np.ascontiguousarray(arrays["image"].transpose(0, 3, 1, 2))
        rows = _rows(plate, arrays, self.paths[plate])
        log.fields += rows["field"].nunique()
        log.cells += len(rows)
        progress(rows["field"].nunique())
        yield Cells(normalize_plate(crops, self.image_size), rows[list(ROW_COLUMNS)])


def _rows(plate: str, arrays: dict[str, np.ndarray], path: Path) -> pd.DataFrame:
    known = known_compounds()
    compounds = pd.Series(arrays["compound"].astype(str))
    for name in sorted(set(compounds) - set(known.index)):
        raise unknown_name(f"compound in {path.name}", name, known.index)
    return pd.DataFrame(
        {
            "compound": compounds,
            "smiles": compounds.map(known["smiles"]),
            "concentration": arrays["concentration"].astype(float),
            "moa": compounds.map(known["moa"]),
            "plate": plate,
            "batch": batch_of(plate),
            "well": arrays["well"].astype(str),
            "site": arrays["site"].astype(int),
            "replicate": arrays["replicate"].astype(int),
            "field": arrays["fov"].astype(str),
            "cell_id": arrays["cell"].astype(int),
            "x": np.nan,
            "y": np.nan,
            "is_control": compounds == CONTROL,
        }
    )


def _plate_files(data_dir: str | Path) -> dict[str, Path]:
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not a folder")
    plates = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not plates:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} has no PLATE.npz files; it holds: {found}")
    return plates


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS if name in archive}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a plate of crops: {error}") from error
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it holds {list(arrays)}")
    image = arrays["image"]
    if image.ndim != 4 or image.shape[-1] != len(CHANNEL_NAMES) or image.shape[0] == 0:
        raise ValueError(
            f"{path}: image must have shape (N, H, W, {len(CHANNEL_NAMES)}) with N > 0, got {image.shape}"
        )
    if image.dtype != np.uint16:
        raise ValueError(f"{path}: image must be uint16, got {image.dtype}")
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: every field must have one entry for each crop, got {lengths}")
    return arrays
