"""What a reward is, the seven of CellFluxRL, and how users add their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.rewards.segmentation.protocol import Masks

NEEDS = ("images", "masks", "classifier")
ENTRY_POINTS = "cellfluxrl.rewards"


@dataclass(frozen=True)
class Observation:
    """What is seen in N images. The suite computes only what one of its rewards needs, once for all of them.

    Args:
        images: `(N, C, H, W)`; floats in [-1, 1].
        moa: The true mechanism of action of each.
        masks: Labelled nuclei and cells, where a reward needs `"masks"`.
        measurements: Their six measurements, each `(N,)`; see [`measure`].
        probability: `(N,)`; the classifier's probability of the true MoA, where a reward needs `"classifier"`.
        logit: `(N,)`; log(p / (1 - p)) of that probability, without overflow.
        features: `(N, D)`; the classifier's activations before its last layer.
    """

    images: torch.Tensor
    moa: list[str]
    masks: Masks | None = None
    measurements: dict[str, torch.Tensor] | None = None
    probability: torch.Tensor | None = None
    logit: torch.Tensor | None = None
    features: torch.Tensor | None = None


@dataclass(frozen=True)
class Reward:
    """A reward: higher is better.

    It has a `score`, which is the reward itself, or a `statistic`, whose distribution in real cells of the MoA is the
    goal: the suite fits its mean and spread, and turns it into a reward by the `"deviation"` or the `"energy"` form. A
    reward with both has its score in the first form and its statistic in the second.

    Args:
        name: What it is called in the scores of a suite.
        needs: What it looks at: `"images"`, `"masks"` (with the measurements) or `"classifier"`.
        score: From an [`Observation`] of N images to N finite numbers.
        statistic: From an [`Observation`] of N images to N numbers; NaN where an image has nothing to measure, such as
            the roundness of no nucleus. Such an image is never rewarded.
        title, unit, description: What it is called and what it is, for tables and reports.

    Raises:
        ValueError: If it needs something else, or has neither score nor statistic.

    Example:
        >>> few = Reward("few_nuclei", needs=["masks"], score=lambda seen: -seen.measurements["nucleus_count"])
        >>> dna = Reward("dna_brightness", needs=["images"], statistic=lambda seen: seen.images[:, 0].mean((1, 2)))
    """

    name: str
    needs: Sequence[str]
    score: Callable[[Observation], torch.Tensor] | None = None
    statistic: Callable[[Observation], torch.Tensor] | None = None
    title: str = ""
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.needs, str):
            raise ValueError(
                f"needs of reward {self.name!r} must be a sequence of names, got the string {self.needs!r}"
            )
        for need in self.needs:
            if need not in NEEDS:
                raise unknown_name(f"need of reward {self.name!r}:", need, NEEDS)
        if self.score is None and self.statistic is None:
            raise ValueError(f"reward {self.name!r} needs a score or a statistic")
        if self.name == "combined":
            raise ValueError("'combined' is the name of the weighted mean of all rewards")


def _of_nuclei(values: Callable[[Observation], torch.Tensor]) -> Callable[[Observation], torch.Tensor]:
    """NaN for images without a nucleus."""
    return lambda seen: values(seen).masked_fill(seen.measurements["nucleus_count"] == 0, torch.nan)


def _of_cells(values: Callable[[Observation], torch.Tensor]) -> Callable[[Observation], torch.Tensor]:
    """NaN for images without a cell."""
    return lambda seen: values(seen).masked_fill(seen.measurements["cytoplasm_count"] == 0, torch.nan)


REWARDS: tuple[Reward, ...] = (
    Reward(
        "moa",
        needs=("classifier", "masks"),
        # A classifier has an opinion on everything, an empty image too.
        score=lambda seen: seen.probability.masked_fill(seen.measurements["nucleus_count"] == 0, 0.0),
        statistic=_of_nuclei(lambda seen: seen.logit),
    ),
    Reward("containment", needs=("masks",), score=lambda seen: seen.measurements["containment"]),
    Reward("roundness", ("masks",), statistic=_of_nuclei(lambda seen: seen.measurements["roundness"])),
    Reward("nucleus_size", ("masks",), statistic=_of_nuclei(lambda seen: seen.measurements["nucleus_size"])),
    Reward("cytoplasm_size", ("masks",), statistic=_of_cells(lambda seen: seen.measurements["cytoplasm_size"])),
    Reward("nucleus_count", ("masks",), statistic=_of_nuclei(lambda seen: seen.measurements["nucleus_count"])),
    Reward("cytoplasm_count", ("masks",), statistic=_of_cells(lambda seen: seen.measurements["cytoplasm_count"])),
)
"""The seven rewards of CellFluxRL."""

REWARD_NAMES = tuple(reward.name for reward in REWARDS)
_REGISTERED = {reward.name: reward for reward in REWARDS}


def register_reward(reward: Reward) -> Reward:
    """Make a reward known by its name, so that a suite that uses it can be saved and loaded.

    A package that is installed beside this one can do without: an entry point of the group `cellfluxrl.rewards`, named
    as the reward and pointing to it, is found by itself.

    Raises:
        ValueError: If another reward has the name.
    """
    if _REGISTERED.get(reward.name, reward) != reward:
        raise ValueError(f"there is another reward {reward.name!r} already: {_REGISTERED[reward.name]!r}")
    _REGISTERED[reward.name] = reward
    return reward


def find_reward(name: str) -> Reward:
    """The reward of a name.

    Raises:
        ValueError: If there is none, neither registered nor among the entry points.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in plugins:
        raise unknown_name("reward", name, [*_REGISTERED, *plugins])
    return register_reward(plugins[name].load())
