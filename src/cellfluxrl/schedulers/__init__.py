"""Solvers and time grids of the flow."""
