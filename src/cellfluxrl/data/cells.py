"""What a source of cells gives: the fields of view it knows, and, plate by plate, crops with their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

from cellfluxrl.errors import unknown_name

FIELD_COLUMNS = (
    "compound",
    "smiles",
    "concentration",
    "moa",
    "plate",
    "well",
    "site",
    "replicate",
    "field",
    "is_control",
)
ROW_COLUMNS = (*FIELD_COLUMNS, "cell_id", "x", "y")

T = TypeVar("T")
R = TypeVar("R")
Map = Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]
"""Like the built-in `map`, in order; a pool of processes has one that works ahead."""


@dataclass(frozen=True)
class Cells:
    """Crops of one plate, `(N, C, H, W)` uint8, and their rows of the cell schema; `split` only if published."""

    images: np.ndarray
    rows: pd.DataFrame


@dataclass
class PlateLog:
    """What happened on the way from one plate to its crops; goes into the build report."""

    fields: int = 0
    cells: int = 0
    near_border: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def skip(self, field_name: str, reason: object) -> None:
        """Count and name a field of view, or a crop, that could not be used."""
        self.problems.append({"field": field_name, "reason": str(reason)})


def chosen_plates(plates: Iterable[str] | None, known: Iterable[str], where: str = "") -> list[str]:
    """The plates that are named, or all that are known; refuses a name that is not."""
    known = sorted(set(known))
    for plate in plates or ():
        if plate not in known:
            raise unknown_name(f"plate{where}", plate, known)
    return list(plates or known)


class Source(Protocol):
    """A source of cells.

    Attributes:
        channel_names: The image channels, in order.
        image_size: Height and width of the crops in pixels.
        fields: One row a field of view with `FIELD_COLUMNS`, `batch`, and `split` where one is published.
        settings: What the crops depend on; a build resumes only with the same.
    """

    channel_names: tuple[str, ...]
    image_size: int
    fields: pd.DataFrame
    settings: dict[str, Any]

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """Yield the crops of one plate in a fixed order.

        Args:
            plate: One of `fields["plate"]`.
            log: Takes counts, and the names of what cannot be read.
            scratch: An empty folder for what has to wait.
            map: The built-in `map`, or that of a pool of processes.
            progress: Called with the number of fields of view that are done.
        """
        ...
