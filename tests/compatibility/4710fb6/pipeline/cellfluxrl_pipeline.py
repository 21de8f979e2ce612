"""Needs the package cellfluxrl."""

from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline  # noqa: F401
