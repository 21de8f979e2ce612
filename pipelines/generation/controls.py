"""Control cells of a folder, a file or a data set, each checked before anything is generated from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cellfluxrl.data.calibration import MOST_IMAGES, intensity_levels, match_levels
from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.image_files import ImagesToScore, images_of_dataset, images_of_files
from cellfluxrl.data.images import evenly_spread, from_unit, to_unit, unit_floats
from cellfluxrl.data.loading import is_dataset, load_split
from cellfluxrl.errors import unknown_name
from cellfluxrl.pipelines.cellflux import CellFluxPipeline

ORIGIN_COLUMNS = ("plate", "well", "site", "replicate", "field", "cell_id", "x", "y")  # where a control is from


@dataclass(frozen=True)
class Controls:
    """Control images of one size.

    Args:
        rows: One row a control: `control` (its file, or its row in the data set), `control_sha256` (of its pixels,
            shortened) and, of a data set, `control_plate`, `control_well`, ...
        read: Reads that of a row: `(C, H, W)`, float32 in [0, 1], the channels in the network's order.
        skipped: What cannot be used, each with the reason.
    """

    rows: pd.DataFrame
    read: Callable[[int], np.ndarray]
    skipped: list[str]


def open_controls(
    name: str,
    channel_names: Sequence[str],
    channels: Sequence[str] | None = None,
    split: str | None = None,
    max_controls: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Controls:
    """Find the control images, and read each once.

    Args:
        name: A folder of images or a file, as [`images_of_files`] reads them; or a data set, as [`load_split`] does,
            of which the cells with `is_control` are taken.
        channel_names: The channels of the network, in order.
        channels: Those of the files, in order, if they are others; the network's are taken by name.
        split: Which part of a data set; `"test"` by default.
        max_controls: Take at most this many, evenly spread over all.
        image_size: Height and width; by default those of the first control. Controls of another size are skipped.
    """
    path = Path(name)
    if path.exists() and not is_dataset(path):
        if split:
            raise ValueError(f"--split is for data sets; {name!r} holds images")
        found = tuple(channels or channel_names)
        for channel in channel_names:
            if channel not in found:
                raise ValueError(f"the network needs the channel {channel!r}, but --channels names {list(found)}")
        if len(set(found)) < len(found):
            raise ValueError(f"--channels names a channel twice: {list(found)}")
        images = images_of_files(path, found, moa=CONTROL)
    else:
        if channels:
            raise ValueError(f"--channels is for files; the data set {name!r} names its own")
        found = tuple(channel_names)
        images = _controls_of_dataset(name, split or "test", found)
    order = [found.index(channel) for channel in channel_names]

    def read(row: int) -> np.ndarray:
        return np.ascontiguousarray(unit_floats(images.read(row))[order])

    candidates = evenly_spread(len(images.rows), max_controls).tolist()
    kept, digests, skipped = _check_each(images, candidates, read, image_size)
    rows = pd.DataFrame({"control": images.rows["source"].iloc[kept].tolist(), "control_sha256": digests})
    for column in ORIGIN_COLUMNS:
        if column in images.rows:
            rows[f"control_{column}"] = images.rows[column].iloc[kept].to_numpy()
    return Controls(rows, lambda row: read(kept[row]), [*images.skipped, *skipped])


def calibrated(controls: Controls, pipe: CellFluxPipeline) -> Controls:
    """The same controls at the intensities of those of training ([`CellFluxPipeline.calibrate`]), plate by plate.

    Images of files, which name no plate, are taken to be of one. Rows and digests stay as they are.
    """
    reference, levels = pipe.training_levels(), {}
    plate_of = controls.rows.get("control_plate", pd.Series([""] * len(controls.rows))).to_numpy()
    for plate in pd.unique(plate_of):
        rows = np.flatnonzero(plate_of == plate)
        rows = rows[evenly_spread(len(rows), MOST_IMAGES)]
        levels[plate] = intensity_levels(np.stack([from_unit(controls.read(row)) for row in rows]))

    def read(row: int) -> np.ndarray:
        image = torch.from_numpy(from_unit(controls.read(row)))[None]
        return to_unit(match_levels(image, levels[plate_of[row]], reference))[0].numpy()

    return Controls(controls.rows, read, controls.skipped)


def _controls_of_dataset(name: str, split: str, channel_names: tuple[str, ...]) -> ImagesToScore:
    cells = load_split(name, split)
    if "is_control" not in cells.column_names:
        raise unknown_name("column: the data set does not mark its controls by", "is_control", cells.column_names)
    rows = np.flatnonzero(cells["is_control"])
    if len(rows) == 0:
        raise ValueError(f"none of the {len(cells)} cells of {name!r}, split {split!r}, is a control")
    images, _ = images_of_dataset(cells.select(rows), channel_names, moa=CONTROL, whose="the network")
    return ImagesToScore(images.rows.assign(source=[f"row {row}" for row in rows]), images.read)


def _check_each(
    images: ImagesToScore,
    candidates: Sequence[int],
    read: Callable[[int], np.ndarray],
    image_size: tuple[int, int] | None,
) -> tuple[list[int], list[str], list[str]]:
    """Find the rows that can be used, a digest of the pixels of each, and what is wrong with the others."""
    kept, digests, skipped = [], [], []
    expected = image_size
    for row in tqdm(candidates, unit=" controls", desc="reading", leave=False):
        try:
            image = read(row)
            expected = expected or image.shape[1:]
            if image.shape[1:] != expected:
                whose = "the rewards were fitted on" if image_size else "the first control has"
                raise ValueError(f"{image.shape[1:]} pixels, {whose} {expected}")
        except (ValueError, OSError) as error:
            source = images.rows["source"].iloc[row]
            skipped.append(str(error) if str(error).startswith(source) else f"{source}: {error}")
            continue
        kept.append(row)
        digests.append(hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:16])
    if not kept:
        raise ValueError(f"none of the {len(candidates)} controls can be used; the first: {skipped[0]}")
    return kept, digests, skipped
