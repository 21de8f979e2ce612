"""Nuclei and cells in images: what a segmenter is, those that come with the package, and what is measured in masks."""

from typing import TYPE_CHECKING

from cellfluxrl.lazy import lazy_names

if TYPE_CHECKING:  # what editors and type checkers see of the names below
    from cellfluxrl.rewards.segmentation.protocol import Masks as Masks
    from cellfluxrl.rewards.segmentation.protocol import Segmenter as Segmenter
    from cellfluxrl.rewards.segmentation.protocol import make_segmenter as make_segmenter
    from cellfluxrl.rewards.segmentation.protocol import register_segmenter as register_segmenter

__all__ = ["Masks", "Segmenter", "make_segmenter", "register_segmenter"]

_PUBLIC = {
    "Masks": "cellfluxrl.rewards.segmentation.protocol",
    "Segmenter": "cellfluxrl.rewards.segmentation.protocol",
    "make_segmenter": "cellfluxrl.rewards.segmentation.protocol",
    "register_segmenter": "cellfluxrl.rewards.segmentation.protocol",
}

if not TYPE_CHECKING:  # to a type checker, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
