"""The settings of the algorithm, whatever is post-trained."""

from __future__ import annotations

from dataclasses import dataclass

from cellfluxrl.errors import unknown_name
from cellfluxrl.rl.objectives import OBJECTIVES, ObjectiveSettings


@dataclass(frozen=True)
class RLSettings(ObjectiveSettings):
    """The settings of the algorithm; see `training/rl.py --help` for each."""

    objective: str = "nft"
    num_inference_steps: int = 4
    inner_steps: int = 2
    learning_rate: float = 1e-4
    lr_warmup_steps: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    kl_weight: float = 0.1
    kl_target: float = 0.0
    advantage_std: str = "global"
    advantage_clip: float = 2.0
    old_decay_rate: float = 0.005
    old_decay_max: float = 0.7
    ema_decay: float = 0.95
    train_batch_size: int = 32
    shuffle_rewards: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown_name("objective", self.objective, OBJECTIVES)
        for name in ("mixing_weight", "temperature", "dpo_beta", "num_inference_steps", "inner_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("kl_weight", "kl_target", "learning_rate", "lr_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.kl_target > 0 and self.kl_weight == 0:
            raise ValueError("kl_target adapts the KL weight from kl_weight on, which must be positive")
        together = OBJECTIVES[self.objective].rows_together
        if self.train_batch_size < 1 or self.train_batch_size % together:
            raise ValueError(
                f"train_batch_size must be a positive multiple of {together} for objective {self.objective!r}, "
                f"got {self.train_batch_size}"
            )
