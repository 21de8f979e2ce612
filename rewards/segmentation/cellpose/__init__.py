"""Cellpose behind the protocol of segmenters; the only place that knows names of the package `cellpose`."""
