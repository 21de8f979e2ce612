"""Nuclei and cells in images: what a segmenter is, those that come with the package, and what is measured in masks."""

from cellfluxrl.lazy import lazy_names

_PUBLIC = {
    "Masks": "cellfluxrl.rewards.segmentation.protocol",
    "Segmenter": "cellfluxrl.rewards.segmentation.protocol",
    "make_segmenter": "cellfluxrl.rewards.segmentation.protocol",
    "register_segmenter": "cellfluxrl.rewards.segmentation.protocol",
}

__all__ = sorted(_PUBLIC)

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
