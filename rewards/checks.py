"""Whether images are those that a suite can score."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_shape(shape: Sequence[int], moa: Sequence[str], channel_names: Sequence[str]) -> None:
    """Raise a `ValueError` unless the shape is `(N, C, H, W)` with the channels named, and there are N MoAs."""
    if isinstance(moa, str) or len(moa) != shape[0]:
        raise ValueError(f"moa must name one MoA for each of the {shape[0]} images, got {moa!r}")
    if shape[0] == 0:
        raise ValueError("the batch of images is empty")
    if len(shape) != 4 or shape[1] != len(channel_names):
        raise ValueError(
            f"images must be (N, {len(channel_names)}, H, W), one plane for each of {channel_names}, "
            f"got {tuple(shape)}"
        )


def check_size(
    size: tuple[int, ...], pixel_size: float | None, fitted: Sequence[int] | None, pixel_of_fit: float | None
) -> None:
    """Raise a `ValueError` if images are of another size than those of the fit, or their pixels are.

    Args:
        size: Height and width in pixels.
        pixel_size: Width of a pixel in micrometres, if it is known.
        fitted, pixel_of_fit: The same of the fit, as far as they are known.
    """
    if fitted and size != tuple(fitted):
        raise ValueError(
            f"the images are {size} pixels, the suite's statistics are of {tuple(fitted)}: "
            "areas and counts do not compare. Resize images of the same field of view, or fit another suite"
        )
    if pixel_of_fit and pixel_size and not math.isclose(pixel_of_fit, pixel_size, rel_tol=0.01):
        ratio = pixel_size / pixel_of_fit
        raise ValueError(
            f"the pixels of the images are {pixel_size:g} um wide, those that the suite was fitted on "
            f"{pixel_of_fit:g} um: resize the images by {ratio:.3g} and cut the same number of pixels, or fit another "
            "suite"
        )
