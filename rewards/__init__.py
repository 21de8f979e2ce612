from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rewards.terms import Observation, Reward, register_reward

__all__ = ["Observation", "Reward", "RewardSuite", "register_reward"]
