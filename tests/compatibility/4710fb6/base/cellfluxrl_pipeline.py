"""Needs the package cellfluxrl."""

from cellfluxrl.pipelines.cellflux import CellFluxPipeline  # noqa: F401
