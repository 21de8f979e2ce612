"""Post-training of a velocity model by rewards: rollouts, scores, regression on the forward process.

The trainer sees tensors, a velocity model, conditions, a coupling and a reward; it knows nothing of images.
"""

from __future__ import annotations

import time as clock
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from cellfluxrl.averaging import frozen_copy, update_average
from cellfluxrl.checkpoints import optimizer_tensors, restore_optimizer
from cellfluxrl.rl.nft import nft_loss, preferences
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.seeding import seeded_generator


@dataclass(frozen=True)
class Starts:
    """
    What N rollouts start from.

    Args:
        source (`torch.Tensor` of shape `(N, ...)`): x_0 of each, noise included.
        condition (`torch.Tensor` of shape `(N, D)`): What the velocity model is conditioned on.
        group (`torch.Tensor` of shape `(N,)`): Rollouts with the same integer share a baseline.
        label (`torch.Tensor` of shape `(N,)`): What the task needs to know to pair and score each rollout.
    """

    source: torch.Tensor
    condition: torch.Tensor
    group: torch.Tensor
    label: torch.Tensor

    def select(self, rows: slice, device: torch.device) -> Starts:
        return Starts(**{name: value[rows].to(device) for name, value in vars(self).items()})


class Task(Protocol):
    """What is to be post-trained for."""

    def draw(self, generator: torch.Generator) -> Starts:
        """Draw the starts of one iteration, for all processes together."""
        ...

    def couple(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a fresh source for each rollout, as base training pairs sources with targets; `(N, ...)`."""
        ...

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw training times, as base training does; `(N,)`."""
        ...

    def reward(self, samples: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Score all rollouts of an iteration; `"combined"` is what is optimised. Each of shape `(N,)`."""
        ...


@dataclass(frozen=True)
class NFTSettings:
    """The settings of the algorithm; see `training/rl.py --help` for each."""

    num_inference_steps: int = 4
    inner_steps: int = 2
    mixing_weight: float = 1.0
    kl_weight: float = 0.1
    advantage_clip: float = 2.0
    old_decay_rate: float = 0.005
    old_decay_max: float = 0.7
    ema_decay: float = 0.95
    max_grad_norm: float = 1.0
    train_batch_size: int = 32
    shuffle_rewards: bool = False
    seed: int = 0


@torch.no_grad()
def integrate(
    model: torch.nn.Module,
    scheduler: CellFluxFlowMatchScheduler,
    source: torch.Tensor,
    condition: torch.Tensor,
    num_inference_steps: int,
) -> torch.Tensor:
    """Move `source` along the model's velocity from t = 0 to t = 1, without guidance."""
    scheduler.set_timesteps(num_inference_steps, device=source.device)
    sample = source
    for t in scheduler.timesteps:
        velocity = model(sample, t, condition, return_dict=False)[0].float()
        sample = scheduler.step(velocity, t, sample, return_dict=False)[0]
    return sample


class NFTTrainer:
    """
    Holds the trained policy, the `old` policy that samples, the `reference`, their average, and the optimiser.

    Everything random is a function of (seed, iteration): [`state_tensors`] and the iteration are all that a resumed
    run needs to be the same run.

    Args:
        model (`torch.nn.Module`): The velocity model; trained in place. Dropout is switched off, because old,
            reference and trained policy would otherwise differ by their masks.
        scheduler ([`CellFluxFlowMatchScheduler`]): The solver of the rollouts.
        optimizer (`torch.optim.Optimizer`): Of the model's parameters.
        task ([`Task`]): Draws, pairs and scores.
        settings ([`NFTSettings`]): The algorithm's settings.
        accelerator (`accelerate.Accelerator`): Processes, device and precision.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        scheduler: CellFluxFlowMatchScheduler,
        optimizer: torch.optim.Optimizer,
        task: Task,
        settings: NFTSettings,
        accelerator: Accelerator,
    ):
        self.task, self.settings, self.accelerator, self.scheduler = task, settings, accelerator, scheduler
        self.model = model.to(accelerator.device).eval()
        # Copied before the accelerator wraps the forward pass of the trained one.
        self.old, self.reference, self.average = (frozen_copy(self.model) for _ in range(3))
        self.policy, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.iteration = 0

    def step(self) -> dict[str, float]:
        """Run one iteration and return what is worth logging."""
        settings, device = self.settings, self.accelerator.device
        generator = seeded_generator(settings.seed, "rollouts", self.iteration)

        # 1. Rollouts of the old policy: every process draws all starts and samples its share
        started = clock.perf_counter()
        starts = self.task.draw(generator)
        rows = self._share(len(starts.source))
        own = starts.select(rows, device)
        with self.accelerator.autocast():
            rollouts = torch.cat(
                [
                    integrate(self.old, self.scheduler, source, condition, settings.num_inference_steps)
                    for source, condition in zip(
                        own.source.split(settings.train_batch_size),
                        own.condition.split(settings.train_batch_size),
                        strict=True,
                    )
                ]
            )
        sampled = clock.perf_counter()

        # 2. Scores of all rollouts, the same on every process; r in [0, 1]
        everything = self.accelerator.gather(rollouts)
        rewards = self.task.reward(everything, starts.label)
        combined = rewards["combined"].cpu()
        if settings.shuffle_rewards:
            combined = combined[torch.randperm(len(combined), generator=generator)]
        preference = preferences(combined, starts.group, settings.advantage_clip)
        scored = clock.perf_counter()

        # 3. Regression on the forward process; a step without any signal would only move dust
        log = {f"reward/{name}": float(value.mean()) for name, value in rewards.items()}
        log |= {"reward/std": float(combined.std()), "dead_groups": preference.dead_groups}
        log |= {"r/min": float(preference.r.min()), "r/std": float(preference.r.std())}
        if preference.dead_groups < 1:
            for inner in range(settings.inner_steps):
                log |= self._update(rollouts, starts, rows, preference.r[rows].to(device), inner)

        # 4. The old policy and the average follow
        decay = min(settings.old_decay_max, settings.old_decay_rate * self.iteration)
        update_average(self.old, self.model, decay)
        update_average(self.average, self.model, min(settings.ema_decay, (1 + self.iteration) / (10 + self.iteration)))
        self.iteration += 1
        log |= {"old_decay": decay, "sample_growth": float(everything.abs().mean() / starts.source.abs().mean())}
        log |= {"seconds/sampling": sampled - started, "seconds/rewards": scored - sampled}
        return log | {"seconds/update": clock.perf_counter() - scored}

    def _update(
        self, rollouts: torch.Tensor, starts: Starts, rows: slice, r: torch.Tensor, inner: int
    ) -> dict[str, float]:
        settings, device = self.settings, self.accelerator.device
        generator = seeded_generator(settings.seed, "update", self.iteration, inner)
        # Drawn for all processes together and then shared out, so that their number does not change what is drawn.
        source = self.task.couple(starts.label, generator)[rows].to(device)
        time = self.task.draw_times(len(starts.label), generator)[rows].to(device)
        condition = starts.condition[rows].to(device)
        t = time.view(-1, *[1] * (rollouts.ndim - 1))
        noised = (1 - t) * source + t * rollouts

        parts = range(0, len(rollouts), settings.train_batch_size)
        sums = dict.fromkeys(("loss", "kl", "distance_to_old"), 0.0)
        for number, first in enumerate(parts):
            part = slice(first, first + settings.train_batch_size)
            inputs = (noised[part], time[part], condition[part])
            weight = len(time[part]) / len(rollouts)
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                with self.accelerator.autocast():
                    velocity = self.policy(*inputs, return_dict=False)[0].float()
                    with torch.no_grad():
                        old_velocity = self.old(*inputs, return_dict=False)[0].float()
                        reference_velocity = self.reference(*inputs, return_dict=False)[0].float()
                objective = nft_loss(
                    velocity, old_velocity, noised[part], time[part], rollouts[part], r[part], settings.mixing_weight
                ).mean()
                kl = (velocity - reference_velocity).square().mean()
                self.accelerator.backward(weight * (objective + settings.kl_weight * kl))
            sums["loss"] += weight * float(objective.detach())
            sums["kl"] += weight * float(kl.detach())
            sums["distance_to_old"] += weight * float((velocity.detach() - old_velocity).square().mean())
        grad_norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums | {"grad_norm": float(grad_norm)}

    def _share(self, total: int) -> slice:
        processes = self.accelerator.num_processes
        if total % processes:
            raise ValueError(f"{total} rollouts an iteration cannot be shared by {processes} processes evenly")
        size = total // processes
        return slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)

    def state_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that [`load_state`] needs, as named groups of tensors."""
        return {
            "model": self.model.state_dict(),
            "old": self.old.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }

    def load_state(self, tensors: dict[str, dict[str, torch.Tensor]], iteration: int) -> None:
        """Go on from where [`state_tensors`] was called."""
        self.model.load_state_dict(tensors["model"])
        self.old.load_state_dict(tensors["old"])
        self.average.load_state_dict(tensors["average"])
        restore_optimizer(self.optimizer, tensors["optimizer"])
        self.iteration = iteration
