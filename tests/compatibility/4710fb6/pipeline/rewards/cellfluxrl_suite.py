"""Needs the package cellfluxrl."""

from cellfluxrl.rewards.suite import RewardSuite  # noqa: F401
