"""Values with a standard error and a 95 % interval, by resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cellfluxrl.seeding import numpy_generator

TAILS = (0.025, 0.975)
_NUMBERS_AT_ONCE = 2**20


class Interval(NamedTuple):
    """A value of all the data, the ends of its 95 % interval and its standard error; NaN is not known."""

    value: float
    low: float = math.nan
    high: float = math.nan
    error: float = math.nan


def _percentile_interval(value: float, resampled: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.quantile(resampled, TAILS)
    return Interval(value, float(low), float(high), float(np.std(resampled, ddof=1)))


def bootstrap_interval(
    statistic: Callable[..., float], counts: Sequence[int], resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) of a statistic of indices into sets.

    There is one array of indices for each set, which has `counts` members, at least two for an interval. A distance
    between sets rises when members occur twice, which biases its bootstrap: see [`half_sampling_interval`].
    """
    value = float(statistic(*(np.arange(count) for count in counts)))
    if min(counts) < 2:
        return Interval(value)
    random = numpy_generator(seed, "bootstrap")
    values = [statistic(*(random.integers(count, size=count) for count in counts)) for _ in range(resamples)]
    return _percentile_interval(value, values)


def mean_interval(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """[`bootstrap_interval`] of the mean of `(N,)` values, without a loop over the resamples."""
    values, count = np.asarray(values, dtype=np.float64), len(values)
    if count < 2:
        return Interval(float(values.mean()) if count else math.nan)
    random = numpy_generator(seed, "bootstrap")
    step = max(1, _NUMBERS_AT_ONCE // count)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = [values[random.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    return _percentile_interval(float(values.mean()), np.concatenate(means))


def half_sampling_interval(
    statistic: Callable[..., float], counts: Sequence[int], resamples: int = 200, seed: int = 0
) -> Interval:
    """Interval of a distance between sets, from random halves of each: the delete-half jackknife (Shao and Wu, 1989).

    The arguments are those of [`bootstrap_interval`]; with no resamples, or fewer than four members, only the value is
    known. Halves are drawn without replacement, so that no member is its own neighbour or counts twice, and scatter
    around their mean as the statistic of the whole set does around the truth: for a mean, exactly.
    """
    value = float(statistic(*(np.arange(count) for count in counts)))
    if min(counts) < 4 or resamples == 0:
        return Interval(value)
    return halves_interval(value, [statistic(*chosen) for chosen in random_halves(counts, resamples, seed)])


def random_halves(counts: Sequence[int], resamples: int, seed: int) -> list[list[np.ndarray]]:
    """Indices of a random half of each of several sets, `resamples` times."""
    random = numpy_generator(seed, "random halves")
    return [[random.permutation(count)[: count // 2] for count in counts] for _ in range(resamples)]


def halves_interval(value: float, halves: Sequence[float] | np.ndarray) -> Interval:
    """The interval of `value`, given the statistic of random halves, whose bias as smaller sets is left out."""
    return _percentile_interval(value, value + np.asarray(halves) - np.mean(halves))
