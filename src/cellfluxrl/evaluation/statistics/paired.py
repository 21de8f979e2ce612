"""Paired tests: two models, or a model and its controls, on the same controls and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cellfluxrl.evaluation.statistics.distances import kernel_sums
from cellfluxrl.evaluation.statistics.intervals import Interval, halves_interval, mean_interval, random_halves
from cellfluxrl.seeding import numpy_generator

SIGN_FLIPS = 9999
SWAPS = 499
HALVES = 200


@dataclass(frozen=True)
class PairedTest:
    """Ours minus theirs over `count` pairs, and the two-sided p-value, also `adjusted` by Holm's method."""

    difference: Interval
    p_value: float
    count: int
    adjusted: float = math.nan


def paired_means(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> PairedTest:
    """Compare the means of `(N,)` values of the same controls by sign flips of their differences, without NaN."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    difference = difference[np.isfinite(difference)]
    if len(difference) == 0:
        return PairedTest(Interval(math.nan), math.nan, 0)
    interval = mean_interval(difference, seed=seed)
    random = numpy_generator(seed, "sign flips")
    flipped = []
    for _ in range(0, SIGN_FLIPS, 500):
        signs = random.integers(2, size=(500, len(difference)), dtype=np.int8) * 2.0 - 1
        flipped.append(signs @ difference / len(difference))
    return PairedTest(interval, _p_value(interval.value, np.concatenate(flipped)[:SIGN_FLIPS]), len(difference))


def _p_value(value: float, by_chance: np.ndarray) -> float:
    # A little slack: equal sums that were added in another order count as equal.
    as_large = np.abs(by_chance) >= abs(value) * (1 - 1e-9) - 1e-15
    return float((1 + as_large.sum()) / (1 + len(by_chance)))


def _random_swaps(count: int, seed: int) -> np.ndarray:
    """Whether the members of each of `count` pairs change places: `(SWAPS, count)`."""
    return numpy_generator(seed, "swaps").random((SWAPS, count)) < 0.5


def paired_statistics(
    ours: np.ndarray, theirs: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0
) -> PairedTest:
    """Compare a statistic of the rows of two `(N, D)` sets, row i of both from one control, by swaps of the pairs.

    The interval is of random halves of the pairs; what the statistic compares with stays.
    """

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return statistic(a) - statistic(b)

    def swapped(swap: np.ndarray) -> float:
        return difference(np.where(swap[:, None], theirs, ours), np.where(swap[:, None], ours, theirs))

    halves = [half for (half,) in random_halves([len(ours)], HALVES, seed)]
    interval = halves_interval(difference(ours, theirs), [difference(ours[h], theirs[h]) for h in halves])
    by_chance = np.array([swapped(swap) for swap in _random_swaps(len(ours), seed)])
    return PairedTest(interval, _p_value(interval.value, by_chance), len(ours))


def paired_kernel_distances(ours: np.ndarray, theirs: np.ndarray, real: np.ndarray, seed: int = 0) -> PairedTest:
    """[`paired_statistics`] of the kernel distance to the real cells, with every kernel computed once."""
    count = len(ours)
    halves = [np.isin(np.arange(count), half) for (half,) in random_halves([count], HALVES, seed)]
    chosen = np.stack([np.ones(count, dtype=bool), *halves])
    nothing, swaps = np.zeros_like(chosen), _random_swaps(count, seed)
    first = np.concatenate([np.hstack([chosen, nothing]), np.hstack([~swaps, swaps])])
    second = np.concatenate([np.hstack([nothing, chosen]), np.hstack([swaps, ~swaps])])
    members = np.concatenate([first, second]).T.astype(np.float64)
    distances = _kernel_distances(np.concatenate([ours, theirs]).astype(np.float64), members, real)
    values = distances[: len(first)] - distances[len(first) :]
    interval = halves_interval(float(values[0]), values[1 : 1 + HALVES])
    return PairedTest(interval, _p_value(interval.value, values[1 + HALVES :]), count)


def _kernel_distances(every: np.ndarray, members: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Kernel distance, up to what is the same for all sets, of each column of members to the real cells."""
    size = members.sum(axis=0)
    among = kernel_sums(every, members, every, members, distinct=True)
    to_real = kernel_sums(every, members, real, np.ones((len(real), 1)))
    return among / (size * (size - 1)) - 2 * to_real / (size * len(real))


def adjust(tests: Mapping[str, PairedTest]) -> dict[str, PairedTest]:
    """Adjust the p-values of tests that are read together by Holm's method (1979); NaN takes no part."""
    known = sorted((n for n, test in tests.items() if not math.isnan(test.p_value)), key=lambda n: tests[n].p_value)
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(known):
        highest = max(highest, min(1.0, tests[name].p_value * (len(known) - rank)))
        adjusted[name] = highest
    return {name: replace(test, adjusted=adjusted.get(name, math.nan)) for name, test in tests.items()}
