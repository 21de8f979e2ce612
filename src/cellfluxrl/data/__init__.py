"""Cells: their schema, reading, pairing and describing data sets of them."""
