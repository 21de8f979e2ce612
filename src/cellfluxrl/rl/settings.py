"""The settings of post-training, whatever is post-trained; importing them loads no torch, for a quick `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cellfluxrl.arguments import check_choices, option, option_group

_rollouts = option_group("rollouts")
_rewards = option_group("rewards")
_objective = option_group("objective")
_distance = option_group("distance to the base")
_optimiser = option_group("optimiser")
_policies = option_group("policies beside the trained one")


@dataclass
class RLSettings:
    """The settings of the algorithm; the help text of each says what it is.

    Raises:
        ValueError: If a setting is unknown or out of range.

    Example:
        >>> settings = RLSettings(objective="dpo", kl_weight=0.3)
        >>> settings.rows_together
        2
    """

    num_inference_steps: int = _rollouts(6, "steps of the solver")

    advantage_std: Literal["global", "group", "per_reward"] = _rewards(
        "global", "what advantages are divided by: one standard deviation, each group's, or each reward's"
    )
    advantage_clip: float = _rewards(2.0, "advantages of this many standard deviations give r = 0 or 1")
    shuffle_rewards: bool = _rewards(False, "give each rollout the reward of a random other one: a control experiment")

    objective: Literal["nft", "rwr", "best_of_n", "dpo"] = _objective(
        "nft",
        "DiffusionNFT, reward-weighted regression, best-of-N distillation, or preference of the best to the worst",
    )
    mixing_weight: float = _objective(
        1.0, "of the trained policy in the implicit positive and negative ones (beta of nft)"
    )
    temperature: float = _objective(1.0, "of rwr, in standard deviations of the reward")
    dpo_beta: float = _objective(100.0, "of dpo: how strongly preferences are held to the pretrained velocity")

    kl_weight: float = _distance(
        0.1, "of the squared distance to the pretrained velocity; with --kl_target the first one"
    )
    kl_target: float = _distance(0.0, "adapt the KL weight to keep distance_to_base of the log here; 0: do not")

    inner_steps: int = _optimiser(2, "optimiser steps an iteration, each with fresh sources and times")
    train_batch_size: int = _optimiser(32, "rollouts that go through the network at a time, in each process")
    learning_rate: float = _optimiser(1e-4, "of AdamW, after the warm-up")
    lr_warmup_steps: int = _optimiser(10, "optimiser steps over which the rate rises from zero")
    weight_decay: float = _optimiser(0.0, "of AdamW")
    max_grad_norm: float = _optimiser(1.0, "gradients are clipped to this norm")

    old_decay_rate: float = _policies(0.005, "the decay of the sampling policy grows by this much an iteration ...")
    old_decay_max: float = _policies(0.7, "... up to this")
    ema_decay: float = _policies(0.95, "decay of the averaged weights, which are what is saved")

    seed: int = option(0, "seed of everything that is random", group="run")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("mixing_weight", "temperature", "dpo_beta", "num_inference_steps", "inner_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("kl_weight", "kl_target", "learning_rate", "lr_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.kl_target > 0 and self.kl_weight == 0:
            raise ValueError("kl_target adapts the KL weight from kl_weight on, which must be positive")
        if self.train_batch_size < 1 or self.train_batch_size % self.rows_together:
            raise ValueError(
                f"train_batch_size must be a positive multiple of {self.rows_together} for objective "
                f"{self.objective!r}, got {self.train_batch_size}"
            )

    @property
    def rows_together(self) -> int:
        """Rows of a batch that belong together: the two rollouts of a preference."""
        return 2 if self.objective == "dpo" else 1
