"""Nuclei and cells in images: what a segmenter is, those that come with the package, and what is measured in masks."""

from cellfluxrl.rewards.segmentation.protocol import Masks, Segmenter, make_segmenter, register_segmenter

__all__ = ["Masks", "Segmenter", "make_segmenter", "register_segmenter"]
