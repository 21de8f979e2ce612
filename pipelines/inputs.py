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
    """Convert control images of any accepted kind to `(N, C, H, W)`, float32 in [-1, 1].

    They are whatever [`as_model_images`] takes (tensors, arrays, PIL images, lists of them), or cells of a data set: a
    `datasets.Dataset` with a column `image`, a slice of it such as `cells[:4]`, a row, or a list of rows. The column
    may be an `Array3D` (C, H, W) or an `Image` (RGB: red is the last channel). Where the features of a `Dataset` name
    its channels (`features["image"].id`, "dna,tubulin,actin"), they are brought into the network's order; everything
    else is taken to be in that order already.
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
        # The numpy format gives int64 unless a type is named.
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


def check_condition(
    compounds: Mapping[str, Any],
    concentration: float | Sequence[float] | None,
    width: int | None,
    *,
    is_conditioned_on_dose: bool,
) -> None:
    """Check that a network with conditions of `width` numbers takes these compounds and concentrations."""
    if width is None:
        if compounds or concentration is not None:
            given = ", ".join([*compounds, *(["concentration"] if concentration is not None else [])])
            raise ValueError(f"this network is unconditional (condition_dim is None): leave {given} None")
        return
    if len(compounds) != 1:
        given = " and ".join(compounds) or "none"
        raise ValueError(f"give either a compound name or a SMILES or compound_embeds; given: {given}")
    embeds = compounds.get("compound_embeds")
    if embeds is not None:
        if not isinstance(embeds, torch.Tensor) or embeds.ndim not in (1, 2) or embeds.shape[-1] != width:
            shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
            raise ValueError(f"compound_embeds must be a tensor of shape (N, {width}) or ({width},), got {shape}")
        if not embeds.isfinite().all():
            raise ValueError("compound_embeds hold values that are not finite (NaN or infinity)")
    if embeds is not None and concentration is not None:
        raise ValueError(f"concentration={concentration} is part of compound_embeds: leave it None")
    if not is_conditioned_on_dose and concentration is not None:
        raise ValueError(
            f"concentration={concentration}: this network is not conditioned on the concentration; leave it None"
        )
    if is_conditioned_on_dose and concentration is None and embeds is None:
        raise ValueError("this network is conditioned on the concentration: give concentration= in uM")


def number_of(value: Any) -> int | None:
    """The number of values of a sequence, or `None` for a single value."""
    return None if isinstance(value, str) or not hasattr(value, "__len__") else len(value)


def one_for_each(value: Any, count: int) -> list[Any]:
    """The values of a sequence, or a single value `count` times."""
    return [value] * count if number_of(value) is None else list(value)


def check_size(images: torch.Tensor, factor: int) -> None:
    """Check that height and width are multiples of what the network halves them by."""
    size = tuple(images.shape[2:])
    if any(side % factor for side in size):
        nearest = tuple(max(factor, round(side / factor) * factor) for side in size)
        raise ValueError(
            f"height and width must be multiples of {factor}, got {size}; the nearest that fits is {nearest}"
        )


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Check that the processor computes in this type."""
    if device.type == "cpu" and dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise ValueError(
            "this CPU does not compute in float16 (it would be many times slower than float32): "
            "load the pipeline with dtype=torch.bfloat16 or torch.float32"
        )
