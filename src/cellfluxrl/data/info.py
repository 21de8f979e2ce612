"""What a data set of cells holds, counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.terminal import text_table

REPORT_NAME = "build_report.json"
COUNT_COLUMNS = ["split", "plate", "compound", "concentration", "moa"]

Cells: TypeAlias = "datasets.Dataset | datasets.DatasetDict"


def count_cells(source: str | Path | Cells) -> pd.DataFrame:
    """Count the cells of each split, plate, compound, concentration and MoA; no image is read.

    Args:
        source: A data set, or a folder with `data/SPLIT/*.parquet`, as `cellfluxrl data build` writes it.

    Returns:
        `pandas.DataFrame` with the columns `split`, `plate`, `compound`, `concentration` (uM), `moa` and `cells`.

    Raises:
        FileNotFoundError: If the folder has no Parquet files.
        ValueError: If columns are missing.
    """
    parts = [_count(table) for table in _tables(source)]
    counts = pd.concat(parts) if parts else pd.DataFrame(columns=[*COUNT_COLUMNS, "cells"])
    return counts.groupby(COUNT_COLUMNS, as_index=False)["cells"].sum()


def parquet_files(folder: str | Path) -> list[Path]:
    """The Parquet files of a data set that was built in a folder."""
    files = sorted(Path(folder).glob("data/*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no data/*/*.parquet: it is not a data set that was built")
    return files


def _tables(source: str | Path | Cells) -> Iterator[pa.Table]:
    """Yield the columns that are counted, a part at a time: strings of millions of rows are large."""
    if isinstance(source, (str, Path)):
        for file in parquet_files(source):
            _check_columns(file, pq.read_schema(file).names)
            yield pq.read_table(file, columns=COUNT_COLUMNS)
    else:
        for split in source.values() if isinstance(source, datasets.DatasetDict) else [source]:
            _check_columns("the data set", split.column_names)
            yield from split.select_columns(COUNT_COLUMNS).with_format("arrow").iter(100_000)


def _check_columns(source: str | Path, columns: Sequence[str]) -> None:
    missing = [column for column in COUNT_COLUMNS if column not in columns]
    if missing:
        raise ValueError(f"{source} lacks the columns {missing}; it has {list(columns)}")


def _count(table: pa.Table) -> pd.DataFrame:
    """Count the rows; an unknown MoA is the empty string."""
    frame = table.to_pandas().fillna({"moa": ""})
    return frame.groupby(COUNT_COLUMNS, as_index=False).size().rename(columns={"size": "cells"})


def count_tables(counts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Sum [`count_cells`]'s result up: by title, tables per split, plate, mechanism of action and compound."""
    counts = counts.astype({"concentration": float, "cells": int})
    # The MoA of controls is "DMSO" whatever a user's control compound is called.
    counts["kind"] = np.where(counts["moa"] == CONTROL, "control cells", "treated cells")
    plates = counts.groupby("split", sort=False)["plate"].nunique().rename("plates")
    per_split = _wide(counts, ["split"], "kind").join(plates)
    treated_compounds = counts.groupby("moa")["compound"].nunique().rename("compounds")
    doses = counts.groupby(["compound", "moa"])["concentration"].agg(
        lambda c: ", ".join(f"{d:g}" for d in sorted(set(c)))
    )
    per_compound = _wide(counts, ["compound", "moa"], "split").join(doses.rename("doses (uM)"))
    return {
        "cells per split": per_split.reset_index()[["split", "plates", *per_split.columns[:-1]]],
        "cells per plate": _wide(counts, ["split", "plate"], "kind").reset_index(),
        "cells per mechanism of action": _wide(counts, ["moa"], "split").join(treated_compounds).reset_index(),
        "cells per compound": _controls_first(per_compound.reset_index()),
    }


def _wide(counts: pd.DataFrame, rows: list[str], columns: str) -> pd.DataFrame:
    """Cells by `rows`, with one column for each value of `columns`; train comes before test."""
    table = counts.pivot_table(index=rows, columns=columns, values="cells", aggfunc="sum", fill_value=0)
    table.columns.name = None
    # "test" after "train", wherever splits stand.
    return table.sort_index(key=_train_first).sort_index(axis=1, key=_train_first)


def _train_first(names: pd.Index) -> pd.Index:
    return pd.Index(["" if name == "train" else name for name in names])


def _controls_first(table: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort([table["compound"], table["moa"], table["moa"] != CONTROL])
    return table.iloc[order].reset_index(drop=True)


def summarize(source: str | Path | Cells) -> str:
    """Describe a data set in tables for the terminal: cells per split, plate, MoA and compound, and what went wrong.

    Args:
        source: As for [`count_cells`]; a folder's `build_report.json`, if there is one, adds the fields of view that
            could not be used.

    Raises:
        FileNotFoundError: If the folder has no Parquet files.
        ValueError: If columns are missing.

    Example:
        >>> print(summarize("my_cells"))                                              # doctest: +SKIP
    """
    tables = count_tables(count_cells(source))
    if isinstance(source, (str, Path)) and (Path(source) / REPORT_NAME).is_file():
        report = json.loads((Path(source) / REPORT_NAME).read_text(encoding="utf-8"))
        if not report.get("complete"):
            tables["not complete"] = pd.DataFrame({"": ["the build did not finish; run the same command again"]})
        tables["problems"] = problems_of(report)
    return "\n\n".join(_as_text(title, table) for title, table in tables.items())


def reported_counts(report: dict) -> pd.DataFrame:
    """What [`count_cells`] gives, from a build report instead of from the cells."""
    rows = report["counts"] if "counts" in report else [row for p in report["plates"].values() for row in p["counts"]]
    return pd.DataFrame(rows, columns=[*COUNT_COLUMNS, "cells"]).fillna({"moa": ""})


def problems_of(report: dict) -> pd.DataFrame:
    """Fields of view that the build could not use: columns `plate`, `field` and `reason`."""
    rows = [
        {"plate": plate, "field": problem["field"], "reason": problem["reason"]}
        for plate, entry in report["plates"].items()
        for problem in entry.get("problems", [])
    ]
    return pd.DataFrame(rows, columns=["plate", "field", "reason"])


def _as_text(title: str, table: pd.DataFrame) -> str:
    return f"{title}: none" if table.empty else f"{title}\n{text_table(table)}"
