"""Data files that ship with the package: the pretrained base of the demo."""

from importlib.resources import files

SHIPPED_BASE = files(__name__) / "simulated_base"
