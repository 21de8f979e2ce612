"""Data sets of cells as builders of the `datasets` library."""
