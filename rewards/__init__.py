"""The biological rewards: segmentation, measurements, the seven rewards and the suite."""

from typing import TYPE_CHECKING

from cellfluxrl.lazy import lazy_names

if TYPE_CHECKING:  # what editors and type checkers see of the names below
    from cellfluxrl.rewards.biological import REWARDS as REWARDS
    from cellfluxrl.rewards.observation import Observation as Observation
    from cellfluxrl.rewards.suite import RewardSuite as RewardSuite
    from cellfluxrl.rewards.terms import Reward as Reward
    from cellfluxrl.rewards.terms import register_reward as register_reward

__all__ = ["REWARDS", "Observation", "Reward", "RewardSuite", "register_reward"]

_PUBLIC = {
    "REWARDS": "cellfluxrl.rewards.biological",
    "Observation": "cellfluxrl.rewards.observation",
    "Reward": "cellfluxrl.rewards.terms",
    "RewardSuite": "cellfluxrl.rewards.suite",
    "register_reward": "cellfluxrl.rewards.terms",
}

if not TYPE_CHECKING:  # to a type checker, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
