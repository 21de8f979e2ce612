"""The biological rewards: segmentation, measurements, the seven rewards and the suite."""

from cellfluxrl.lazy import lazy_names

_PUBLIC = {
    "REWARDS": "cellfluxrl.rewards.biological",
    "Observation": "cellfluxrl.rewards.observation",
    "Reward": "cellfluxrl.rewards.terms",
    "RewardSuite": "cellfluxrl.rewards.suite",
    "register_reward": "cellfluxrl.rewards.terms",
}

__all__ = sorted(_PUBLIC)

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
