"""The two forms of the reward: the deviation from the mean of real cells, and the energy form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cellfluxrl.rewards.energy import distances_to_real, energy_rewards

FORMS = ("deviation", "energy")
UNMEASURED = -10.0  # standard deviations from the real mean


def standardise(values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Statistics in standard deviations from the mean; -10 where there is nothing to measure. All are `(N, S)`."""
    return ((values - mean) / std).nan_to_num(nan=UNMEASURED)


def deviation_scores(
    scaled: torch.Tensor, statistic_names: Sequence[str], scores: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """-|s - mean| / std of each statistic, `(N,)`, and the scores of the rewards that have one as they are."""
    return {name: -scaled[:, k].abs() for k, name in enumerate(statistic_names)} | dict(scores)


@dataclass(frozen=True)
class Groups:
    """N images, some of which are compared with each other and with real cells.

    Images in which something cannot be measured are compared with real cells only: they are far from all others, which
    must not count in their favour.
    """

    scaled: torch.Tensor  # (N, S); standardised statistics
    group: torch.Tensor  # (N,); 0 to G - 1
    reference: torch.Tensor  # (G, R, S); real cells of the MoA of each group
    compared: torch.Tensor  # (N,); which are compared with the others of their group
    lacking: torch.Tensor  # (N,); which are compared with real cells only

    @classmethod
    def of(
        cls,
        scaled: torch.Tensor,
        whole: torch.Tensor,
        mechanism: torch.Tensor,
        reference: torch.Tensor,
        groups: torch.Tensor | None = None,
    ) -> Groups:
        """Sort images into groups: `(N,)` integers, alike in a group; by default the MoA, `mechanism`.

        `whole`, `(N,)`, says whether everything could be measured; `reference`, `(K, R, S)`, are real cells of each
        MoA.

        Raises:
            ValueError: If a group has several MoAs.
        """
        _, group = (mechanism if groups is None else groups.to(mechanism.device)).unique(return_inverse=True)
        of_group = mechanism.new_zeros(int(group.max()) + 1).scatter(0, group, mechanism)
        if (of_group[group] != mechanism).any():
            raise ValueError("rollouts of one group must have one MoA: they are compared with the same real cells")
        compared = whole & (torch.bincount(group, weights=whole.double())[group] >= 2)
        lacking = ~whole & (torch.bincount(group)[group] >= 2)
        return cls(scaled, group, reference[of_group], compared, lacking)

    def energy(self, columns: Sequence[int], otherwise: torch.Tensor) -> torch.Tensor:
        """Energy rewards of some of the statistics, `(N,)`; `otherwise` for images without others in their group."""
        result = otherwise.clone()
        values, reference = self.scaled[:, list(columns)], self.reference[:, :, list(columns)]
        if self.compared.any():
            result[self.compared] = energy_rewards(values[self.compared], reference, self.group[self.compared])
        if self.lacking.any():
            result[self.lacking] = -distances_to_real(values[self.lacking], reference, self.group[self.lacking])
        return result


def energy_scores(
    deviations: Mapping[str, torch.Tensor],
    statistic_names: Sequence[str],
    weights: Mapping[str, float],
    groups: Groups,
) -> dict[str, torch.Tensor]:
    """The energy form of all images that have others in their group, from the deviation form and its `"combined"`.

    `combined` is the energy reward of all weighted statistics together, and the rewards without a statistic as they
    are, once each: a reward that is largest at its extreme, not at the real distribution, keeps pulling when the
    others are matched, and by its weight, over ten times as strongly, it would decide what is learnt then.
    """
    result = dict(deviations)
    for k, name in enumerate(statistic_names):
        result[name] = groups.energy([k], deviations[name])
    weighted = [k for k, name in enumerate(statistic_names) if weights[name] > 0]
    if weighted:
        combined, replaced = groups.energy(weighted, deviations["combined"]), groups.compared | groups.lacking
        for name in weights:
            if name not in statistic_names and weights[name] > 0:
                combined[replaced] += deviations[name][replaced]
        result["combined"] = combined
    return result
