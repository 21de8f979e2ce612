"""Generating treated cells in bulk: controls, treatments, files that resume, their table."""
