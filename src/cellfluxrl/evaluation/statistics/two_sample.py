"""Can a classifier distinguish generated from real cells?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest

from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.seeding import numpy_generator

MINIMUM_CELLS = 10  # of each set
RIDGE = 0.01  # weight of the squared coefficients beside the mean log loss


@dataclass(frozen=True)
class TwoSampleTest:
    """Result of [`two_sample_test`].

    Args:
        accuracy: Of distinguishing the two sets in unseen cells, with Wilson's 95 % interval; 0.5 is chance, which two
            samples of one distribution are at.
        p_value: Of an accuracy this high by chance.
        count: Cells of each set that took part; those with NaN do not, and the larger set is cut.
        missing: Cells with NaN in each set.
    """

    accuracy: Interval
    p_value: float
    count: int
    missing: tuple[int, int]


def two_sample_test(a: np.ndarray, b: np.ndarray, seed: int = 0) -> TwoSampleTest:
    """Classifier two-sample test (Lopez-Paz and Oquab, 2017).

    A ridge logistic regression on the standardised features and their absolute values, which show a difference in
    spread as well, is trained on one half of the cells and judged on the other. Interval and p-value are binomial, as
    the guesses of one classifier are independent. (Those of cross-validation are not: with 60 cells of each set, its
    binomial p-value is below 0.05 in a tenth of all comparisons of equal distributions.)

    Args:
        a, b: `(N, F)` and `(M, F)`; features of the cells of two sets, no cell in both. Rows with NaN are left out,
            and counted.
        seed: How the cells are divided.

    Raises:
        ValueError: If the numbers of features differ, or a set has fewer than ten complete rows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(400, 3))
        >>> test = two_sample_test(x[:200], x[200:] + 3)
        >>> test.accuracy.value > 0.97, test.p_value < 1e-6
        (True, True)
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, F) and (M, F) of one F, got {a.shape} and {b.shape}")
    whole_a, whole_b = (x[np.isfinite(x).all(axis=1)].astype(np.float64) for x in (a, b))
    count = min(len(whole_a), len(whole_b))
    if count < MINIMUM_CELLS:
        raise ValueError(
            f"each set needs at least {MINIMUM_CELLS} rows without NaN, got {len(whole_a)} and {len(whole_b)}"
        )
    random = numpy_generator(seed, "two-sample test")
    features = np.concatenate([random.permutation(x)[:count] for x in (whole_a, whole_b)])
    is_b = np.repeat([False, True], count)
    train = np.tile(np.arange(count) < count // 2, 2)
    right = _predict(features[train], is_b[train], features[~train]) == is_b[~train]
    accuracy = float(right.mean())
    ends = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    error = math.sqrt(accuracy * (1 - accuracy) / len(right))
    return TwoSampleTest(
        accuracy=Interval(accuracy, float(ends.low), float(ends.high), error),
        p_value=float(binomtest(int(right.sum()), len(right), 0.5, alternative="greater").pvalue),
        count=count,
        missing=(len(a) - len(whole_a), len(b) - len(whole_b)),
    )


def _predict(train: np.ndarray, is_b: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit a logistic regression, and say which rows of `test` it takes for `b`."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.where(std > 0, std, 1)
    train, test = ((x - mean) / std for x in (train, test))
    centre = np.abs(train).mean(axis=0)
    train, test = (np.concatenate([x, np.abs(x) - centre, np.ones((len(x), 1))], axis=1) for x in (train, test))
    sign = np.where(is_b, 1.0, -1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (train @ weights)
        slopes = -sign * expit(-margin) / len(train)
        return np.logaddexp(0, -margin).mean() + RIDGE / 2 * (weights @ weights), train.T @ slopes + RIDGE * weights

    weights = minimize(loss, np.zeros(train.shape[1]), jac=True, method="L-BFGS-B").x
    return test @ weights > 0
