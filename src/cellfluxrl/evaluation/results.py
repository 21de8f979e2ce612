"""The results of an evaluation as `results.json` and CSV tables; `docs/evaluation.md` documents both."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfluxrl.evaluation.evaluate import GroupRow, Results
from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.files import write_whole

SCHEMA_VERSION = 1


def results_dict(results: Results, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the values of single images, as JSON can hold it: what is not known is `None`."""
    return _plain(
        {
            "schema": "cellfluxrl/evaluation",
            "schema_version": SCHEMA_VERSION,
            "settings": dict(settings),
            "evaluators": results.evaluators,
            "models": results.models,
            "columns": results.columns,
            "rows": results.rows,
            "by_moa": results.by_moa,
            "by_compound": results.by_compound,
            "effects": results.effects.agreement,
            "memorisation": results.memorisation,
            "paired": [{"ours": a, "theirs": b, "tests": tests} for (a, b), tests in results.paired.items()],
            "best_of_n": results.best_of_n,
            "claims": [{**vars(c), "excludes_null": c.excludes_null} for c in results.claims],
            "notes": results.notes,
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if dataclasses.is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_results(
    folder: str | Path, results: Results, table: pd.DataFrame, settings: Mapping[str, Any]
) -> list[Path]:
    """Write `results.json` and the tables of an evaluation; `table` holds the N conditions of each row."""
    folder = Path(folder)
    tables = {
        "table": pd.DataFrame(
            {"row": row, "column": column, **values[column]._asdict(), "optimised": about.optimised}
            for row, values in results.rows.items()
            for column, about in results.columns.items()
            if column in values
        ),
        "by_moa": _group_table(results.by_moa, "moa"),
        "by_compound": _group_table(results.by_compound, "compound"),
        "effects": _effects_table(results),
        "paired": pd.DataFrame(
            {"ours": ours, "theirs": theirs, "column": column, **test.difference._asdict()}
            | {"p_value": test.p_value, "p_value_holm": test.adjusted, "pairs": test.count}
            for (ours, theirs), tests in results.paired.items()
            for column, test in tests.items()
        ),
        "cells": _cells_table(results, table),
    }
    paths = []
    for name, content in tables.items():
        paths.append(folder / f"{name}.csv")
        content.to_csv(paths[-1], index=False)
    text = json.dumps(results_dict(results, settings), indent=2, allow_nan=False)
    write_whole(folder / "results.json", lambda path: path.write_text(text))
    return [folder / "results.json", *paths]


def _group_table(groups: Mapping[str, Mapping[str, GroupRow]], name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": row, name: label, "cells": group.count, "reference_cells": group.reference, "column": column}
        | interval._asdict()
        for row, by_group in groups.items()
        for label, group in by_group.items()
        for column, interval in group.values.items()
    )


def _effects_table(results: Results) -> pd.DataFrame:
    effects = results.effects
    index = pd.MultiIndex.from_product([effects.compounds, effects.features], names=["compound", "feature"])
    columns = {"real": effects.reference.ravel(), **{name: row.ravel() for name, row in effects.rows.items()}}
    return pd.DataFrame(columns, index=index).reset_index()


def _cells_table(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """One line for each cell of each row."""
    parts = []
    for row, measured in results.measurements.items():
        if row == "reference":
            continue
        values = {f"reward_{name}": v for name, v in measured.rewards.items()}
        values |= {f"probability_{name}": v for name, v in measured.probabilities.items()}
        values |= {"measurable": measured.measurable}
        part = table.reset_index(drop=True).assign(**values)
        part.insert(0, "row", row)
        part.insert(1, "cell", range(len(part)))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
