"""Frechet and kernel distances between sets of features, without the bias of small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cellfluxrl.evaluation.statistics.intervals import Interval, half_sampling_interval, halves_interval, random_halves
from cellfluxrl.evaluation.statistics.metrics import check_features, frechet_distance
from cellfluxrl.seeding import numpy_generator

EXTRAPOLATION_POINTS = 15  # as in the original
_ROWS_AT_ONCE = 1024  # of a kernel matrix, which for all rows would need N^2 numbers


def frechet_infinity(a: np.ndarray, b: np.ndarray, resamples: int = 100, seed: int = 0) -> Interval:
    """Frechet distance of features `(N, D)`, `(M, D)` extrapolated to infinitely many (Chong and Forsyth, 2020).

    Its bias is linear in 1/N: the line through the distances of random parts of both sets, from half to all of them,
    against 1 / part is followed to 0. The original takes parts of the generated set only, and keeps the bias of the
    real one. The result may be negative, as an unbiased estimate of 0 has to be now and then. The interval is left out
    where a quarter of a set has no more rows than features; where a half has no more, that is a `ValueError`.
    """
    check_features(a, b)
    smallest, dimension = min(len(a), len(b)), a.shape[1]
    if smallest // 2 <= dimension:
        raise ValueError(
            f"the Frechet distance of {dimension} features is extrapolated from more than {2 * dimension + 1} rows of "
            f"each set, got {len(a)} and {len(b)}: use the kernel distance"
        )
    resamples = resamples if smallest // 4 > dimension else 0
    return half_sampling_interval(lambda i, j: _extrapolated(a[i], b[j], seed), [len(a), len(b)], resamples, seed)


def _extrapolated(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    random = numpy_generator(seed, "Frechet extrapolation")
    shares = np.linspace(0.5, 1, EXTRAPOLATION_POINTS)
    values = []
    for share in shares:
        parts = (random.permutation(x)[: round(share * len(x))] for x in (a, b))
        values.append(frechet_distance(*parts))
    return float(np.polyfit(1 / shares, values, 1)[1])


def kernel_distance(a: np.ndarray, b: np.ndarray, resamples: int = 200, seed: int = 0) -> Interval:
    """Kernel distance of features `(N, D)`, `(M, D)`; KID on those of Inception (Binkowski et al., 2018).

    The unbiased estimate of the squared maximum mean discrepancy for the kernel (x . y / D + 1)^3, of all pairs, where
    the original averages subsets. Around 0, and often negative, for two samples of one distribution. All NaN if a set
    has fewer than two rows, and without the interval of [`half_sampling_interval`] if it has fewer than four.
    """
    check_features(a, b)
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
    """`(count, 1 + R)`: 1 for all rows in the first column, and for the rows of one half in each other."""
    members = np.zeros((count, 1 + len(halves)))
    members[:, 0] = 1
    for k, half in enumerate(halves, start=1):
        members[half, k] = 1
    return members


def kernel_sums(
    a: np.ndarray, in_a: np.ndarray, b: np.ndarray, in_b: np.ndarray, *, distinct: bool = False
) -> np.ndarray:
    """Sum the kernel of features `(N, D)`, `(M, D)` over the pairs of members of each of S sets: `(S,)`.

    `in_a` is `(N, S)`; `in_b` is `(M, S)`, or `(M, 1)` of the same members for all sets. `distinct` leaves out the
    pairs of a row and itself, where `a` is `b`.
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
