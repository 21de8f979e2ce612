"""Measuring what can be measured: one image that fails is marked, and costs the others of its batch nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cellfluxrl.rewards.suite import Measured, RewardSuite


@dataclass(frozen=True)
class PartlyMeasured:
    """What a suite measured in N images, some of which failed.

    Args:
        measured: NaN in the rows of images that failed.
        failed: `(N,)`; which did, as booleans.
    """

    measured: Measured
    failed: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as tensors whose first axis counts the images, so that processes can gather them."""
        scores = {f"score/{name}": score for name, score in self.measured.scores.items()}
        return {"values": self.measured.values, "failed": self.failed, **scores}

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor]) -> PartlyMeasured:
        """Undo [`tensors`]."""
        scores = {name.removeprefix("score/"): value for name, value in tensors.items() if name.startswith("score/")}
        return PartlyMeasured(Measured(tensors["values"], scores, {}), tensors["failed"])


def nothing_measured(suite: RewardSuite, count: int) -> PartlyMeasured:
    """`count` images that failed, to be filled in."""
    values = torch.full((count, len(suite.statistic_names)), torch.nan)
    scores = {reward.name: torch.full((count,), torch.nan) for reward in suite.rewards if reward.score}
    return PartlyMeasured(Measured(values, scores, {}), torch.ones(count, dtype=torch.bool))


def put(whole: PartlyMeasured, rows: torch.Tensor, part: PartlyMeasured) -> None:
    """Write what was measured in some images into their rows of `whole`."""
    whole.failed[rows] = part.failed.cpu()
    whole.measured.values[rows] = part.measured.values.cpu()
    for name, score in part.measured.scores.items():
        whole.measured.scores[name][rows] = score.cpu()


def finite_rows(images: torch.Tensor) -> torch.Tensor:
    """Indices of the `(N, C, H, W)` images all of whose pixels are finite: a rollout that diverged is one image."""
    return images.flatten(1).isfinite().all(dim=1).nonzero()[:, 0].cpu()


def measure_finite(suite: RewardSuite, images: torch.Tensor, moa: Sequence[str]) -> PartlyMeasured:
    """Measure the images whose pixels are all finite; the others have failed.

    Args:
        suite: What to measure for.
        images: `(N, C, H, W)`; floats in [-1, 1].
        moa: The true MoA of each.

    Raises:
        ValueError: As [`RewardSuite.check_batch`] says.
    """
    suite.check_batch(images, moa)
    whole, rows = nothing_measured(suite, len(images)), finite_rows(images)
    if len(rows):
        names = [moa[i] for i in rows.tolist()]
        measured = suite.measure_batches(images[rows.to(images.device)], names, batch_size=len(rows))
        put(whole, rows, PartlyMeasured(measured, torch.zeros(len(rows), dtype=torch.bool)))
    return whole


def score_partly(
    suite: RewardSuite,
    seen: PartlyMeasured,
    moa: Sequence[str],
    form: str = "deviation",
    groups: torch.Tensor | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """The scores of images that were measured before: what `suite(images, moa, form, groups)` would have given.

    Args:
        suite: The one that they were measured for.
        seen: Of N images.
        moa, form, groups: As in [`RewardSuite.forward`].
        weights: As in [`RewardSuite.score`].

    Returns:
        Each reward and `"combined"`, of shape `(N,)`; NaN for images that failed, which their groups are scored
        without.
    """
    rows = (~seen.failed).nonzero()[:, 0].cpu()
    names = [*(reward.name for reward in suite.rewards), "combined"]
    result = {name: torch.full((len(seen.failed),), torch.nan, device=suite.device) for name in names}
    if len(rows):
        values = seen.measured.values.cpu()[rows].to(suite.device)
        own = {name: score.cpu()[rows].to(suite.device) for name, score in seen.measured.scores.items()}
        groups = None if groups is None else groups.cpu()[rows]
        scores = suite.score(Measured(values, own, {}), [moa[i] for i in rows.tolist()], form, groups, weights)
        for name, score in scores.items():
            result[name][rows.to(suite.device)] = score
    return result


def scaled_statistics(suite: RewardSuite, seen: PartlyMeasured, moa: Sequence[str]) -> torch.Tensor:
    """Statistics in standard deviations from the mean of real cells of the MoA, to compare distributions.

    Returns:
        `(N, S)`; columns as in `suite.statistic_names`; NaN where there is nothing to measure.
    """
    values = seen.measured.values.to(suite.device)
    scaled = suite.standardise(Measured(values, {}, {}), moa)
    return scaled.masked_fill(~values.isfinite(), torch.nan)
