"""The KL weight that keeps the trained policy at a distance from the base."""

from __future__ import annotations

import math

PROPORTIONAL, INTEGRAL = 2.0, 0.1
LARGEST_ERROR = 2.0
BOUNDS = (1e-4, 1e4)


def controlled_kl_weight(level: float, distance: float, target: float) -> tuple[float, float]:
    """Raise the KL weight where the policy is too far from the base, and lower it where it is too near.

    A proportional-integral controller in log space: with e = clip(log(distance / target), -2, 2), the level moves by
    log l <- log l + 0.1 e, within 1e-4..1e4, and the weight is l exp(2 e). Integral action alone, as the controller of
    Ziegler et al. (2019, https://arxiv.org/abs/1909.08593) has it, swings around the target, because the policy
    follows the weight only after many iterations.

    Args:
        level: The weight at which the distance would be right, as far as is known.
        distance: The distance to the base that was measured.
        target: The distance that is asked for.

    Returns:
        The new level, and the weight.

    Example:
        >>> level, weight = controlled_kl_weight(0.1, distance=0.02, target=0.01)
        >>> round(level, 4), round(weight, 4)
        (0.1072, 0.4287)
    """
    error = math.log(distance / target) if distance > 0 else -LARGEST_ERROR
    error = min(max(error, -LARGEST_ERROR), LARGEST_ERROR)
    level = min(max(level * math.exp(INTEGRAL * error), BOUNDS[0]), BOUNDS[1])
    return level, level * math.exp(PROPORTIONAL * error)
