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
    """Args:
    difference: Ours minus theirs.
    p_value: Two-sided, of a difference this large if it did not matter which of the two is whose.
    adjusted: The p-value by Holm's method over all that were tested together; see [`adjust`].
    count: Pairs.
    """

    difference: Interval
    p_value: float
    count: int
    adjusted: float = math.nan


def paired_means(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> PairedTest:
    """Compare two means by sign flips of the paired differences, with a bootstrap interval.

    Args:
        ours, theirs: `(N,)`; of the same controls; pairs with NaN are left out.

    Example:
        >>> x = np.random.default_rng(0).normal(size=50)
        >>> paired_means(x + 0.5, x + np.random.default_rng(1).normal(0, 0.1, 50)).p_value
        0.0001
    """
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


def paired_statistics(
    ours: np.ndarray, theirs: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0
) -> PairedTest:
    """Compare a statistic of two sets, such as a distance to real cells, by swapping the members of pairs.

    The interval is of random halves of the pairs ([`half_sampling_interval`]); what the statistic compares with stays.

    Args:
        ours, theirs: `(N, D)`; row i of both from one control.
        statistic: From the rows of a set to a number.
    """

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return statistic(a) - statistic(b)

    def swapped(swap: np.ndarray) -> float:
        return difference(np.where(swap[:, None], theirs, ours), np.where(swap[:, None], ours, theirs))

    halves = [half for (half,) in random_halves([len(ours)], HALVES, seed)]
    interval = halves_interval(difference(ours, theirs), [difference(ours[h], theirs[h]) for h in halves])
    swaps = numpy_generator(seed, "swaps").random((SWAPS, len(ours))) < 0.5
    return PairedTest(interval, _p_value(interval.value, np.array([swapped(s) for s in swaps])), len(ours))


def paired_kernel_distances(ours: np.ndarray, theirs: np.ndarray, real: np.ndarray, seed: int = 0) -> PairedTest:
    """[`paired_statistics`] of [`kernel_distance`] to the real cells, with every kernel computed once."""
    count = len(ours)
    every = np.concatenate([ours, theirs]).astype(np.float64)
    chosen = [np.ones(count, dtype=bool)]
    for (half,) in random_halves([count], HALVES, seed):
        chosen.append(np.isin(np.arange(count), half))
    swaps = numpy_generator(seed, "swaps").random((SWAPS, count)) < 0.5
    nothing = np.zeros(count, dtype=bool)
    first = [np.concatenate([own, nothing]) for own in chosen] + [np.concatenate([~s, s]) for s in swaps]
    second = [np.concatenate([nothing, own]) for own in chosen] + [np.concatenate([s, ~s]) for s in swaps]
    sums = _kernel_distances(every, np.stack(first + second, axis=1).astype(np.float64), real)
    values = sums[: len(first)] - sums[len(first) :]
    interval = halves_interval(float(values[0]), values[1 : 1 + HALVES])
    return PairedTest(interval, _p_value(interval.value, values[1 + HALVES :]), count)


def _kernel_distances(every: np.ndarray, members: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Kernel distance, up to what is the same for all sets, of each column of members to the real cells."""
    size = members.sum(axis=0)
    among = kernel_sums(every, members, every, members, distinct=True)
    to_real = kernel_sums(every, members, real, np.ones((len(real), 1)))
    return among / (size * (size - 1)) - 2 * to_real / (size * len(real))


def adjust(tests: Mapping[str, PairedTest]) -> dict[str, PairedTest]:
    """Adjust the p-values of tests that are read together by Holm's method (1979).

    Example:
        >>> tests = {name: PairedTest(Interval(0.0), p, 9) for name, p in (("a", 0.01), ("b", 0.04), ("c", 0.03))}
        >>> {name: test.adjusted for name, test in adjust(tests).items()}
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted(
        (name for name, test in tests.items() if not math.isnan(test.p_value)), key=lambda n: tests[n].p_value
    )
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(known):
        highest = max(highest, min(1.0, tests[name].p_value * (len(known) - rank)))
        adjusted[name] = highest
    return {name: replace(test, adjusted=adjusted.get(name, math.nan)) for name, test in tests.items()}
