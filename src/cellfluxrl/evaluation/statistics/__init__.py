"""Distances, intervals and tests between sets of cells; they see arrays and no images."""
