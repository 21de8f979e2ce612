"""Needs the package cellfluxrl."""

from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler  # noqa: F401
