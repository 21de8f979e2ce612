"""Control images as users have them, rows of a data set included, to what the network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch

from cellfluxrl.data.images import ImageBatch, as_model_images
from cellfluxrl.data.schema import channel_order

ControlImages: TypeAlias = "ImageBatch | datasets.Dataset | Mapping[str, Any] | Sequence[Mapping[str, Any]]"


def as_control_images(images: ControlImages, channel_names: Sequence[str]) -> torch.Tensor:
    """Convert control images of any accepted kind to what the networks take.

    Args:
        images: Whatever [`as_model_images`] takes (tensors, arrays, PIL images, lists of them), or cells of a data
            set: a `datasets.Dataset` with a column `image`, a slice of it such as `cells[:4]`, a row, or a list of
            rows. The column may be an `Array3D` (C, H, W) or an `Image` (RGB: red is the last channel). Where the
            features of a `Dataset` name its channels (`features["image"].id`, "dna,tubulin,actin"), they are brought
            into the network's order; everything else is taken to be in that order already.
        channel_names: The channels of the network, in order.

    Returns:
        `torch.Tensor` of shape `(N, C, H, W)`, float32 in [-1, 1].

    Raises:
        ValueError: If the data set has other channels than the network, or for what [`as_model_images`] refuses.
    """
    if isinstance(images, datasets.Dataset):
        return _from_dataset(images, tuple(channel_names))
    if isinstance(images, Mapping):
        images = _image_of(images)
    elif isinstance(images, (list, tuple)) and images and all(isinstance(row, Mapping) for row in images):
        images = [_image_of(row) for row in images]
    return as_model_images(images, channel_names)


def _from_dataset(cells: datasets.Dataset, channel_names: tuple[str, ...]) -> torch.Tensor:
    if "image" not in cells.column_names:
        raise ValueError(f"the data set has no column 'image'; its columns: {cells.column_names}")
    if len(cells) == 0:
        raise ValueError("the data set of control images is empty")
    feature = cells.features["image"]
    found = tuple(feature.id.split(",")) if getattr(feature, "id", None) else channel_names
    order = channel_order(found, channel_names)
    if isinstance(feature, datasets.Array3D):
        # The numpy format gives int64 unless told.
        images = np.asarray(cells.with_format("numpy", columns=["image"])[:]["image"], dtype=feature.dtype)
    else:
        images = list(cells.with_format(None)["image"])
    return as_model_images(images, found)[:, order]


def _image_of(row: Mapping[str, Any]) -> Any:
    """The image of a row, or the images of a slice: uint8 comes out of `datasets` as int64 or as nested lists."""
    if "image" not in row:
        raise ValueError(f"a row of a data set needs an 'image', got the columns {sorted(row)}")
    images = row["image"]
    innermost = images
    while isinstance(innermost, (list, tuple)) and innermost:
        innermost = innermost[0]
    if isinstance(innermost, (int, float)):
        try:
            images = np.asarray(images)
        except ValueError:
            raise ValueError("the images of a slice differ in shape: give images of one size") from None
    if str(getattr(images, "dtype", "")).endswith("int64") and images.min() >= 0 and images.max() <= 255:
        images = np.asarray(images).astype(np.uint8)
    return images
