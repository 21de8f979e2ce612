"""Data files that ship with the package: the pretrained base of the demo."""
