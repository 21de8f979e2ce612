"""Frechet and kernel distances between sets of features, without the bias of small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cellfluxrl.evaluation.statistics.intervals import Interval, half_sampling_interval, halves_interval, random_halves
from cellfluxrl.evaluation.statistics.metrics import frechet_distance
from cellfluxrl.seeding import numpy_generator

EXTRAPOLATION_POINTS = 15  # as in the original
_ROWS_AT_ONCE = 1024  # of a kernel matrix, which for all rows would need N^2 numbers


def frechet_interval(a: np.ndarray, b: np.ndarray, resamples: int = 100, seed: int = 0) -> Interval:
    """[`frechet_distance`] of two sets of features, with an interval from [`half_sampling_interval`].

    The value has the bias of its sample size: see [`frechet_infinity`].
    """
    _check(a, b)
    return half_sampling_interval(lambda i, j: frechet_distance(a[i], b[j]), [len(a), len(b)], resamples, seed)


def frechet_infinity(a: np.ndarray, b: np.ndarray, resamples: int = 100, seed: int = 0) -> Interval:
    """Frechet distance extrapolated to infinitely many samples: FID-infinity (Chong and Forsyth, 2020).

    The bias of the Frechet distance is linear in 1/N. It is computed of random parts of both sets, from half to all of
    them, and the line through these values against 1 / part is followed to 0. The original takes parts of the
    generated set only, and keeps the bias of the real one. The result may be negative, as an unbiased estimate of 0
    has to be now and then.

    Args:
        a, b: `(N, D)` and `(M, D)`; features.
        resamples, seed: Of [`half_sampling_interval`]; with 0 resamples no interval is computed.

    Raises:
        ValueError: If a half of a set has no more rows than features: the bias is not linear then, and nothing can be
            said from so few; use [`kernel_distance`]. Where a quarter has no more, the interval is left out.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 32))
        >>> a, b = x[:500], x[500:] + 0.1
        >>> 32 * 0.1**2, round(frechet_distance(a, b), 1), round(frechet_infinity(a, b, resamples=0).value, 1)
        (0.32000000000000006, 1.4, 0.2)
    """
    _check(a, b)
    smallest, dimension = min(len(a), len(b)), a.shape[1]
    if smallest // 2 <= dimension:
        raise ValueError(
            f"the Frechet distance of {dimension} features is extrapolated from more than {2 * dimension + 1} rows of "
            f"each set, got {len(a)} and {len(b)}: use the kernel distance"
        )
    value = _extrapolated(a, b, seed)
    if not resamples or smallest // 4 <= dimension:
        return Interval(value)
    halves = random_halves([len(a), len(b)], resamples, seed)
    return halves_interval(value, [_extrapolated(a[i], b[j], seed) for i, j in halves])


def _extrapolated(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    random = numpy_generator(seed, "Frechet extrapolation")
    shares = np.linspace(0.5, 1, EXTRAPOLATION_POINTS)
    values = []
    for share in shares:
        parts = (random.permutation(x)[: round(share * len(x))] for x in (a, b))
        values.append(frechet_distance(*parts))
    return float(np.polyfit(1 / shares, values, 1)[1])


def kernel_distance(a: np.ndarray, b: np.ndarray, resamples: int = 200, seed: int = 0) -> Interval:
    """Kernel distance, KID on Inception features (Binkowski et al., 2018): unbiased at every sample size.

    The unbiased estimate of the squared maximum mean discrepancy for the kernel (x . y / D + 1)^3. It uses all pairs,
    where the original averages subsets; of subsets of all rows that is the same. Around 0, and often negative, for two
    samples of one distribution.

    Args:
        a, b: `(N, D)` and `(M, D)`; features.
        resamples, seed: Of the halves that the standard error and the interval come from, see
            [`half_sampling_interval`].

    Returns:
        All NaN if a set has fewer than two rows, and without an interval if it has fewer than four.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 8))
        >>> same, shifted = kernel_distance(x[:500], x[500:]), kernel_distance(x[:500], x[500:] + 0.5)
        >>> same.low < 0 < same.high, shifted.low > 0
        (True, True)
    """
    _check(a, b)
    counts = [len(a), len(b)]
    if min(counts) < 2:
        return Interval(math.nan)
    halves = random_halves(counts, resamples, seed) if min(counts) >= 4 else []
    in_a, in_b = (_membership(count, [half[k] for half in halves]) for k, count in enumerate(counts))
    n, m = in_a.sum(axis=0), in_b.sum(axis=0)
    values = (
        kernel_sums(a, in_a, a, in_a, distinct=True) / (n * (n - 1))
        + kernel_sums(b, in_b, b, in_b, distinct=True) / (m * (m - 1))
        - 2 * kernel_sums(a, in_a, b, in_b) / (n * m)
    )
    return halves_interval(float(values[0]), values[1:]) if halves else Interval(float(values[0]))


def _membership(count: int, halves: Sequence[np.ndarray]) -> np.ndarray:
    """Return (count, 1 + R): 1 for all rows in the first column, and for the rows of one half in each other."""
    members = np.zeros((count, 1 + len(halves)))
    members[:, 0] = 1
    for k, half in enumerate(halves, start=1):
        members[half, k] = 1
    return members


def kernel_sums(
    a: np.ndarray, in_a: np.ndarray, b: np.ndarray, in_b: np.ndarray, distinct: bool = False
) -> np.ndarray:
    """Sum the kernel over the pairs of members, for each column of memberships.

    Args:
        a, b: `(N, D)` and `(M, D)`; features.
        in_a: `(N, S)`; whether a row is a member of each of S sets.
        in_b: `(M, S)`, or `(M, 1)` of the same members for all sets.
        distinct: Without the pairs of a row and itself, where `a` is `b`.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sums = np.zeros(in_a.shape[1])
    for start in range(0, len(a), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        kernel = (a[rows] @ b.T / a.shape[1] + 1) ** 3
        if distinct:
            kernel[np.arange(len(kernel)), np.arange(start, start + len(kernel))] = 0
        sums += (in_a[rows] * (kernel @ in_b)).sum(axis=0)
    return sums


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D) of one D, got {a.shape} and {b.shape}")
    for name, features in (("first", a), ("second", b)):
        if not np.isfinite(features).all():
            raise ValueError(
                f"features of the {name} set are not all finite: leave out rows with NaN, and say how many"
            )
