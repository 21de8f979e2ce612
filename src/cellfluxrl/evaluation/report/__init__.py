"""The report of an evaluation: sections, figures, HTML, text."""
