"""The columns that every data set of cells has, whatever it was made from."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

CHANNEL_NAMES = ("dna", "tubulin", "actin")
# Of the square roots of all intensities of a plate's cells: what becomes 0 and 255.
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.7


def cell_features(channel_names: Sequence[str], image_size: int, *, published: bool = False) -> datasets.Features:
    """Features of a data set of single-cell crops; the channel names are kept in their metadata.

    `image` is uint8 `(C, H, W)`; if `published` and of three channels, a PNG (red is the last channel, blue the first)
    that takes half the space, is lossless and is shown by the Hub's viewer. `concentration` is in uM; `x` and `y` are
    the nucleus' centre in the field of view, in pixels (NaN where unknown).
    """
    names = ",".join(channel_names)
    if published and len(channel_names) == 3:
        image = datasets.Image(mode="RGB", id=names)
    else:
        image = datasets.Array3D(shape=(len(channel_names), image_size, image_size), dtype="uint8", id=names)
    text, integer, real = datasets.Value("string"), datasets.Value("int32"), datasets.Value("float32")
    return datasets.Features(
        {
            "image": image,
            "compound": text,
            "smiles": text,
            "concentration": real,
            "moa": text,
            "plate": text,
            "well": text,
            "site": integer,
            "replicate": integer,
            "field": text,
            "cell_id": integer,
            "x": real,
            "y": real,
            "is_control": datasets.Value("bool"),
            "split": text,
        }
    )


def channel_names_of(dataset: datasets.Dataset) -> tuple[str, ...]:
    """Names of the image channels of a data set, from its features' metadata."""
    feature = dataset.features.get("image")
    if not isinstance(feature, (datasets.Array3D, datasets.Image)) or not feature.id:
        raise ValueError(f"the data set has no image column with channel names; its columns: {dataset.column_names}")
    return tuple(feature.id.split(","))


def channel_order(
    found: Sequence[str], wanted: Sequence[str], whose: str = "the network", where: str = "the data set has"
) -> list[int]:
    """Where each of the wanted channels is among those that are found; `whose` and `where` are for the message.

    Example:
        >>> channel_order(("actin", "tubulin", "dna"), ("dna", "tubulin", "actin"))
        [2, 1, 0]
    """
    if sorted(found) != sorted(wanted):
        raise ValueError(f"{where} the channels {tuple(found)}, {whose} {tuple(wanted)}")
    return [list(found).index(name) for name in wanted]


def image_shape(dataset: datasets.Dataset) -> tuple[int, int, int]:
    """Shape (C, H, W) of the crops of a data set; that of the first where they are stored as pictures."""
    feature = dataset.features["image"]
    if isinstance(feature, datasets.Array3D):
        return tuple(feature.shape)
    width, height = dataset[0]["image"].size
    return len(channel_names_of(dataset)), height, width
