"""What a reward is, and how one is found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch

from cellfluxrl.errors import unknown_name
from cellfluxrl.rewards.observation import Observation

ENTRY_POINTS = "cellfluxrl.rewards"
SHIPPED = "cellfluxrl.rewards.biological"  # registers the seven when it is imported


@dataclass(frozen=True)
class Reward:
    """A reward: higher is better.

    It has a `score`, which is the reward itself, or a `statistic`, whose distribution in real cells of the MoA is the
    goal: the suite fits its mean and spread, and turns it into a reward by the `"deviation"` or the `"energy"` form. A
    reward with both has its score in the first form and its statistic in the second.

    Both are functions of an [`Observation`]: the images, and what is computed when a reward looks at it.

    Args:
        name: What it is called in the scores of a suite.
        needs: No longer needed, and no longer looked at: code written for an earlier version may pass it.
        score: From an [`Observation`] of N images to N finite numbers.
        statistic: From an [`Observation`] of N images to N numbers; NaN where an image has nothing to measure, such as
            the roundness of no nucleus. Such an image is never rewarded.
        title: What it is called in pictures and in the app; by default the name in words.
        unit: Of the statistic.
        description: What it is, in the card of a suite.

    Raises:
        ValueError: If it has neither score nor statistic, or a name that cannot be used.

    Example:
        >>> dna = Reward("dna", statistic=lambda seen: seen.images[:, 0].mean((1, 2)), title="DNA brightness")
        >>> few = Reward("few_nuclei", score=lambda seen: -seen.measurements["nucleus_count"])
        >>> few.title
        'Few nuclei'
    """

    name: str
    needs: Sequence[str] = ()
    score: Callable[[Observation], torch.Tensor] | None = None
    statistic: Callable[[Observation], torch.Tensor] | None = None
    title: str = ""
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.score is None and self.statistic is None:
            raise ValueError(f"reward {self.name!r} needs a score or a statistic")
        if self.name == "combined":
            raise ValueError("'combined' is the name of the weighted mean of all rewards")
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " ").capitalize())
        if not self.description:
            kind = "a statistic, compared with real cells of the MoA" if self.statistic else "a custom score"
            object.__setattr__(self, "description", kind)


_REGISTERED: dict[str, Reward] = {}


def register_reward(reward: Reward) -> Reward:
    """Make a reward known by its name, so that a suite that uses it can be saved and loaded.

    Those of a plug-in ([`load_plugins`]), and of an installed package with an entry point for them in the group
    `cellfluxrl.rewards`, are registered without. A reward may be defined again by the same code, as when the cell of a
    notebook runs twice.

    Raises:
        ValueError: If another reward has the name.
    """
    importlib.import_module(SHIPPED)
    known = _REGISTERED.get(reward.name, reward)
    if known != reward and _origin(known) != _origin(reward):
        raise ValueError(f"there is another reward {reward.name!r} already: {known!r}")
    _REGISTERED[reward.name] = reward
    return reward


def _origin(reward: Reward) -> list[tuple[str, str]]:
    functions = (reward.score, reward.statistic)
    return [(getattr(f, "__module__", ""), getattr(f, "__qualname__", repr(f))) for f in functions]


def find_reward(name: str) -> Reward:
    """The reward of a name.

    Raises:
        ValueError: If it is neither registered nor among the entry points.
    """
    importlib.import_module(SHIPPED)
    if name in _REGISTERED:
        return _REGISTERED[name]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = unknown_name("reward", name, [*_REGISTERED, *installed])
        raise ValueError(
            f"{known}. A custom reward is known once its module is named as a plug-in (--plugins my_rewards) or "
            f"imported and registered, or if an installed package has an entry point {ENTRY_POINTS!r} for it"
        )
    return register_reward(installed[name].load())
