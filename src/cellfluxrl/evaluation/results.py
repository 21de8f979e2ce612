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

from cellfluxrl.evaluation.evaluate import Results
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
            "columns": {name: dataclasses.asdict(column) for name, column in results.columns.items()},
            "rows": results.rows,
            "by_moa": results.by_moa,
            "by_compound": results.by_compound,
            "effects": results.effects.agreement,
            "memorisation": results.memorisation,
            "paired": [{"ours": a, "theirs": b, "tests": tests} for (a, b), tests in results.paired.items()],
            "best_of_n": results.best_of_n,
            "claims": [{**_fields(c), "excludes_null": c.excludes_null} for c in results.claims],
            "notes": results.notes,
        }
    )


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {name: _plain(number) for name, number in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        return _plain(_fields(value))
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
    """Write `results.json` and the tables of an evaluation.

    Args:
        folder: Where the files go.
        results: What came out.
        table: Plate, compound, concentration and mechanism of each of the N conditions.
        settings: What is needed to run it again.

    Returns:
        The files.
    """
    folder = Path(folder)
    tables = {
        "table": _rows_table(results),
        "by_moa": _group_table(results.by_moa, "moa"),
        "by_compound": _group_table(results.by_compound, "compound"),
        "effects": _effects_table(results),
        "paired": _paired_table(results),
        "cells": _cells_table(results, table),
    }
    paths = []
    for name, content in tables.items():
        paths.append(folder / f"{name}.csv")
        content.to_csv(paths[-1], index=False)
    text = json.dumps(results_dict(results, settings), indent=2, allow_nan=False)
    write_whole(folder / "results.json", lambda path: path.write_text(text))
    return [folder / "results.json", *paths]


def _rows_table(results: Results) -> pd.DataFrame:
    lines = [
        {"row": row, "column": column, **values[column]._asdict(), "optimised": results.columns[column].optimised}
        for row, values in results.rows.items()
        for column in results.columns
        if column in values
    ]
    return pd.DataFrame(lines)


def _group_table(groups: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame:
    lines = [
        {"row": row, name: group, "cells": own.count, "reference_cells": own.reference, "column": column}
        | interval._asdict()
        for row, by_group in groups.items()
        for group, own in by_group.items()
        for column, interval in own.values.items()
    ]
    return pd.DataFrame(lines)


def _effects_table(results: Results) -> pd.DataFrame:
    effects = results.effects
    index = pd.MultiIndex.from_product([effects.compounds, effects.features], names=["compound", "feature"])
    columns = {"real": effects.reference.ravel(), **{name: own.ravel() for name, own in effects.rows.items()}}
    return pd.DataFrame(columns, index=index).reset_index()


def _paired_table(results: Results) -> pd.DataFrame:
    lines = [
        {"ours": a, "theirs": b, "column": column, **test.difference._asdict()}
        | {"p_value": test.p_value, "p_value_holm": test.adjusted, "pairs": test.count}
        for (a, b), tests in results.paired.items()
        for column, test in tests.items()
    ]
    return pd.DataFrame(lines)


def _cells_table(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """One line for each cell of each row."""
    parts = []
    for row, measured in results.measurements.items():
        if row == "reference":
            continue
        values = {f"reward_{name}": v for name, v in measured.rewards.items()}
        values |= {f"probability_{name}": v for name, v in measured.probabilities.items()}
        values |= {"measurable": measured.measurable}
        own = table.reset_index(drop=True).assign(**values)
        own.insert(0, "row", row)
        own.insert(1, "cell", range(len(own)))
        parts.append(own)
    return pd.concat(parts, ignore_index=True)
