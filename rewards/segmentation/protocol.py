"""What a segmenter is, and how one is chosen by its name."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol

import numpy as np

from cellfluxrl.errors import unknown_name

NUCLEUS_CHANNEL = "dna"
ENTRY_POINTS = "cellfluxrl.segmenters"
SEGMENTERS: dict[str, type] = {}
SHIPPED = {  # each registers itself when it is imported, which takes a while
    "cellpose": "cellfluxrl.rewards.segmentation.cellpose.segmenter",
    "otsu": "cellfluxrl.rewards.segmentation.otsu",
    "watershed": "cellfluxrl.rewards.segmentation.watershed",
}


@dataclass(frozen=True)
class Masks:
    """Instance labels of the nuclei and cells of N images.

    Attributes:
        nuclei: (N, H, W) int32; 0 is background, the K nuclei of an image are 1 to K.
        cells: (N, H, W) int32; 0 is background, the K cells of an image are 1 to K. A cell's label says nothing about
            the label of the nucleus inside it.
    """

    nuclei: np.ndarray
    cells: np.ndarray


class Segmenter(Protocol):
    """Anything that turns images into `Masks`: implement this to plug in another method.

    To be saved with a reward suite it is a dataclass whose fields go into JSON, and is known by its name
    ([`register_segmenter`]).
    """

    name: ClassVar[str]

    def __call__(self, images: np.ndarray) -> Masks:
        """Segment (N, C, H, W) float images with values in [0, 1]."""
        ...


def check_images(images: np.ndarray, channel_names: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless `images` are (N, C, H, W) finite floats in [0, 1] with the channels named."""
    if not isinstance(images, np.ndarray) or not np.issubdtype(images.dtype, np.floating):
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a numpy array of floats in [0, 1], got {kind}")
    if images.ndim != 4 or images.shape[1] != len(channel_names) or min(images.shape[2:]) < 1:
        raise ValueError(
            f"images must be (N, {len(channel_names)}, H, W) with the channels {channel_names}, got {images.shape}"
        )
    if images.size == 0:
        return
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise ValueError(f"images must be finite and in [0, 1], got values from {low} to {high}")


def check_settings(segmenter: Any) -> None:
    """Check the settings that segmenters of one nucleus channel share, and make `channel_names` a tuple.

    Args:
        segmenter: A frozen dataclass with `channel_names` and `nucleus_channel`, whose other numbers are lengths,
            areas, thresholds and the like.

    Raises:
        ValueError: If `nucleus_channel` is not one of `channel_names`, a name occurs twice, or a number is not
            positive and finite.
    """
    names = tuple(segmenter.channel_names)  # a list is what JSON returns
    object.__setattr__(segmenter, "channel_names", names)
    if len(set(names)) != len(names):
        raise ValueError(f"channel_names must differ from each other, got {names!r}")
    if segmenter.nucleus_channel not in names:
        raise unknown_name("nucleus_channel", segmenter.nucleus_channel, names)
    for field in dataclasses.fields(segmenter):
        value = getattr(segmenter, field.name)
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise ValueError(f"{field.name} must be positive and finite, got {value!r}")


def register_segmenter(segmenter: type) -> type:
    """Make a segmenter known by its `name`, so that suites can use, save and load it. Works as a decorator.

    A package that is installed beside this one can do without: an entry point of the group `cellfluxrl.segmenters`,
    named as the segmenter and pointing to its class, is found by itself.

    Raises:
        ValueError: If it is not a dataclass, has no name, or another segmenter has the name.

    Example:
        >>> @register_segmenter
        ... @dataclass(frozen=True)
        ... class Threshold:
        ...     name: ClassVar[str] = "threshold"
        ...     level: float = 0.5
        ...
        ...     def __call__(self, images: np.ndarray) -> Masks:
        ...         nuclei = (images[:, 0] > self.level).astype(np.int32)
        ...         cells = (images.max(axis=1) > self.level).astype(np.int32)
        ...         return Masks(nuclei, cells)
        >>> make_segmenter("threshold", level=0.4)
        Threshold(level=0.4)
    """
    name = getattr(segmenter, "name", None)
    if not isinstance(name, str) or not dataclasses.is_dataclass(segmenter):
        raise ValueError(f"a segmenter is a dataclass with a `name`, got {segmenter!r}")
    if SEGMENTERS.get(name, segmenter) is not segmenter:
        raise ValueError(f"there is a segmenter {name!r} already: {SEGMENTERS[name]!r}")
    SEGMENTERS[name] = segmenter
    return segmenter


def make_segmenter(name: str, **settings: Any) -> Segmenter:
    """Build a segmenter from its name and settings, for example from a configuration file.

    Args:
        name: A registered segmenter, or an entry point of the group `cellfluxrl.segmenters`.
        **settings: Fields of that segmenter. `channel_names` is for those that have such a field: the others look at
            the images as they come.

    Raises:
        ValueError: If the name or a setting is unknown, or a setting's value is not allowed.

    Example:
        >>> make_segmenter("watershed", nucleus_sigma=1.5).nucleus_sigma
        1.5
    """
    segmenter = _segmenter_class(name)
    fields = [field.name for field in dataclasses.fields(segmenter)]
    if "channel_names" not in fields:
        settings.pop("channel_names", None)
    for setting in settings:
        if setting not in fields:
            raise unknown_name(f"setting of segmenter {name!r}:", setting, fields)
    return segmenter(**settings)


def _segmenter_class(name: str) -> type:
    if name in SHIPPED:
        importlib.import_module(SHIPPED[name])
    if name in SEGMENTERS:
        return SEGMENTERS[name]
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in plugins:
        raise unknown_name("segmenter", name, sorted({*SHIPPED, *SEGMENTERS, *plugins}))
    return register_segmenter(plugins[name].load())
