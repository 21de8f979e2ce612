"""Does the model reproduce the real effect of each compound on each feature: its direction and its size?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr

from cellfluxrl.errors import unknown_name
from cellfluxrl.evaluation.statistics.intervals import Interval, bootstrap_interval
from cellfluxrl.evaluation.statistics.strata import rows_by_group

MINIMUM_CELLS = 5  # with a value, for an effect size
CLEAR_EFFECT = 0.5  # control standard deviations; a smaller real effect has its sign by chance


def _centre_and_scale(control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and robust standard deviation of each feature; NaN where too few cells have a value or all are alike."""
    centre = _medians(control)
    deviation = np.abs(control - centre)
    counts = np.isfinite(control).sum(axis=0)
    scale = 1.4826 * _medians(deviation)
    mean = np.divide(np.nansum(deviation, axis=0), counts, out=np.zeros(len(counts)), where=counts > 0)
    scale = np.where(scale > 0, scale, 1.2533 * mean)
    return centre, np.where((counts >= MINIMUM_CELLS) & (scale > 0), scale, np.nan)


def _effect_sizes(treated: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    known = np.isfinite(treated).sum(axis=0) >= MINIMUM_CELLS
    return np.where(known, (_medians(treated) - centre) / scale, np.nan)


def _medians(values: np.ndarray) -> np.ndarray:
    """Median of each column without its NaN; np.nanmedian goes through the columns one by one."""
    ordered, counts = np.sort(values, axis=0), (~np.isnan(values)).sum(axis=0)  # sorted, NaN come last
    if not len(values):
        return np.full(len(counts), np.nan)
    low, high = (
        np.take_along_axis(ordered, rows[None], axis=0)[0]
        for rows in (np.maximum(counts - 1, 0) // 2, np.minimum(counts // 2, len(values) - 1))
    )
    return (low + high) / 2


def effects_by_group(
    features: np.ndarray, groups: Sequence[Hashable], control: np.ndarray, order: Sequence[Hashable]
) -> np.ndarray:
    """Robust standardised difference between the cells of each compound and control cells, of each feature.

    (median of treated - median of control) / (1.4826 MAD of control): the robust z-score of image-based profiling
    [1]_, in standard deviations of normal data. Where the median absolute deviation is 0, as of counts that are the
    same in most cells, 1.2533 times the mean absolute deviation from the median takes its place (the modified z-score
    of Iglewicz and Hoaglin [2]_).

    Args:
        features: `(N, F)`; of treated cells, real or generated; NaN counts as missing.
        groups: The compound of each, or another group of cells.
        control: `(M, F)`; of control cells. To compare real and generated effects, give both the same ones: then both
            have one unit.
        order: The compounds to return, in order.

    Returns:
        `(K, F)`; NaN where fewer than five treated or control cells have a value, or all of the control's are the
        same.

    Raises:
        ValueError: If the shapes do not fit, or a compound in `order` has no cells.

    References:
        .. [1] J. Caicedo et al., Data-analysis strategies for image-based cell profiling, Nature Methods 14, 849
           (2017).
        .. [2] B. Iglewicz, D. Hoaglin, How to Detect and Handle Outliers, ASQC Quality Press (1993).

    Example:
        >>> control = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> effects_by_group(control * 3 + 2, ["taxol"] * 10_000, control, ["taxol"]).round(1)
        array([[2.]])
    """
    if features.ndim != 2 or control.ndim != 2 or features.shape[1] != control.shape[1]:
        raise ValueError(
            f"features and control must be (N, F) and (M, F) of one F, got {features.shape}, {control.shape}"
        )
    if len(groups) != len(features):
        raise ValueError(f"there must be one group for each of {len(features)} cells, got {len(groups)}")
    rows = rows_by_group(groups)
    for group in order:
        if group not in rows:
            raise unknown_name("group", group, map(str, rows))
    centre, scale = _centre_and_scale(control)
    return np.stack([_effect_sizes(features[rows[group]], centre, scale) for group in order])


@dataclass(frozen=True)
class EffectAgreement:
    """Agreement of generated with real effects over all pairs of a compound and a feature.

    Args:
        pearson, spearman: Correlations.
        same_sign: Share with the right direction, of those whose real effect is at least 0.5 control standard
            deviations; 0.5 is chance.
        slope: Median of generated / real effect over the same pairs: the slope of a line through the origin, which no
            single feature decides. Below 1 the effects are too weak.
        pairs, clear_pairs: How many pairs have both effects, and how many of those are clear ones.
    """

    pearson: Interval
    spearman: Interval
    same_sign: Interval
    slope: Interval
    pairs: int
    clear_pairs: int


def effect_agreement(real: np.ndarray, generated: np.ndarray, resamples: int = 500, seed: int = 0) -> EffectAgreement:
    """Compare generated with real effects of K compounds on F features.

    The noise of few cells lowers every measure, for real cells too: half of the real cells against the other half show
    what is possible.

    Args:
        real, generated: `(K, F)`; see [`effects_by_group`]; pairs with a NaN are left out.
        resamples, seed: Of the bootstrap. It resamples compounds, since the features of one compound depend on each
            other; with one compound no interval is known.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> real = np.random.default_rng(0).normal(size=(8, 50))
        >>> agreement = effect_agreement(real, 0.5 * real)
        >>> round(agreement.pearson.value, 3), agreement.same_sign.value, agreement.slope.value
        (1.0, 1.0, 0.5)
    """
    real, generated = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if real.ndim != 2 or real.shape != generated.shape:
        raise ValueError(f"effects must be two (K, F) arrays of one shape, got {real.shape} and {generated.shape}")
    both = np.isfinite(real) & np.isfinite(generated)
    clear = both & (np.abs(real) >= CLEAR_EFFECT)

    def interval(measure: Callable[..., float], used: np.ndarray) -> Interval:
        def statistic(rows: np.ndarray) -> float:
            return measure(real[rows][used[rows]], generated[rows][used[rows]])

        return bootstrap_interval(statistic, [len(real)], resamples, seed)

    return EffectAgreement(
        pearson=interval(_pearson, both),
        spearman=interval(_spearman, both),
        same_sign=interval(_same_sign, clear),
        slope=interval(_slope, clear),
        pairs=int(both.sum()),
        clear_pairs=int(clear.sum()),
    )


def _pearson(real: np.ndarray, generated: np.ndarray) -> float:
    return pearsonr(real, generated).statistic if _vary(real, generated) else np.nan


def _spearman(real: np.ndarray, generated: np.ndarray) -> float:
    return spearmanr(real, generated).statistic if _vary(real, generated) else np.nan


def _vary(real: np.ndarray, generated: np.ndarray) -> bool:
    return len(real) > 2 and np.ptp(real) > 0 and np.ptp(generated) > 0


def _same_sign(real: np.ndarray, generated: np.ndarray) -> float:
    return (np.sign(real) == np.sign(generated)).mean() if len(real) else np.nan


def _slope(real: np.ndarray, generated: np.ndarray) -> float:
    return np.median(generated / real) if len(real) else np.nan
