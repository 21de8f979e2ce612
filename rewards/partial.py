"""Measuring what can be measured: one image that fails is marked, and costs the others of its batch nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cellfluxrl.rewards.context import NO_CONTEXT, Context
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rows import Rows


@dataclass(frozen=True)
class PartlyMeasured(Rows):
    """What a suite measured in N images, some of which failed: `(N,)` booleans. Their values and scores are NaN."""

    measured: Measured
    failed: torch.Tensor

    @classmethod
    def nothing(cls, suite: RewardSuite, count: int) -> PartlyMeasured:
        """`count` images that failed, to be filled in by [`put`]."""
        values = torch.full((count, len(suite.statistic_names)), torch.nan)
        scores = {reward.name: torch.full((count,), torch.nan) for reward in suite.rewards if reward.score}
        return cls(Measured(values, scores), torch.ones(count, dtype=torch.bool))

    @classmethod
    def all_of(cls, measured: Measured) -> PartlyMeasured:
        """Images none of which failed."""
        essentials = replace(measured, measurements={}, features=None)
        return cls(essentials, torch.zeros(len(measured), dtype=torch.bool))


def finite_rows(images: torch.Tensor) -> torch.Tensor:
    """Indices of the `(N, C, H, W)` images all of whose pixels are finite: a rollout that diverged is one image."""
    return images.flatten(1).isfinite().all(dim=1).nonzero()[:, 0].cpu()


def measure_finite(
    suite: RewardSuite, images: torch.Tensor, moa: Sequence[str], context: Context = NO_CONTEXT
) -> PartlyMeasured:
    """Measure those of `(N, C, H, W)` images, floats in [-1, 1], whose pixels are all finite; the others have failed.

    Raises:
        ValueError: As [`RewardSuite.check_batch`] says.
    """
    suite.check_batch(images, moa, context=context)
    whole, rows = PartlyMeasured.nothing(suite, len(images)), finite_rows(images)
    if len(rows):
        names = [moa[int(i)] for i in rows]
        measured = suite.measure_batches(images[rows.to(images.device)], names, len(rows), context.take(rows))
        whole.put(rows, PartlyMeasured.all_of(measured))
    return whole


def score_partly(
    suite: RewardSuite,
    partly: PartlyMeasured,
    moa: Sequence[str],
    form: str = "deviation",
    groups: torch.Tensor | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """What `suite(images, moa, form, groups)` would have given for images that were measured before.

    Each reward and `"combined"` are `(N,)`; NaN for images that failed, which their groups are scored without.
    """
    rows = (~partly.failed).nonzero()[:, 0].cpu()
    names = [*suite.weights, "combined"]
    result = {name: torch.full((len(partly.failed),), torch.nan, device=suite.device) for name in names}
    if len(rows):
        measured = partly.measured.map(lambda column: column.cpu()[rows].to(suite.device))
        groups = None if groups is None else groups.cpu()[rows]
        scores = suite.score(measured, [moa[int(i)] for i in rows], form, groups, weights)
        for name, score in scores.items():
            result[name][rows.to(suite.device)] = score
    return result


def scaled_statistics(suite: RewardSuite, partly: PartlyMeasured, moa: Sequence[str]) -> torch.Tensor:
    """`(N, S)`; statistics in standard deviations from the mean of real cells of the MoA; NaN where there is none."""
    values = partly.measured.values.to(suite.device)
    return suite.standardise(Measured(values, {}), moa).masked_fill(~values.isfinite(), torch.nan)
