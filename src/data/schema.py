"""The columns that every data set of cells has, whatever it was made from."""

from collections.abc import Sequence

import datasets

CHANNEL_NAMES = ("dna", "tubulin", "actin")


def cell_features(channel_names: Sequence[str], image_size: int) -> datasets.Features:
    """
    Features of a data set of single-cell crops.

    Args:
        channel_names (`Sequence[str]`): Names of the image channels, in order; kept in the features' metadata.
        image_size (`int`): Height and width in pixels.

    Returns:
        `datasets.Features`: `image` is uint8 of shape (C, H, W); `concentration` is in uM; `x` and `y` are the
        nucleus' centre in the field of view, in pixels (NaN where unknown).
    """
    shape = (len(channel_names), image_size, image_size)
    text, integer, real = datasets.Value("string"), datasets.Value("int32"), datasets.Value("float32")
    return datasets.Features(
        {
            "image": datasets.Array3D(shape=shape, dtype="uint8", id=",".join(channel_names)),
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
    """
    Names of the image channels of a data set, from its features' metadata.

    Raises:
        ValueError: If the data set has no image column of cells, or its features name no channels.
    """
    feature = dataset.features.get("image")
    if not isinstance(feature, datasets.Array3D) or not feature.id:
        raise ValueError(f"the data set has no image column with channel names; its columns: {dataset.column_names}")
    return tuple(feature.id.split(","))
