"""Needs the package cellfluxrl."""

from cellfluxrl.models.unet import CellFluxUNet2DModel  # noqa: F401
