from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rewards.terms import Reward

__all__ = ["Reward", "RewardSuite"]
