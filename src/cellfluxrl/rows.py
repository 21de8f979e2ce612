"""Columns of N rows: what was measured in N images, as a dataclass whose tensors all have N along their first axis."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import Self


class Rows:
    """Base of dataclasses of columns; a column is a tensor, an array, a dictionary of columns, other rows or `None`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Measured(Rows):
        ...     area: torch.Tensor
        ...     rewards: dict[str, torch.Tensor]
        >>> cells = Measured(torch.tensor([3.0, 4.0]), {"moa": torch.tensor([0.1, 0.9])})
        >>> len(cells), cells.take([1]).area, Measured.cat([cells, cells]).rewards["moa"].shape
        (2, tensor([4.]), torch.Size([4]))
    """

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def map(self, function: Callable[[Any], Any]) -> Self:
        """The same columns, each put through a function."""
        return _zipped([self], lambda columns: function(columns[0]))

    def take(self, rows: Any) -> Self:
        """These rows only: indices, a slice or a mask."""
        # Numpy takes a tensor of one index for a number.
        indices = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        return self.map(lambda column: column[rows if isinstance(column, torch.Tensor) else indices])

    def empty(self, count: int) -> Self:
        """`count` rows of the same kind, to be filled by [`put`]."""

        def empty_like(column: Any) -> Any:
            shape = (count, *column.shape[1:])
            return column.new_empty(shape) if isinstance(column, torch.Tensor) else np.empty(shape, column.dtype)

        return self.map(empty_like)

    def put(self, rows: Any, part: Self) -> None:
        """Write another's rows into these."""
        mine, others = self.tensors(), part.tensors()
        for name, column in others.items():
            mine[name][rows] = column.to(mine[name].device) if isinstance(column, torch.Tensor) else column

    def tensors(self) -> dict[str, Any]:
        """All columns in one flat dictionary, `"field"` or `"field/key"`: to be gathered or saved."""
        return _flat(vars(self))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Self:
        """Undo [`tensors`]; a field of which nothing is there keeps its default, a dictionary is empty."""
        hints, columns = typing.get_type_hints(cls), dict(tensors)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            hint = hints[field.name]
            is_dict = typing.get_origin(hint) is dict
            if is_dict or (isinstance(hint, type) and issubclass(hint, Rows)):
                names = [name for name in columns if name.startswith(f"{field.name}/")]
                inner = {name.removeprefix(f"{field.name}/"): columns.pop(name) for name in names}
                columns[field.name] = inner if is_dict else hint.from_tensors(inner)
        return cls(**columns)

    @classmethod
    def cat(cls, parts: Sequence[Self], dim: int = 0) -> Self:
        """Join the rows of several, or along another axis."""

        def join(columns: list[Any]) -> Any:
            return (torch.cat if isinstance(columns[0], torch.Tensor) else np.concatenate)(columns, dim)

        return _zipped(list(parts), join)


def _zipped(parts: list[Any], function: Callable[[list[Any]], Any]) -> Any:
    """Call a function with each column of several rows, and build the same rows of what it returns."""
    first = parts[0]
    if isinstance(first, Rows):
        return type(first)(**_zipped([vars(part) for part in parts], function))
    if isinstance(first, Mapping):
        return {key: _zipped([part[key] for part in parts], function) for key in first}
    return None if first is None else function(parts)


def _flat(columns: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, column in columns.items():
        inner = vars(column) if isinstance(column, Rows) else column
        if isinstance(inner, Mapping):
            flat |= {f"{name}/{key}": values for key, values in _flat(inner).items()}
        elif inner is not None:
            flat[name] = inner
    return flat
