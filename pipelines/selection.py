"""Choosing one of N candidates for each image: what they are scored by, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.rewards.context import NO_CONTEXT, Context
from cellfluxrl.rewards.energy import pairwise
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rows import Rows

SELECTIONS = ("best", "match", "reject")


def select_best(scores: torch.Tensor) -> torch.Tensor:
    """The candidate with the highest score for each of M controls, `(M,)`; `scores` are `(M, N)`."""
    return scores.argmax(dim=1)


def select_reject(outside: torch.Tensor) -> torch.Tensor:
    """The first candidate of each control that looks like a real cell, or the one nearest to that, `(M,)`.

    The first and not the highest: among the accepted ones nothing is optimised, so what is chosen follows the
    generator's distribution, restricted to the range (rejection sampling with at most N draws). How far each candidate
    is outside of the range, `(M, N)`, is what [`RewardSuite.outside_real_range`] says.

    Example:
        >>> select_reject(torch.tensor([[0.3, 0.0, 0.0], [2.0, 0.5, 0.9]])).tolist()
        [1, 1]
    """
    return outside.argmin(dim=1)  # of several that are smallest, argmin takes the first


def select_match(
    vectors: torch.Tensor, reference: torch.Tensor, sweeps: int = 6, before: torch.Tensor | None = None
) -> torch.Tensor:
    """One candidate for each control such that the chosen set is distributed as real cells are.

    Minimises the energy distance between the statistics of the chosen set and the reference by coordinate descent:
    each control in turn takes the candidate with the smallest mean distance to the reference minus mean distance to
    the chosen set.

    Args:
        vectors: `(M, N, D)`; scaled statistics of N candidates of M controls.
        reference: `(R, D)`; scaled statistics of real cells.
        sweeps: At most this many passes over the controls; it stops when nothing changes.
        before: `(B, D)`; statistics of cells that are in the chosen set already; see [`StreamingMatch`].

    Returns:
        `(M,)`, int64.

    Example:
        >>> candidates = torch.tensor([[[0.0], [9.0]], [[1.0], [9.0]]])
        >>> select_match(candidates, torch.tensor([[0.0], [1.0]])).tolist()
        [0, 0]
    """
    controls, candidates, _ = vectors.shape
    flat = vectors.reshape(controls * candidates, -1)
    to_reference = pairwise(flat, reference).mean(dim=1).view(controls, candidates)
    before = flat[:0] if before is None else before
    total = len(before) + controls
    to_before = pairwise(flat, before).sum(dim=1).view(controls, candidates)
    chosen = (to_reference - to_before / total).argmin(dim=1)
    rows = torch.arange(controls, device=vectors.device)
    # Sum of the distances from every candidate to the chosen set, kept up to date as choices change.
    to_chosen = to_before + pairwise(flat, vectors[rows, chosen]).sum(dim=1).view(controls, candidates)
    for _ in range(sweeps):
        changed = False
        for m in range(controls):
            current = vectors[m, chosen[m]]
            to_others = to_chosen[m] - pairwise(vectors[m], current[None])[:, 0]
            # The set is all there is, so its mean includes the distance of a cell to itself, which is 0: dividing by
            # total - 1, as for a sample of something larger, would let in one outlier for free.
            best = (to_reference[m] - to_others / total).argmin()
            if best != chosen[m]:
                moved = pairwise(flat, torch.stack([vectors[m, best], current]))
                to_chosen += (moved[:, 0] - moved[:, 1]).view(controls, candidates)
                chosen[m] = best
                changed = True
        if not changed:
            break
    return chosen


class StreamingMatch:
    """[`select_match`] for sets that come in batches: a batch is chosen jointly with the cells chosen last before it.

    It remembers the statistics of the last `window` chosen cells of each group, so its memory does not grow with the
    number of controls. Each window is brought as close to the real cells as its candidates allow, and the energy
    distance is convex, so all windows together are at least as close as they are on average. (A uniform sample of all
    cells chosen so far does worse: its sampling error is taken for an error of the set, and "corrected".)

    Args:
        window: Chosen cells that are remembered of each group.

    Example:
        >>> match = StreamingMatch()
        >>> real = torch.tensor([[-1.0], [1.0]])
        >>> batch = torch.tensor([[[-1.0], [1.0]]])
        >>> [int(match.select(batch, real, "taxol")) for _ in range(4)]
        [0, 1, 0, 1]
    """

    def __init__(self, window: int = 512) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self._chosen: dict[str, torch.Tensor] = {}

    def select(self, vectors: torch.Tensor, reference: torch.Tensor, group: str) -> torch.Tensor:
        """Choose for the next batch of controls, as [`select_match`] does.

        Controls of one group, such as a MoA, form one set; the reference must be theirs.
        """
        before = self._chosen.get(group, vectors[0, :0])
        chosen = select_match(vectors, reference, before=before)
        rows = torch.arange(len(vectors), device=vectors.device)
        self._chosen[group] = torch.cat([before, vectors[rows, chosen]])[-self.window :].clone()
        return chosen


@dataclass(frozen=True)
class CandidateScores(Rows):
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
        return self.map(lambda values: values[:, :count])

    def chosen(self, selected: torch.Tensor) -> CandidateScores:
        """One candidate of each image; `selected` is `(M,)`, and the axis N is gone from the result."""
        rows, selected = torch.arange(len(selected)), selected.cpu()
        return self.map(lambda values: values[rows, selected])


def score_candidates(
    suite: RewardSuite, images: torch.Tensor, moas: Sequence[str], context: Context = NO_CONTEXT
) -> CandidateScores:
    """Measure candidates once, for every selection and for what is returned of them.

    Args:
        images: `(M * N, C, H, W)`; floats in [-1, 1], the N candidates of an image in a row.
        moas: The MoA expected of each of the M images.
        context: What else is known of each of the M images.
    """
    count = len(images) // len(moas)
    repeated = [moa for moa in moas for _ in range(count)]
    every = context.take(torch.arange(len(moas)).repeat_interleave(count))
    return scores_of(suite, suite.measure(images, moa=repeated, context=every), moas)


def scores_of(suite: RewardSuite, measured: Measured, moas: Sequence[str]) -> CandidateScores:
    """Score what has been measured in the `M * N` images already, as [`score_candidates`] does."""
    per_image = len(measured) // len(moas)
    repeated = [moa for moa in moas for _ in range(per_image)]
    scores = CandidateScores(
        rewards=suite.score(measured, repeated),
        vectors=suite.appearance(measured, repeated),
        outside=suite.outside_real_range(measured, repeated),
    )
    return scores.map(lambda values: values.unflatten(0, (len(moas), per_image)))


def choose_candidates(
    suite: RewardSuite,
    scores: CandidateScores,
    moas: Sequence[str],
    selection: str | StreamingMatch = "best",
    selection_reward: str = "combined",
) -> torch.Tensor:
    """Choose one candidate of each of M images: `(M,)`, int64, on the CPU.

    Args:
        suite: Whose reference cells are matched.
        scores: Of the candidates.
        moas: The MoA expected of each image.
        selection: `"best"`, `"match"` or `"reject"`; or what remembers the images that were matched before these.
        selection_reward: What is highest in the `"best"`.
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
        rows = torch.tensor([i for i, moa in enumerate(moas) if moa == name])
        vectors = scores.vectors[rows.to(scores.vectors.device)]
        selected[rows] = matcher.select(vectors, suite.real_appearance(name), name).cpu()
    return selected
