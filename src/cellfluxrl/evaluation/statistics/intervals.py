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
    """What was measured, and how well it is known.

    Attributes:
        value: Of all the data.
        low, high: Ends of the 95 % interval; NaN if it is not known.
        error: Standard error; NaN if it is not known.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    error: float = math.nan


def bootstrap_interval(
    statistic: Callable[..., float], counts: Sequence[int], resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13) of a statistic of one or more sets.

    Right for means, correlations, shares and the like. A distance between sets rises when members occur twice, so the
    bootstrap moves it away from its own value: see [`half_sampling_interval`].

    Args:
        statistic: From one array of chosen indices for each set to a number.
        counts: Members of each set, which is resampled with replacement.
        resamples: Number of times.
        seed: Decides the resamples.

    Returns:
        Ends and error are NaN if a set has fewer than two members, or a resample gives NaN.

    Example:
        >>> x = np.arange(100.0)
        >>> mean = bootstrap_interval(lambda rows: x[rows].mean(), [100])
        >>> mean.value, 42 < mean.low < 46, 53 < mean.high < 57
        (49.5, True, True)
    """
    value = float(statistic(*(np.arange(count) for count in counts)))
    if min(counts) < 2:
        return Interval(value)
    random = numpy_generator(seed, "bootstrap")
    values = [statistic(*(random.integers(count, size=count) for count in counts)) for _ in range(resamples)]
    low, high = np.quantile(values, TAILS)
    return Interval(value, float(low), float(high), float(np.std(values, ddof=1)))


def mean_interval(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """[`bootstrap_interval`] of a mean, without a loop over the resamples.

    Example:
        >>> mean = mean_interval(np.arange(100.0))
        >>> mean.value, 42 < mean.low < 46, 53 < mean.high < 57
        (49.5, True, True)
    """
    values, count = np.asarray(values, dtype=np.float64), len(values)
    if count < 2:
        return Interval(float(values.mean()) if count else math.nan)
    random = numpy_generator(seed, "bootstrap")
    step = max(1, _NUMBERS_AT_ONCE // count)
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    means = np.concatenate([values[random.integers(count, size=(size, count))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, TAILS)
    return Interval(float(values.mean()), float(low), float(high), float(np.std(means, ddof=1)))


def half_sampling_interval(
    statistic: Callable[..., float], counts: Sequence[int], resamples: int = 200, seed: int = 0
) -> Interval:
    """Interval of a distance between sets, from random halves of each: the delete-half jackknife (Shao and Wu, 1989).

    Halves are drawn without replacement, so that no member is its own neighbour or counts twice, and scatter around
    their mean as the statistic of the whole set does around the truth: for a mean, exactly. The ends are
    `value + quantile(half - mean of the halves)`, which leaves out the bias that a distance has in smaller sets.

    Args and returns are those of [`bootstrap_interval`]; a set needs at least four members for an interval.

    Example:
        >>> x = np.arange(100.0)
        >>> mean = half_sampling_interval(lambda rows: x[rows].mean(), [100])
        >>> round(mean.error, 1), round(float(x.std(ddof=1)) / 10, 1)
        (2.9, 2.9)
    """
    value = float(statistic(*(np.arange(count) for count in counts)))
    if min(counts) < 4:
        return Interval(value)
    return halves_interval(value, [statistic(*chosen) for chosen in random_halves(counts, resamples, seed)])


def random_halves(counts: Sequence[int], resamples: int, seed: int) -> list[list[np.ndarray]]:
    """Indices of a random half of each of several sets, `resamples` times."""
    random = numpy_generator(seed, "random halves")
    return [[random.permutation(count)[: count // 2] for count in counts] for _ in range(resamples)]


def halves_interval(value: float, halves: Sequence[float]) -> Interval:
    """The interval of `value`, given the statistic of random halves; see [`half_sampling_interval`]."""
    low, high = value + np.quantile(halves, TAILS) - np.mean(halves)
    return Interval(value, float(low), float(high), float(np.std(halves, ddof=1)))
