"""The evaluation table: generated cells against real ones, by the rewards and by evaluators never optimised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cellfluxrl.evaluation.statistics.metrics import (
    bootstrap_error,
    frechet_distance,
    image_features,
    mean_wasserstein,
    relative_spread,
)
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.pipelines.selection import CandidateScores, choose_candidates, scores_of
from cellfluxrl.rewards.suite import RewardSuite

REWARD_COLUMNS = (
    "moa",
    "containment",
    "roundness",
    "nucleus_size",
    "cytoplasm_size",
    "nucleus_count",
    "cytoplasm_count",
    "combined",
)
COLUMNS = (*REWARD_COLUMNS, "judge", "frechet", "frechet_image", "wasserstein", "spread")
COLUMN_NOTES = {
    "moa": "probability of the true mechanism of action, by the classifier of the rewards",
    "containment": "share of the nuclei that lies inside cells",
    "roundness": "-|s - mean| / std of the nuclei's roundness, mean and std from real cells of the mechanism",
    "nucleus_size": "the same for the area of the largest nucleus",
    "cytoplasm_size": "the same for the area of the largest cell",
    "nucleus_count": "the same for the number of nuclei",
    "cytoplasm_count": "the same for the number of cells",
    "combined": "weighted mean of the seven rewards",
    "judge": "probability of the true mechanism by an independent classifier, never used in training",
    "frechet": "Frechet distance to real cells on the independent classifier's features; lower is better",
    "frechet_image": "Frechet distance to real cells on hand-made intensity and texture features; lower is better",
    "wasserstein": "mean Wasserstein-1 distance of the five shape and count statistics to real cells, in units of "
    "their standard deviation; lower is better",
    "spread": "diversity: spread of the independent classifier's features over that of real cells; 1 is right",
}


@dataclass(frozen=True)
class Scored:
    """Images and all that is measured on them; the first axis counts the images.

    Args:
        rewards: Each reward in the deviation form, shape `(N,)`.
        vectors: `(N, 6 + D)`; scaled statistics, the logit and the features of the rewards' classifier; see
            [`RewardSuite.appearance`].
        outside: `(N,)`; see [`RewardSuite.outside_real_range`].
        judge: `(N,)`; the independent classifier's probability of the true mechanism.
        judge_features, image_features: `(N, D)` and `(N, E)`; see the columns of the table.
    """

    images: torch.Tensor
    rewards: dict[str, torch.Tensor]
    vectors: torch.Tensor
    outside: torch.Tensor
    judge: torch.Tensor
    judge_features: torch.Tensor
    image_features: torch.Tensor

    def take(self, rows: torch.Tensor) -> Scored:
        """The images of these rows, with what was measured on them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rewards"}
        return Scored(
            rewards={name: value[rows] for name, value in self.rewards.items()},
            **{name: value[rows] for name, value in values.items()},
        )


@torch.no_grad()
def score_images(images: torch.Tensor, moa: Sequence[str], suite: RewardSuite, judge: MoAClassifier) -> Scored:
    """Measure everything on `(N, C, H, W)` images in [-1, 1].

    Args:
        suite: The rewards.
        judge: Independent of the one in the rewards.
    """
    scores = scores_of(suite, suite.measure(images, moa), moa)
    index = judge.class_indices(moa)
    outputs = [judge(chunk.to(judge.device)) for chunk in images.split(256)]
    logits = torch.cat([o.logits for o in outputs]).cpu()
    return Scored(
        images=images.cpu(),
        rewards={name: values[:, 0].cpu() for name, values in scores.rewards.items()},
        vectors=scores.vectors[:, 0].cpu(),
        outside=scores.outside[:, 0].cpu(),
        judge=logits.softmax(dim=1)[torch.arange(len(logits)), index],
        judge_features=torch.cat([o.features for o in outputs]).cpu(),
        image_features=image_features(images.cpu()),
    )


def table_row(generated: Scored, real: Scored) -> dict[str, tuple[float, float]]:
    """One row of the table: (value, standard error) by column.

    Means carry the standard error of the mean, distances and spread a bootstrap error over the generated images.
    """
    row = {name: _mean(generated.rewards[name]) for name in REWARD_COLUMNS}
    row["judge"] = _mean(generated.judge)
    scale = real.image_features.std(dim=0).clamp(min=1e-6)
    shapes = slice(0, 5)  # the statistics, without the logit of a classifier that rewards were computed from
    distances = {
        "frechet": (frechet_distance, generated.judge_features, real.judge_features),
        "frechet_image": (frechet_distance, generated.image_features / scale, real.image_features / scale),
        "wasserstein": (mean_wasserstein, generated.vectors[:, shapes], real.vectors[:, shapes]),
        "spread": (relative_spread, generated.judge_features, real.judge_features),
    }
    for name, (distance, ours, theirs) in distances.items():
        a, b = ours.double().numpy(), theirs.double().numpy()
        error = bootstrap_error(lambda rows, d=distance, a=a, b=b: d(a[rows], b), len(a))
        row[name] = (distance(a, b), error)
    return row


def _mean(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def choose(candidates: Scored, moa: Sequence[str], num: int, selection: str, suite: RewardSuite) -> Scored:
    """Choose one of the first `num` candidates of each control, as the pipeline does.

    Args:
        candidates: Of M controls with K candidates each, control after control.
        moa: The mechanism expected of each control.
        num: How many of the K candidates take part; 1 is no choice.
        selection: One of [`choose_candidates`].
        suite: Whose real cells are matched.
    """
    controls = len(moa)
    per_control = len(candidates.images) // controls

    def unflattened(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (controls, per_control))

    scores = CandidateScores(
        rewards={name: unflattened(values) for name, values in candidates.rewards.items()},
        vectors=unflattened(candidates.vectors),
        outside=unflattened(candidates.outside),
    )
    chosen = choose_candidates(suite, scores.first(num), moa, selection)
    return candidates.take(torch.arange(controls) * per_control + chosen)


@dataclass(frozen=True)
class PairedDifference:
    """Mean over controls of a difference between two models that saw the same controls and noise, and its error."""

    mean: float
    standard_error: float

    @property
    def standard_errors(self) -> float:
        """How many standard errors the mean is from zero."""
        return self.mean / self.standard_error if self.standard_error > 0 else 0.0


def paired_difference(ours: torch.Tensor, base: torch.Tensor, controls: int) -> PairedDifference:
    """Compare two models on the same controls and seeds.

    Args:
        ours, base: `(M * K,)`; a score of K samples of each of M controls.
        controls: M; the samples of one control are averaged first, because they are not independent.
    """
    difference = (ours - base).double().view(controls, -1).mean(dim=1)
    return PairedDifference(float(difference.mean()), float(difference.std() / np.sqrt(controls)))
