"""Images at the edges of the package (uint8, PIL, numpy, [0, 1]) and inside it (float32 in [-1, 1])."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image

ImageBatch: TypeAlias = "torch.Tensor | np.ndarray | Image.Image | Sequence[torch.Tensor | np.ndarray | Image.Image]"

Images = TypeVar("Images", torch.Tensor, np.ndarray)

# In the order of the channels; three channels are shown in pure blue, green and red.
PALETTE = (
    (0, 90, 255),
    (0, 220, 60),
    (255, 40, 20),
    (230, 180, 0),
    (220, 0, 220),
    (0, 200, 220),
    (255, 120, 0),
    (160, 160, 160),
)
BLUE_GREEN_RED = ((0, 0, 255), (0, 255, 0), (255, 0, 0))


def as_model_images(images: ImageBatch, channel_names: Sequence[str]) -> torch.Tensor:
    """Convert images of any accepted kind to what the networks take.

    Args:
        images: One image or a batch, as

            - uint8 arrays or tensors, `(C, H, W)` or `(N, C, H, W)`, in 0-255;
            - float arrays or tensors of the same shapes, in [0, 1], or in [-1, 1] if any value is negative (as
              diffusers reads them);
            - PIL images in RGB, for three channels: red is the last channel (actin), blue the first (DNA), the
              order in which they are displayed and in which CellFlux stores them;
            - a sequence of such images of one size.
        channel_names: The channels that are expected, in order.

    Returns:
        `torch.Tensor` of shape `(N, C, H, W)`, float32 in [-1, 1].

    Raises:
        ValueError: For another type, shape, channel count or range, or for NaN, naming what was given.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("the list of images is empty")
        singles = [_pil_to_array(i, channel_names) if isinstance(i, Image.Image) else i for i in images]
        shapes = {tuple(getattr(i, "shape", ())) for i in singles}
        if len(shapes) > 1:
            raise ValueError(f"images in a list must have one shape, got {sorted(shapes)}")
        tensors = [_as_tensor(i) for i in singles]
        if len({t.dtype for t in tensors}) > 1:
            raise ValueError(f"images in a list must have one type, got {sorted({str(t.dtype) for t in tensors})}")
        images = torch.stack(tensors)
    else:
        images = _as_tensor(images)
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] != len(channel_names):
        hint = "; channels come before height and width" if images.shape[-1:] == (len(channel_names),) else ""
        raise ValueError(
            f"images must have shape (N, {len(channel_names)}, H, W) for the channels {tuple(channel_names)}, "
            f"got {tuple(images.shape)}{hint}"
        )
    if images.shape[0] == 0:
        raise ValueError("the batch of images is empty")
    if images.numel() == 0:
        raise ValueError(f"the images have no pixels: their shape is {tuple(images.shape)}")
    return _to_range(images)


def _as_tensor(image: torch.Tensor | np.ndarray) -> torch.Tensor:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"images must be uint8 or floating point, got {image.dtype}: rescale them first")
        return torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"images must be tensors, numpy arrays or PIL images, got {type(image).__name__}")
    return image


def _to_range(images: torch.Tensor) -> torch.Tensor:
    if images.dtype == torch.uint8:
        return images_to_tensor(images)
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}: rescale them first")
    images = images.float()
    low, high = float(images.amin()), float(images.amax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"images hold values that are not finite (NaN or infinity): minimum {low}, maximum {high}")
    tolerance = 1e-4
    if low < -1 - tolerance or high > 1 + tolerance:
        raise ValueError(f"float images must lie in [0, 1] or [-1, 1], got values from {low:g} to {high:g}")
    return images if low < 0 else from_unit(images)


def _pil_to_array(image: Image.Image, channel_names: Sequence[str]) -> np.ndarray:
    if len(channel_names) != 3 or image.mode != "RGB":
        raise ValueError(
            f"PIL images must be RGB, and are for three channels only; got mode {image.mode!r} for the channels "
            f"{tuple(channel_names)}: give an array of shape (C, H, W)"
        )
    return from_rgb(np.asarray(image))


def images_to_tensor(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Turn uint8 images into float32 in [-1, 1]."""
    return torch.as_tensor(images).float().div(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert `(N, C, H, W)` images in [-1, 1] to uint8, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def to_unit(images: Images) -> Images:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def from_unit(images: Images) -> Images:
    """From [0, 1] to [-1, 1]."""
    return 2 * images - 1


def unit_floats(images: np.ndarray) -> np.ndarray:
    """Images as they are read, uint8 or floats in [0, 1], as float32 in [0, 1]."""
    return np.float32(images) / 255 if images.dtype == np.uint8 else np.float32(images)


def from_rgb(pixels: np.ndarray) -> np.ndarray:
    """Turn `(..., H, W, 3)` into three channels `(..., 3, H, W)`: red is the last channel, blue the first."""
    return np.moveaxis(pixels[..., ::-1], -1, -3)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Undo [`from_rgb`]; the result is contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, -3, -1)[..., ::-1])


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Convert `(N, 3, H, W)` images in [-1, 1] to RGB: red is the last channel, blue the first."""
    if images.shape[1] != 3:
        raise ValueError(f'output_type="pil" needs three channels, there are {images.shape[1]}: use "pt" or "np"')
    return [Image.fromarray(picture) for picture in to_rgb(to_uint8(images))]


def channel_colors(count: int) -> Sequence[tuple[int, int, int]]:
    """The colour of each of `count` channels, RGB in 0-255, where all are shown in one picture."""
    return BLUE_GREEN_RED if count == 3 else PALETTE[:count]


def composite(crop: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Lay coloured channels of a `(C, H, W)` uint8 crop over each other as light is, `(H, W, 3)` uint8.

    "Screen", 1 - product of (1 - light), cannot overflow. In pure blue, green and red the channels stay apart. More
    than three channels are dimmed, or else most cells would be white.

    Example:
        >>> composite(np.full((3, 1, 1), 51, np.uint8), BLUE_GREEN_RED).tolist()
        [[[51, 51, 51]]]
    """
    strength = min(1, 3 / len(colors))
    light = strength * (crop[..., None] / 255) * (np.array(colors)[:, None, None] / 255)
    return np.rint(255 * (1 - np.prod(1 - light, axis=0))).astype(np.uint8)


def evenly_spread(count: int, at_most: int | None) -> np.ndarray:
    """Positions of `at_most` of `count` images, from the first to the last; all if they are not more."""
    return np.linspace(0, count - 1, count if at_most is None else min(count, at_most)).round().astype(int)
