"""Solvers and time grids of the flow."""

from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler, CellFluxFlowMatchSchedulerOutput

__all__ = ["CellFluxFlowMatchScheduler", "CellFluxFlowMatchSchedulerOutput"]
