"""Does the model reproduce the real effect of each compound on each feature: its direction and its size?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    """Robust standardised difference of each of F features between the cells of K compounds and controls, `(K, F)`.

    (median of treated - median of control) / (1.4826 MAD of control): the robust z-score of image-based profiling
    (Caicedo et al., Nature Methods 14, 849, 2017), in standard deviations of normal data. Where the median absolute
    deviation is 0, as of counts that are the same in most cells, 1.2533 times the mean absolute deviation from the
    median takes its place (the modified z-score of Iglewicz and Hoaglin, 1993). NaN where fewer than five treated
    or control cells have a value, or all of the control's are the same.

    Args:
        features: `(N, F)`; of treated cells, real or generated; NaN counts as missing.
        groups: The compound of each.
        control: `(M, F)`; the same ones for real and generated effects, which then have one unit.
        order: The compounds to return, in order.
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
    effects = []
    for group in order:
        treated = features[rows[group]]
        known = np.isfinite(treated).sum(axis=0) >= MINIMUM_CELLS
        effects.append(np.where(known, (_medians(treated) - centre) / scale, np.nan))
    return np.stack(effects)


@dataclass(frozen=True)
class EffectAgreement:
    """Agreement of generated with real effects over all pairs of a compound and a feature that have both."""

    pearson: Interval
    spearman: Interval
    same_sign: Interval  # share of the clear pairs with the right direction; 0.5 is chance
    slope: Interval  # median of generated / real effect over the clear pairs; below 1 the effects are too weak
    pairs: int
    clear_pairs: int  # whose real effect is at least `CLEAR_EFFECT`


def effect_agreement(real: np.ndarray, generated: np.ndarray, resamples: int = 500, seed: int = 0) -> EffectAgreement:
    """Compare generated with real effects `(K, F)` of K compounds on F features, without pairs with a NaN.

    The noise of few cells lowers every measure, for real cells too: half of the real cells against the other half show
    what is possible. The bootstrap resamples compounds, since the features of one compound depend on each other.
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
        pearson=interval(partial(_correlation, correlate=pearsonr), both),
        spearman=interval(partial(_correlation, correlate=spearmanr), both),
        same_sign=interval(_same_sign, clear),
        slope=interval(_slope, clear),
        pairs=int(both.sum()),
        clear_pairs=int(clear.sum()),
    )


def _correlation(real: np.ndarray, generated: np.ndarray, correlate: Callable[..., Any]) -> float:
    vary = len(real) > 2 and np.ptp(real) > 0 and np.ptp(generated) > 0
    return correlate(real, generated).statistic if vary else np.nan


def _same_sign(real: np.ndarray, generated: np.ndarray) -> float:
    return (np.sign(real) == np.sign(generated)).mean() if len(real) else np.nan


def _slope(real: np.ndarray, generated: np.ndarray) -> float:
    return np.median(generated / real) if len(real) else np.nan
