"""Columns of rows: taking, joining, filling, and the flat form in which they are saved."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from cellfluxrl.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    area: torch.Tensor
    scores: dict[str, torch.Tensor]
    features: torch.Tensor | None = None


@dataclass(frozen=True)
class Outer(Rows):
    inner: Inner
    names: np.ndarray
    extra: dict[str, torch.Tensor] = field(default_factory=dict)


@pytest.fixture
def rows() -> Outer:
    return Outer(Inner(torch.arange(4.0), {"a": torch.arange(4) * 10}), np.array(list("wxyz")))


def test_rows_are_rebuilt_from_their_flat_form(rows: Outer) -> None:
    flat = rows.tensors()
    assert list(flat) == ["inner/area", "inner/scores/a", "names"]
    again = Outer.from_tensors(flat)
    assert again.inner.features is None
    assert again.extra == {}
    assert again.tensors().keys() == flat.keys()
    assert torch.equal(again.inner.scores["a"], rows.inner.scores["a"])


def test_a_dictionary_without_columns_is_rebuilt_empty() -> None:
    flat = Inner(torch.ones(2), {}).tensors()
    assert Inner.from_tensors(flat).scores == {}


def test_a_column_that_is_missing_is_an_error(rows: Outer) -> None:
    flat = rows.tensors()
    del flat["inner/area"]
    with pytest.raises(TypeError, match="area"):
        Outer.from_tensors(flat)


@pytest.mark.parametrize("chosen", [slice(1, 3), [1, 2], torch.tensor([1, 2]), np.array([False, True, True, False])])
def test_rows_are_taken_by_slices_indices_and_masks(rows: Outer, chosen) -> None:
    taken = rows.take(chosen)
    assert taken.inner.area.tolist() == [1, 2]
    assert taken.names.tolist() == ["x", "y"]
    assert len(taken) == 2


def test_parts_are_joined_and_put_into_empty_rows(rows: Outer) -> None:
    parts = [rows.take(slice(0, 1)), rows.take(slice(1, 4))]
    assert Outer.cat(parts).names.tolist() == list("wxyz")
    filled = rows.empty(4)
    filled.put(slice(1, 4), parts[1])
    filled.put([0], parts[0])
    assert torch.equal(filled.inner.scores["a"], rows.inner.scores["a"])
    assert filled.names.tolist() == list("wxyz")
