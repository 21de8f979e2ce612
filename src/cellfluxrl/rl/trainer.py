"""Post-training of a velocity model by rewards: rollouts, scores, regression on the forward process.

The trainer sees tensors, a velocity model, conditions, a coupling and a reward; it knows nothing of images.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator

from cellfluxrl.checkpoints import frozen_copy, optimizer_tensors, restore_optimizer, update_average
from cellfluxrl.flow.integration import integrate
from cellfluxrl.flow.paths import PathSample
from cellfluxrl.rl.advantages import Advantages, compute_advantages
from cellfluxrl.rl.kl import controlled_kl_weight
from cellfluxrl.rl.objectives import OBJECTIVES, Batch, Selection
from cellfluxrl.rl.settings import RLSettings
from cellfluxrl.rl.summary import summarize_advantages, summarize_rewards
from cellfluxrl.rl.task import Starts, Task
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.seeding import seeded_generator

NUM_PROBES = 64
# Rollouts whose root mean square difference is below this differ by rounding alone.
LEAST_SPREAD = 1e-5
# Share of an iteration's rewards that may be missing, and share from which the iteration teaches nothing.
FEW_MISSING, MANY_MISSING = 0.1, 0.5
# Iterations one after the other that may miss more than a few rewards, or all gradients, before the run stops.
PATIENCE = 5


@dataclass
class Progress:
    """What a resumed run needs to know besides the tensors.

    Args:
        updates: Steps of the optimiser.
        kl_weight: The KL weight of the next iteration.
        kl_level: What its controller knows ([`controlled_kl_weight`]).
        skipped_no_signal, skipped_non_finite: Steps that were not taken, because no group had variance or too few
            rewards were finite, and because the gradient was not finite.
        bad_rewards, bad_gradients: Iterations until now, one after the other, with many rewards, or all gradients,
            that are not finite.
    """

    updates: int = 0
    kl_weight: float = 0.0
    kl_level: float = 0.0
    skipped_no_signal: int = 0
    skipped_non_finite: int = 0
    bad_rewards: int = 0
    bad_gradients: int = 0


@dataclass(frozen=True)
class Rollouts:
    """The samples of an iteration, of all processes: what was measured in them, and what they started from."""

    samples: torch.Tensor
    measured: dict[str, torch.Tensor]
    starts: Starts


class RLTrainer:
    """Holds the trained policy, the `old` policy that samples, the `reference`, their average, and the optimiser.

    Everything random is a function of (seed, iteration): [`state_tensors`], [`state`] and the iteration are all that a
    resumed run needs to be the same run, on as many processes.

    Args:
        model: The velocity model; trained in place, as far as its parameters require a gradient. Dropout is switched
            off, because old, reference and trained policy would otherwise differ by their masks.
        scheduler: The solver of the rollouts.
        task: Draws, pairs and scores.
        settings: The algorithm's settings, of the iterations that are not given others.
        accelerator: Processes, device and precision.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        scheduler: CellFluxFlowMatchScheduler,
        task: Task,
        settings: RLSettings,
        accelerator: Accelerator,
    ):
        self.task, self.settings, self.accelerator, self.scheduler = task, settings, accelerator, scheduler
        self.model = model.to(accelerator.device).eval()
        # Copied before the accelerator wraps the forward pass of the trained one.
        self.old, self.reference, self.average = (frozen_copy(self.model) for _ in range(3))
        self._unwrapped_forward = self.model.forward
        optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.policy, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.iteration = 0
        self.rollouts: Rollouts | None = None  # of the last iteration
        self.progress = Progress(kl_weight=settings.kl_weight, kl_level=settings.kl_weight)
        probes = task.draw_probes(NUM_PROBES, seeded_generator(settings.seed, "probes"))
        self._probes = tuple(x.to(accelerator.device) for x in (probes.noised, probes.time, probes.condition))
        with torch.no_grad():
            self._reference_at_probes = self.reference(*self._probes, return_dict=False)[0]

    def step(self, settings: RLSettings | None = None, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Run one iteration and return what is worth logging.

        Args:
            settings: Of this iteration, in place of the trainer's.
            weights: Of the rewards in this iteration, in place of the task's.
        """
        settings = settings or self.settings
        generator = seeded_generator(settings.seed, "rollouts", self.iteration)
        if settings.kl_target == 0:
            self.progress.kl_weight = self.progress.kl_level = settings.kl_weight

        # 1. Rollouts of the old policy
        started = clock.perf_counter()
        starts = self.task.draw(generator)
        rollouts, pending, measuring = self._sample(starts, settings)
        sampled = clock.perf_counter()

        # 2. Scores of all rollouts, the same on every process, and advantages over the group
        measured = self._gathered(pending)
        scores = self.task.score(measured, starts.label, weights)
        rewards = {name: value.cpu() for name, value in scores.items()}
        advantages = self._advantages(rewards, starts.group, generator, settings, weights)
        scored = clock.perf_counter()
        self.rollouts = Rollouts(rollouts, measured, starts)
        log = summarize_rewards(rewards) | summarize_advantages(advantages)

        # 3. Regression on the forward process of the selected rollouts; without any signal it would only move dust
        if self._enough_rewards(advantages) and advantages.dead_groups < 1:
            selection = OBJECTIVES[settings.objective].select(advantages, starts.group, settings)
            log |= self._update(rollouts, starts, selection, settings)
        else:
            self.progress.skipped_no_signal += settings.inner_steps

        # 4. The old policy and the average follow; so does the KL weight
        decay = min(settings.old_decay_max, settings.old_decay_rate * self.iteration)
        update_average(self.old, self.model, decay)
        update_average(self.average, self.model, min(settings.ema_decay, (1 + self.iteration) / (10 + self.iteration)))
        distance = self.distance_to_base()
        log |= {"kl_weight": self.progress.kl_weight, "distance_to_base": distance}
        if settings.kl_target > 0:
            self.progress.kl_level, self.progress.kl_weight = controlled_kl_weight(
                self.progress.kl_level, distance, settings.kl_target
            )
        self.iteration += 1
        log |= {"old_decay": decay, "sample_growth": float(rollouts.abs().mean() / starts.source.abs().mean())}
        log |= {name: value for name, value in asdict(self.progress).items() if name.startswith("skipped")}
        log |= {
            "seconds/sampling": sampled - started - measuring,
            "seconds/rewards": scored - sampled + measuring,  # that nothing else was done in
        }
        return log | {"seconds/update": clock.perf_counter() - scored}

    def check(self) -> None:
        """Sample one group, and see that its rollouts differ.

        Raises:
            ValueError: If they do not, or there is only one: there would be no signal.
        """
        starts = self.task.draw(seeded_generator(self.settings.seed, "rollouts", self.iteration))
        self._share(len(starts.source))
        rows = (starts.group == starts.group[0]).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError("a group has one rollout: there is nothing to compare it with, so no signal")
        device = self.accelerator.device
        source, condition = starts.source[rows].to(device), starts.condition[rows].to(device)
        samples = integrate(self.old, self.scheduler, source, condition, self.settings.num_inference_steps)
        spread = float(samples.var(dim=0, correction=0).mean().sqrt())
        if not spread > LEAST_SPREAD:
            raise ValueError(
                f"the {len(rows)} rollouts of a group are the same up to {spread:.1e}: no signal. The base needs the "
                "source noise it was trained with, or a group several controls"
            )

    def failure(self) -> str | None:
        """Why the run should stop, if it should."""
        if self.progress.bad_rewards >= PATIENCE:
            return "too many rewards are not finite (non_finite_rewards in the log)"
        if self.progress.bad_gradients >= PATIENCE:
            return f"the gradient was not finite in {self.progress.bad_gradients} iterations one after the other"
        return None

    @torch.no_grad()
    def distance_to_base(self) -> float:
        """Mean squared difference of the velocity to the base's, at the probes, in full precision."""
        # The rounding of bfloat16 alone would be a distance.
        velocity = self._unwrapped_forward(*self._probes, return_dict=False)[0]
        return float((velocity - self._reference_at_probes).square().mean())

    def sample_reference(self, starts: Starts) -> torch.Tensor:
        """Samples of the base; every process computes all of them."""
        return torch.cat([samples for samples, _ in self._samples(self.reference, starts, self.settings)])

    def _sample(
        self, starts: Starts, settings: RLSettings
    ) -> tuple[torch.Tensor, list[Callable[[], dict[str, torch.Tensor]]], float]:
        """Every process samples its share of the rollouts, has them measured meanwhile, and gets all of them.

        Returns:
            The rollouts, what waits for the measurements, and the seconds that measuring held up the sampling.
        """
        rollouts, pending, measuring = [], [], 0.0
        for samples, part in self._samples(self.old, starts.take(self._share(len(starts))), settings):
            rollouts.append(samples)
            began = clock.perf_counter()
            pending.append(self.task.measure(samples, part))
            measuring += clock.perf_counter() - began
        return self._gather(torch.cat(rollouts)), pending, measuring

    def _samples(
        self, model: torch.nn.Module, starts: Starts, settings: RLSettings
    ) -> Iterator[tuple[torch.Tensor, Starts]]:
        """Sample from starts, part by part; each with what it started from."""
        device = self.accelerator.device
        for first in range(0, len(starts), settings.train_batch_size):
            part = starts.take(slice(first, first + settings.train_batch_size))
            source, condition = part.source.to(device), part.condition.to(device)
            with self.accelerator.autocast():
                samples = integrate(model, self.scheduler, source, condition, settings.num_inference_steps)
            yield samples, part

    def _gathered(self, pending: Sequence[Callable[[], dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
        """Wait for what this process measures; what all of them measured, in order."""
        parts = [result() for result in pending]
        own = {name: torch.cat([part[name] for part in parts]).to(self.accelerator.device) for name in parts[0]}
        return {name: self._gather(value) for name, value in own.items()}

    def _gather(self, value: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, in order."""
        return cast(torch.Tensor, self.accelerator.gather(value))

    def _advantages(
        self,
        rewards: Mapping[str, torch.Tensor],
        groups: torch.Tensor,
        generator: torch.Generator,
        settings: RLSettings,
        weights: Mapping[str, float] | None,
    ) -> Advantages:
        names = ["combined"]
        if settings.advantage_std == "per_reward":
            names = [name for name in rewards if name != "combined"]
            if weights is not None:
                names = [name for name in names if weights.get(name, 0) > 0]
        optimized = {name: rewards[name] for name in names}
        if settings.shuffle_rewards:
            order = torch.randperm(len(groups), generator=generator)
            optimized = {name: value[order] for name, value in optimized.items()}
        return compute_advantages(optimized, groups, weights, settings.advantage_std, settings.advantage_clip)

    def _enough_rewards(self, advantages: Advantages) -> bool:
        missing = 1 - float(advantages.finite.double().mean())
        self.progress.bad_rewards = self.progress.bad_rewards + 1 if missing > FEW_MISSING else 0
        if missing > MANY_MISSING:
            self.progress.bad_rewards = PATIENCE
        return missing <= MANY_MISSING

    def _update(
        self, rollouts: torch.Tensor, starts: Starts, selection: Selection, settings: RLSettings
    ) -> dict[str, float]:
        """Take the optimiser steps of one iteration; the log is of the last one."""
        log, skipped = {}, self.progress.skipped_non_finite
        for inner in range(settings.inner_steps):
            log = self._gradient(rollouts, starts, selection, settings, inner)
            log["learning_rate"] = self._optimizer_step(settings, finite=log["grad_norm"] < float("inf"))
        all_skipped = self.progress.skipped_non_finite - skipped == settings.inner_steps
        self.progress.bad_gradients = self.progress.bad_gradients + 1 if all_skipped else 0
        return {name: value for name, value in log.items() if abs(value) < float("inf")}

    def _gradient(
        self, rollouts: torch.Tensor, starts: Starts, selection: Selection, settings: RLSettings, inner: int
    ) -> dict[str, float]:
        device, objective = self.accelerator.device, OBJECTIVES[settings.objective]
        # Drawn for all rollouts, so that neither the selection nor the number of processes changes what is drawn.
        generator = seeded_generator(settings.seed, "update", self.iteration, inner)
        source = self.task.couple(starts.label, generator)
        time = self.task.draw_times(len(starts.label), generator)
        rows, draws, preference, share = (x.to(device) for x in self._shared_out(selection, settings.rows_together))

        parts = [slice(i, i + settings.train_batch_size) for i in range(0, len(rows), settings.train_batch_size)]
        sums = torch.zeros(3, device=device)
        for part in parts:
            drawn = draws[part].cpu()
            path = PathSample(source[drawn].to(device), rollouts[rows[part]], time[drawn].to(device))
            inputs = (path.x_t, path.t, starts.condition[rows[part].cpu()].to(device))
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.policy):
                with self.accelerator.autocast():
                    velocity = self.policy(*inputs, return_dict=False)[0].float()
                    with torch.no_grad():
                        old_velocity = self.old(*inputs, return_dict=False)[0].float()
                        reference_velocity = self.reference(*inputs, return_dict=False)[0].float()
                batch = Batch(velocity, old_velocity, reference_velocity, path, preference[part])
                loss = objective.loss(batch, settings)
                kl = (velocity - reference_velocity).square().flatten(1).mean(dim=1)
                total = (share[part] * (loss + self.progress.kl_weight * kl)).sum()
                # The processes' gradients are averaged, and their shares are of one whole.
                self.accelerator.backward(self.accelerator.num_processes * total)
            to_old = (velocity - old_velocity).square().flatten(1).mean(dim=1)
            sums += torch.stack([(share[part] * value.detach()).sum() for value in (loss, kl, to_old)])
        grad_norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        sums = cast(torch.Tensor, self.accelerator.reduce(sums, "sum")).tolist()
        return dict(zip(("loss", "kl", "distance_to_old"), sums, strict=True)) | {
            "grad_norm": float(cast(torch.Tensor, grad_norm))
        }

    def _optimizer_step(self, settings: RLSettings, *, finite: bool) -> float:
        """Step, unless the gradient is not finite; returns the learning rate."""
        # Adam's first steps move every weight by the whole rate, however small its gradient.
        warmup = min(1.0, (self.progress.updates + 1) / max(settings.lr_warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup
        if finite:
            self.progress.updates += 1
        else:
            self.progress.skipped_non_finite += 1
        if finite or self.accelerator.scaler is not None:  # a scaler skips the step itself, and lowers its scale
            self.optimizer.step()
        self.optimizer.zero_grad()
        return settings.learning_rate * warmup

    def _share(self, total: int) -> slice:
        processes = self.accelerator.num_processes
        if total % processes:
            raise ValueError(f"{total} rollouts an iteration cannot be shared by {processes} processes evenly")
        size = total // processes
        return slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)

    def _shared_out(self, selection: Selection, rows_together: int) -> tuple[torch.Tensor, ...]:
        """This process' rows, draws and preferences, and the share of each row in the loss, which sum to 1 in all."""
        count = len(selection.rows)
        share = torch.full((count,), 1 / count)
        # Where the rows cannot be shared evenly, the first ones are repeated and count nothing.
        missing = -count % (rows_together * self.accelerator.num_processes)
        filler = torch.arange(missing) % count
        columns = (selection.rows, selection.draws, selection.preference, share)
        columns = [torch.cat([column, column[filler]]) for column in columns]
        columns[3][count:] = 0
        mine = self._share(count + missing)
        return tuple(column[mine] for column in columns)

    def state_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors that [`load_state`] needs, in named groups."""
        return {
            "model": self.model.state_dict(),
            "old": self.old.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }

    def state(self) -> dict[str, Any]:
        """The rest that [`load_state`] needs, as JSON can hold it."""
        scaler = self.accelerator.scaler
        return {"progress": asdict(self.progress), "scaler": scaler.state_dict() if scaler else None}

    def load_state(
        self, tensors: Mapping[str, dict[str, torch.Tensor]], state: Mapping[str, Any], iteration: int
    ) -> None:
        """Go on from where [`state_tensors`] and [`state`] were called."""
        self.model.load_state_dict(tensors["model"])
        self.old.load_state_dict(tensors["old"])
        self.average.load_state_dict(tensors["average"])
        restore_optimizer(self.optimizer, tensors["optimizer"])
        self.progress = Progress(**state["progress"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.iteration = iteration
