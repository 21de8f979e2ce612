"""Cellpose as a segmenter; all that touches the names of the cellpose package lies here."""
