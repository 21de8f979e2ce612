"""What nearest neighbours show: copies of training cells, and real cells that nothing generated is like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import nhypergeom

from cellfluxrl.evaluation.statistics.intervals import Interval, bootstrap_interval

COPY_RATE = 0.01  # share of real cells that look as much like a copy as what is counted as one
_ROWS_AT_ONCE = 512  # distances of all to all would need N^2 numbers


@dataclass(frozen=True)
class Memorisation:
    """Result of [`memorisation`], of so many `training`, `held_out` and `generated` cells, without those `missing`."""

    # Median distance to the nearest training cell, generated over held-out real cells: 1 is right; far below it are
    # copies, or averages, which lie close to everything.
    distance_ratio: Interval
    # Share, of the generated and of the real cells, whose nearest training cell is nearer than the held-out one.
    nearer_to_training: Interval
    nearer_to_training_real: Interval
    copies: Interval  # share that sticks to one training cell as only `COPY_RATE` of the held-out real ones do
    p_value: float  # of that many copies by chance
    training: int
    held_out: int
    generated: int
    missing: int


def memorisation(
    generated: np.ndarray, training: np.ndarray, held_out: np.ndarray, resamples: int = 500, seed: int = 0
) -> Memorisation:
    """Look for training cells among the generated ones; held-out real cells, which cannot be copies, are the measure.

    A copy lies much nearer to its training cell than to every other: the ratio of the distances to the nearest and the
    second-nearest training cell is small (Yoon et al., 2023), whatever the scale, and whether or not the plates
    differ. The held-out cells show how small it is by chance: with r = 1 % of them below it, the number of generated
    cells below the r-th smallest ratio follows a negative hypergeometric distribution if generated cells are no more
    like copies than new real cells are. That gives the p-value. Training cells that occur twice hide their copies
    from the ratio, but not from the distances to the nearest (Meehan et al., 2020), which cells of the training plates
    are nearer to than others are, copies or not. Features are `(N, D)`, `(T, D)` and `(H, D)`, standardised by the
    training cells; rows with NaN are left out, and a set with fewer than two others is a `ValueError`.
    """
    complete, missing = _complete(generated=generated, training=training, held_out=held_out)
    generated, training, held_out = _standardised(complete)
    ours, theirs = nearest_distances(generated, training, 2), nearest_distances(held_out, training, 2)
    ours_held = nearest_distances(generated, held_out, 1)[:, 0]
    theirs_held = nearest_distances(held_out, held_out, 2)[:, 1]  # the nearest is the cell itself
    nearer, nearer_real = ours[:, 0] < ours_held, theirs[:, 0] < theirs_held

    ratios, real_ratios = (d[:, 0] / np.maximum(d[:, 1], 1e-12) for d in (ours, theirs))
    rank = int(np.ceil(COPY_RATE * len(held_out)))
    is_copy = ratios < np.sort(real_ratios)[rank - 1]
    by_chance = nhypergeom(len(generated) + len(held_out), len(generated), rank)

    def share(flags: np.ndarray) -> Interval:
        return bootstrap_interval(lambda rows: flags[rows].mean(), [len(flags)], resamples, seed)

    return Memorisation(
        distance_ratio=bootstrap_interval(
            lambda i, j: np.median(ours[i, 0]) / max(np.median(theirs[j, 0]), 1e-12),
            [len(ours), len(theirs)],
            resamples,
            seed,
        ),
        nearer_to_training=share(nearer),
        nearer_to_training_real=share(nearer_real),
        copies=share(is_copy),
        p_value=min(1.0, float(by_chance.pmf(np.arange(is_copy.sum(), len(generated) + 1)).sum())),
        training=len(training),
        held_out=len(held_out),
        generated=len(generated),
        missing=missing,
    )


def coverage(
    generated: np.ndarray, real: np.ndarray, neighbours: int = 5, resamples: int = 200, seed: int = 0
) -> Interval:
    """Diversity: share of the real cells that have a generated one among their neighbours (Naeem et al., 2020).

    A generated cell counts if it is nearer than the real cell's fifth-nearest other real one. Missing modes lower it,
    and a few outliers cannot make up for them, as they can in a total variance. As many other real cells as there are
    here reach 1 - 2^-5 = 0.97, and fewer reach less: compare only sets of one size. Features are `(N, D)` and
    `(M, D)`, standardised by the real cells, without their rows with NaN; the bootstrap is over real cells.
    """
    complete, _ = _complete(generated=generated, real=real)
    generated, real = _standardised(complete)
    if not 1 <= neighbours < len(real):
        raise ValueError(f"neighbours must lie between 1 and {len(real) - 1}, the other real cells; got {neighbours}")
    radius = nearest_distances(real, real, neighbours + 1)[:, -1]  # the nearest is the cell itself
    covered = nearest_distances(real, generated, 1)[:, 0] < radius
    return bootstrap_interval(lambda rows: covered[rows].mean(), [len(covered)], resamples, seed)


def nearest_distances(queries: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Euclidean distances of `(N, D)` queries to their `count` nearest of `(M, D)` points, ascending: `(N, count)`."""
    points = torch.from_numpy(points)
    parts = torch.from_numpy(queries).split(_ROWS_AT_ONCE)
    return torch.cat([torch.cdist(p, points).topk(count, largest=False).values for p in parts]).numpy()


def _complete(**sets: np.ndarray) -> tuple[list[np.ndarray], int]:
    """The rows without NaN of each set, and how many others there are."""
    shapes = {name: features.shape for name, features in sets.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[1] for shape in shapes.values()}) > 1:
        raise ValueError(f"features must be (rows, D) of one D, got {shapes}")
    whole = {name: x[np.isfinite(x).all(axis=1)].astype(np.float64) for name, x in sets.items()}
    for name, features in whole.items():
        if len(features) < 2:
            raise ValueError(
                f"{name} must have at least two rows without NaN, got {len(features)} of {len(sets[name])}"
            )
    return list(whole.values()), sum(len(sets[name]) - len(x) for name, x in whole.items())


def _standardised(sets: list[np.ndarray]) -> list[np.ndarray]:
    """Each set minus the mean and over the standard deviation of the second of them."""
    mean, std = sets[1].mean(axis=0), sets[1].std(axis=0)
    return [(x - mean) / np.where(std > 0, std, 1) for x in sets]
