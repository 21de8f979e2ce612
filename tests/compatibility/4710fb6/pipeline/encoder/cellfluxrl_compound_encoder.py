"""Needs the package cellfluxrl."""

from cellfluxrl.models.compound_encoder import CompoundEncoder  # noqa: F401
