"""What the candidates of an image are chosen by, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.pipelines.selection import StreamingMatch, select_best, select_reject
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.suite import RewardSuite

SELECTIONS = ("best", "match", "reject")


@dataclass(frozen=True)
class CandidateScores:
    """What is known of N candidates for each of M images.

    Args:
        rewards: Each reward and `"combined"`, of shape `(M, N)`.
        vectors: `(M, N, S + D)`; what is matched, see [`RewardSuite.appearance`]: first the statistics, in standard
            deviations of real cells.
        outside: `(M, N)`; how far each is outside of the range of real cells, 0 inside.
    """

    rewards: dict[str, torch.Tensor]
    vectors: torch.Tensor
    outside: torch.Tensor

    def first(self, count: int) -> CandidateScores:
        """The first `count` candidates of each image."""
        rewards = {name: values[:, :count] for name, values in self.rewards.items()}
        return CandidateScores(rewards, self.vectors[:, :count], self.outside[:, :count])

    def chosen(self, selected: torch.Tensor) -> CandidateScores:
        """One candidate of each image; `selected` is `(M,)`, and the axis N is gone from the result."""
        rows, selected = torch.arange(len(selected)), selected.cpu()
        rewards = {name: values[rows, selected] for name, values in self.rewards.items()}
        return CandidateScores(rewards, self.vectors[rows, selected], self.outside[rows, selected])

    @staticmethod
    def cat(parts: Sequence[CandidateScores], dim: int = 0) -> CandidateScores:
        """Join the images (`dim=0`) or the candidates (`dim=1`) of several."""
        rewards = {name: torch.cat([part.rewards[name] for part in parts], dim=dim) for name in parts[0].rewards}
        vectors = torch.cat([part.vectors for part in parts], dim=dim)
        return CandidateScores(rewards, vectors, torch.cat([part.outside for part in parts], dim=dim))


def score_candidates(suite: RewardSuite, images: torch.Tensor, moas: Sequence[str]) -> CandidateScores:
    """Measure candidates once, for every selection and for what is returned of them.

    Args:
        suite: The rewards.
        images: `(M * N, C, H, W)`; floats in [-1, 1], the N candidates of an image in a row.
        moas: The MoA expected of each image.
    """
    repeated = [moa for moa in moas for _ in range(len(images) // len(moas))]
    return scores_of(suite, suite.measure(images, moa=repeated), moas)


def scores_of(suite: RewardSuite, measured: Measured, moas: Sequence[str]) -> CandidateScores:
    """[`score_candidates`] of what has been measured in the `M * N` images already."""
    per_image = len(measured.values) // len(moas)
    repeated = [moa for moa in moas for _ in range(per_image)]

    def unflattened(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (len(moas), per_image))

    return CandidateScores(
        rewards={name: unflattened(values) for name, values in suite.score(measured, repeated).items()},
        vectors=unflattened(suite.appearance(measured, repeated)),
        outside=unflattened(suite.outside_real_range(measured, repeated)),
    )


def choose_candidates(
    suite: RewardSuite,
    scores: CandidateScores,
    moas: Sequence[str],
    selection: str | StreamingMatch = "best",
    selection_reward: str = "combined",
) -> torch.Tensor:
    """Choose one candidate of each image.

    Args:
        suite: Whose reference cells are matched.
        scores: Of M images.
        moas: The MoA expected of each.
        selection: `"best"`, `"match"` or `"reject"`; or what remembers the images that were matched before these.
        selection_reward: What is highest in the `"best"`.

    Returns:
        `torch.Tensor` of shape `(M,)`, int64, on the CPU.

    Raises:
        ValueError: For an unknown selection.
    """
    if selection == "best":
        return select_best(scores.rewards[selection_reward]).cpu()
    if selection == "reject":
        return select_reject(scores.outside).cpu()
    matcher = StreamingMatch() if selection == "match" else selection
    if not isinstance(matcher, StreamingMatch):
        raise unknown_name("selection", selection, SELECTIONS)
    selected = torch.zeros(len(moas), dtype=torch.long)
    for name in dict.fromkeys(moas):
        own = torch.tensor([i for i, moa in enumerate(moas) if moa == name])
        vectors = scores.vectors[own.to(scores.vectors.device)]
        selected[own] = matcher.select(vectors, suite.real_appearance(name), name).cpu()
    return selected
