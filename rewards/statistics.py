"""The statistics of real cells that the rewards compare with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cellfluxrl.seeding import seeded_generator

logger = logging.getLogger(__name__)

FEW_IMAGES = 30
REFERENCE_SIZE = 400
POOLED_IMAGES = 10  # what the pooled variance weighs beside that of a MoA
MINIMUM_STD = 1e-3


@dataclass(frozen=True)
class Statistics:
    """S statistics of real cells of K MoAs.

    Args:
        mean, std: `(K, S)`; in each MoA.
        reference: `(K, REFERENCE_SIZE, S)`; real cells, in standard deviations from the mean.
        count: `(K,)`; real images that each MoA has; 0 where nothing is known of it.
    """

    mean: torch.Tensor
    std: torch.Tensor
    reference: torch.Tensor
    count: torch.Tensor


def fit_statistics(values: torch.Tensor, index: torch.Tensor, num_moas: int, seed: int = 0) -> Statistics:
    """Fit mean, spread and reference cells of each MoA.

    A MoA with n < 30 images is shrunk towards all others (empirical Bayes in the normal model): with the variance
    within MoAs sigma^2, pooled, and the variance between their means tau^2, each of one statistic,

        mean* = (1 - B) mean + B pooled mean,    B = (sigma^2 / n) / (sigma^2 / n + tau^2),
        variance* = ((n - 1) variance + 10 sigma^2) / (n - 1 + 10),

    and its reference cells have that mean and spread, and the shape of the distribution of all MoAs together. No
    standard deviation is under a tenth of the pooled one, or 0.001.

    `values` are the statistics of real images, `(N, S)`, of which rows with NaN are left out, and `index` the MoA of
    each, `(N,)`.

    Raises:
        ValueError: If no MoA has two images: there is no spread to fit.
    """
    whole = values.isfinite().all(dim=1)
    values, index = values[whole].double(), index[whole]
    count = torch.bincount(index, minlength=num_moas)
    if len(values) == 0 or int(count.max()) < 2:
        raise ValueError(f"no MoA has two images with everything to measure, of {len(whole)}: no spread can be fitted")
    if values.shape[1] == 0:  # of rewards that have a score and no statistic
        nothing = torch.zeros(num_moas, 0)
        return Statistics(nothing, nothing, torch.zeros(num_moas, REFERENCE_SIZE, 0), count)

    by_moa = [values[index == k] for k in range(num_moas)]
    nothing = torch.zeros(values.shape[1], dtype=values.dtype)
    mean = torch.stack([v.mean(dim=0) if len(v) else nothing for v in by_moa])
    squares = torch.stack([((v - m) ** 2).sum(dim=0) for v, m in zip(by_moa, mean, strict=True)])
    within = squares.sum(dim=0) / (count - 1).clamp(min=0).sum()
    variance = squares / (count - 1).clamp(min=1)[:, None]
    few = (count < FEW_IMAGES)[:, None]
    mean = torch.where(few, _shrunk_mean(mean, within, count), mean)
    pooled_variance = (squares + POOLED_IMAGES * within) / (count - 1 + POOLED_IMAGES)[:, None]
    std = torch.where(few, pooled_variance, variance).sqrt()
    std = torch.maximum(std, 0.1 * within.sqrt()).clamp(min=MINIMUM_STD)

    residuals = [(v - v.mean(dim=0)) / s for v, s in zip(by_moa, std, strict=True)]
    of_all = torch.cat(residuals)
    of_all = of_all / of_all.std(dim=0).clamp(min=MINIMUM_STD)
    reference = torch.zeros(num_moas, REFERENCE_SIZE, values.shape[1])
    for k in range(num_moas):
        source = of_all if count[k] < FEW_IMAGES else residuals[k]
        generator = seeded_generator(seed, "reference cells", k)
        if len(source) >= REFERENCE_SIZE:
            chosen = torch.randperm(len(source), generator=generator)[:REFERENCE_SIZE]
        else:
            chosen = torch.randint(len(source), (REFERENCE_SIZE,), generator=generator)
        reference[k] = source[chosen]
    return Statistics(mean.float(), std.float(), reference, count)


def _shrunk_mean(mean: torch.Tensor, within: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The means of K MoAs, each drawn towards that of all by as much as its error is larger than their differences."""
    known = count > 0
    if known.sum() < 2:
        return mean
    error = within / count.clamp(min=1)[:, None]
    between = (mean[known].var(dim=0) - error[known].mean(dim=0)).clamp(min=0)
    trust = known[:, None] / (between + error).clamp(min=1e-12)
    pooled = (trust * mean).sum(dim=0) / trust.sum(dim=0)
    shrinkage = error / (error + between).clamp(min=1e-12)
    return (1 - shrinkage) * mean + shrinkage * pooled


def report_gaps(counts: Mapping[str, int], whole: torch.Tensor) -> None:
    """Warn of MoAs with too few real images (`counts`), and of images in which not everything could be measured."""
    if unmeasured := int((~whole).sum()):
        logger.warning("%d of %d real images lack a nucleus or a cell: left out", unmeasured, len(whole))
    if missing := [moa for moa, count in counts.items() if count == 0]:
        logger.warning("nothing can be scored against MoAs without real images: %s", ", ".join(missing))
    if few := [f"{moa} ({count})" for moa, count in counts.items() if 0 < count < FEW_IMAGES]:
        logger.warning(
            "MoAs with fewer than %d real images are shrunk towards the others: %s", FEW_IMAGES, ", ".join(few)
        )


def separability(statistics: Statistics) -> torch.Tensor:
    """`(S,)`; share of each statistic's variance that lies between MoAs (eta squared), MoAs counting alike.

    0: the statistic looks the same in every MoA, so a reward on it says nothing about the drug. 1: it identifies each.
    """
    known = statistics.count > 0
    between = statistics.mean[known].var(dim=0, unbiased=False)
    within = (statistics.std[known] ** 2).mean(dim=0)
    return between / (between + within)
