"""What is known of images besides their pixels: the control, the compound, its concentration, the plate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd

from cellfluxrl.rows import Rows
from cellfluxrl.seeding import numpy_generator


@dataclass(frozen=True)
class Context(Rows):
    """What is known of N images besides their pixels; `None` is not known.

    Args:
        control: `(N, C, H, W)`; the control cell of each: floats in [-1, 1] or uint8, as a tensor, an array or
            [`PickedImages`].
        compound: `(N,)`; names.
        concentration: `(N,)`; in uM.
        plate: `(N,)`; names.
    """

    control: Any = None
    compound: np.ndarray | None = None
    concentration: np.ndarray | None = None
    plate: np.ndarray | None = None

    @classmethod
    def of(cls, count: int, **columns: Any) -> Context:
        """The context of `count` images, from sequences of any kind.

        Raises:
            ValueError: If one of them has another length.
        """
        given = {name: values for name, values in columns.items() if values is not None}
        for name, values in given.items():
            if isinstance(values, str) or len(values) != count:
                got = repr(values) if isinstance(values, str) else len(values)
                raise ValueError(f"{name} must have one entry for each of the {count} images, got {got}")
        arrays = {name: np.asarray(values) for name, values in given.items() if name != "control"}
        return cls(control=given.get("control"), **arrays)

    def only(self, names: Container[str]) -> Context:
        """Without the other columns."""
        return Context(**{name: getattr(self, name) for name in COLUMNS if name in names})


class MissingContextError(ValueError):
    """A reward, whose name precedes the message, looks at a column of the context that the caller did not pass."""

    def __init__(self, column: str):
        super().__init__(
            f"looks at the {column} of each image, which was not passed: suite(images, moa=..., {column}=...)"
        )


NO_CONTEXT = Context()
COLUMNS = tuple(field.name for field in dataclasses.fields(Context))


class PickedImages:
    """Some of many stored images, which `read` turns from rows, `(N,)`, into `(N, C, H, W)` when they are looked at.

    Example:
        >>> stored = np.zeros((9, 3, 16, 16), np.uint8)
        >>> np.asarray(PickedImages(stored.__getitem__, np.array([4, 2, 4]))[1:]).shape
        (2, 3, 16, 16)
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray):
        self._read, self._rows = read, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> PickedImages:
        return PickedImages(self._read, self._rows[rows])

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(self._rows), dtype=dtype)


def context_of_table(table: pd.DataFrame, read: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Context:
    """What a table of cells says of each: its columns, and a random control cell of the same plate and split.

    `read` turns rows of the table, `(N,)`, into their images; it is called when a reward looks at the controls.
    """
    columns: dict[str, Any] = {name: np.asarray(table[name]) for name in ("compound", "plate") if name in table}
    if "concentration" in table:
        columns["concentration"] = np.asarray(pd.to_numeric(table["concentration"], errors="coerce"), dtype=float)
    if "plate" not in table or "is_control" not in table or table["is_control"].dtype != bool:
        return Context(**columns)
    drawn = _drawn_controls(table, seed)

    def read_controls(rows: np.ndarray) -> np.ndarray:
        if (drawn[rows] < 0).any():
            plate = table["plate"].iloc[rows[int((drawn[rows] < 0).argmax())]]
            raise ValueError(f"a reward looks at control cells, and plate {plate!r} has none in this split")
        return read(drawn[rows])

    return Context(control=PickedImages(read_controls, np.arange(len(table))), **columns)


def context_of_dataset(cells: datasets.Dataset, images: Any, seed: int = 0) -> Context:
    """[`context_of_table`] of a data set whose images are open."""
    known = ("plate", "split", "is_control", "compound", "concentration")
    columns = cells.select_columns([name for name in known if name in cells.column_names])
    return context_of_table(pd.DataFrame(columns.to_pandas()), images.__getitem__, seed)


def _drawn_controls(table: pd.DataFrame, seed: int) -> np.ndarray:
    """A row of a control cell for each row, another one for a control if there is one; -1 where there is none."""
    random = numpy_generator(seed, "controls of real cells")
    is_control, drawn = table["is_control"].to_numpy(dtype=bool), np.full(len(table), -1)
    groups = table.groupby([name for name in ("plate", "split") if name in table], dropna=False)
    for rows in groups.indices.values():
        controls = rows[is_control[rows]]
        if len(controls) == 0:
            continue
        chosen = random.integers(len(controls), size=len(rows))
        itself = controls[chosen] == rows
        chosen[itself] = (chosen[itself] + 1) % len(controls)
        drawn[rows] = controls[chosen]
    return drawn
