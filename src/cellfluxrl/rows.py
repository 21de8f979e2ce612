"""Columns of N rows: what was measured in N images, as a dataclass whose tensors all have N along their first axis."""

from __future__ import annotations

import dataclasses
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
        return _zipped(type(self), [self], lambda columns: function(columns[0]))

    def take(self, rows: Any) -> Self:
        """These rows only: indices, a slice or a mask."""
        # Numpy takes a tensor of one index for a number.
        indices = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        return self.map(lambda column: column[rows if isinstance(column, torch.Tensor) else indices])

    def empty(self, count: int) -> Self:
        """`count` rows of the same kind, to be filled by [`put`]."""
        return self.map(lambda column: _empty_like(column, count))

    def put(self, rows: Any, part: Self) -> None:
        """Write another's rows into these."""
        mine, others = self.tensors(), part.tensors()
        for name, column in others.items():
            mine[name][rows] = column.to(mine[name].device) if isinstance(column, torch.Tensor) else column

    def tensors(self) -> dict[str, Any]:
        """All columns in one flat dictionary, `"field"` or `"field/key"`: to be gathered or saved."""
        return {"/".join(path): column for path, column in _leaves((), self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Self:
        """Undo [`tensors`]; what is missing is an empty dictionary or `None`, as the field allows."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            inner = {
                name.removeprefix(f"{field.name}/"): column
                for name, column in tensors.items()
                if name.startswith(f"{field.name}/")
            }
            kind = field.metadata.get("rows")
            if field.name in tensors:
                fields[field.name] = tensors[field.name]
            elif kind is not None:
                fields[field.name] = kind.from_tensors(inner)
            elif inner or str(field.type).startswith("dict"):
                fields[field.name] = inner
        return cls(**fields)

    @classmethod
    def cat(cls, parts: Sequence[Self], dim: int = 0) -> Self:
        """Join the rows of several, or along another axis."""

        def join(columns: list[Any]) -> Any:
            if isinstance(columns[0], torch.Tensor):
                return torch.cat(columns, dim=dim)
            return np.concatenate(columns, axis=dim)

        return _zipped(cls, list(parts), join)


def _zipped(kind: type, parts: list[Any], function: Callable[[list[Any]], Any]) -> Any:
    def mapped(columns: list[Any]) -> Any:
        first = columns[0]
        if first is None:
            return None
        if isinstance(first, Mapping):
            return {key: mapped([column[key] for column in columns]) for key in first}
        if isinstance(first, Rows):
            return _zipped(type(first), columns, function)
        return function(columns)

    return kind(**{f.name: mapped([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(kind)})


def _leaves(path: tuple[str, ...], value: Any) -> list[tuple[tuple[str, ...], Any]]:
    if value is None:
        return []
    if isinstance(value, Rows):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves((*path, key), inner)]
    return [(path, value)]


def _empty_like(column: Any, count: int) -> Any:
    shape = (count, *column.shape[1:])
    return column.new_empty(shape) if isinstance(column, torch.Tensor) else np.empty(shape, column.dtype)
