"""Cells by their compound, and a fixed sample over all of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence

import numpy as np

from cellfluxrl.seeding import numpy_generator


def rows_by_group(groups: Sequence[Hashable]) -> dict[Hashable, np.ndarray]:
    """Indices of the members of each group, in order of their first."""
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {group: np.array(members) for group, members in rows.items()}


def stratified_sample(labels: Sequence[Hashable], count: int, seed: int = 0) -> np.ndarray:
    """Draw `count` distinct rows, ascending, such that every label is there, each in proportion to its share.

    Places are given out by the method of Huntington and Hill, the next one always to the label with the largest
    size / sqrt(n (n + 1)), n what it has already: nobody goes without. A `ValueError` says where there are fewer rows,
    or more labels, than `count`.
    """
    strata = rows_by_group(labels)
    if not len(strata) <= count <= len(labels):
        raise ValueError(
            f"count must lie between {len(strata)}, one row for each label, and {len(labels)}, all rows; got {count}"
        )
    places = dict.fromkeys(strata, 1)
    # Ties go to the label that occurs first: the position in the queue's entry.
    queue = [(-len(rows) / math.sqrt(2), k, label) for k, (label, rows) in enumerate(strata.items()) if len(rows) > 1]
    heapq.heapify(queue)
    for _ in range(count - len(strata)):
        _, k, label = heapq.heappop(queue)
        places[label] += 1
        size, given = len(strata[label]), places[label]
        if given < size:
            heapq.heappush(queue, (-size / math.sqrt(given * (given + 1)), k, label))
    chosen = [
        numpy_generator(seed, "stratified sample", k).permutation(rows)[: places[label]]
        for k, (label, rows) in enumerate(strata.items())
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
