"""What an evaluation found, as text for the terminal."""

from __future__ import annotations

import pandas as pd

from cellfluxrl.evaluation.evaluate import Results
from cellfluxrl.evaluation.report.html import MISSING, format_interval
from cellfluxrl.evaluation.report.sections import findings, verdicts
from cellfluxrl.terminal import text_table


def summary(results: Results) -> str:
    """All rows with their intervals, what became of the claims about each model, and the findings."""
    rows = {
        name: {column: " ".join(format_interval(interval)).strip() for column, interval in row.items()}
        for name, row in results.rows.items()
    }
    claims = {
        model: {column: claim.verdict for column, claim in found.items()} for model, found in verdicts(results).items()
    }
    sentences = "\n".join(f"- {sentence}" for sentence in findings(results))
    return "\n\n".join([_table("", rows, list(results.columns)), _table("claims", claims), sentences])


def _table(corner: str, lines: dict[str, dict[str, str]], columns: list[str] | None = None) -> str:
    table = pd.DataFrame.from_dict(lines, orient="index")
    table = table.reindex(columns=columns) if columns else table
    return text_table(table.astype(object).fillna(MISSING).rename_axis(corner).reset_index())
