"""Cells as a task of post-training: what rollouts start from, are paired with, and are scored by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cellfluxrl.data.pairs import PairSource
from cellfluxrl.errors import unknown_name
from cellfluxrl.flow.paths import PathSample, draw_times
from cellfluxrl.rewards.context import Context
from cellfluxrl.rewards.partial import PartlyMeasured, measure_finite, score_partly
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rewards.workers import RewardWorkers
from cellfluxrl.rl.task import Probes, Starts
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.training.options import RLArguments


class CellTask:
    """Control cells of a plate in, treated cells out: what the trainer draws from, pairs with and is scored by.

    Args:
        pairs: The training cells; rollouts start from their controls.
        conditions: `(K, D)`; encoded compound of each row of `pairs.conditions`.
        suite: Scores the rollouts.
        scheduler: Draws the source noise, and has the discrete times.
        args: Sizes of an iteration and the form of the reward.
        workers: Processes that measure the rollouts; without, this one does.
    """

    def __init__(
        self,
        pairs: PairSource,
        conditions: torch.Tensor,
        suite: RewardSuite,
        scheduler: CellFluxFlowMatchScheduler,
        args: RLArguments,
        workers: RewardWorkers | None = None,
    ):
        self.pairs, self.conditions, self.suite, self.scheduler, self.args = pairs, conditions, suite, scheduler, args
        self.workers = workers
        self.moas = pairs.conditions["moa"].tolist()
        scheduler.set_timesteps(args.num_inference_steps)
        self.discrete_times = scheduler.timesteps.unique()

    def draw(self, generator: torch.Generator) -> Starts:
        """Some conditions, for each some controls, for each some rollouts with noise of their own."""
        args = self.args
        drawn = self.pairs.draw_conditions(args.conditions_per_step, generator)
        label = drawn.repeat_interleave(args.controls_per_condition)
        control = self.pairs.draw_controls(label, generator).repeat_interleave(args.rollouts_per_control, dim=0)
        group = torch.arange(len(label)).repeat_interleave(args.rollouts_per_control)
        label = label.repeat_interleave(args.rollouts_per_control)
        source = control + self.scheduler.sample_source_noise(tuple(control.shape), generator)
        if args.group_by == "condition":
            group = label
        return Starts(source, self.conditions[label], group, label, context={"control": control})

    def couple(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A control of the same plate, with noise."""
        # A fresh control and fresh noise, never the rollout's own start: the coupling of base training is independent.
        control = self.pairs.draw_controls(labels, generator)
        return control + self.scheduler.sample_source_noise(tuple(control.shape), generator)

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """As in pretraining, or only at the times of the solver."""
        if self.args.time_sampling == "discrete":
            return self.discrete_times[torch.randint(len(self.discrete_times), (count,), generator=generator)]
        return draw_times(count, generator, self.args.time_logit_mean, self.args.time_logit_std)

    def draw_probes(self, count: int, generator: torch.Generator) -> Probes:
        """Points between controls and real treated cells."""
        pairs = self.pairs.draw(count, generator)
        source = pairs.control + self.scheduler.sample_source_noise(tuple(pairs.control.shape), generator)
        time = draw_times(count, generator, self.args.time_logit_mean, self.args.time_logit_std)
        return Probes(PathSample(source, pairs.treated, time).x_t, time, self.conditions[pairs.condition])

    def measure(self, samples: torch.Tensor, starts: Starts) -> Callable[[], dict[str, torch.Tensor]]:
        """What the rewards need to know of images; in worker processes, if there are any."""
        # Infinity would become a pixel like any other.
        images = samples.masked_fill(~samples.isfinite(), torch.nan).clamp(-1, 1)
        moa, context = self.moas_of(starts.label), self.context_of(starts.label, starts.context["control"])
        if self.workers is None:
            seen = measure_finite(self.suite, images, moa, context)
            return seen.tensors
        pending = self.workers.submit(images, moa, context)
        return lambda: pending.result().tensors()

    def score(
        self, measured: dict[str, torch.Tensor], labels: torch.Tensor, weights: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """The rewards in the form of `reward_form`."""
        seen = PartlyMeasured.from_tensors(measured)
        return score_partly(self.suite, seen, self.moas_of(labels), self.args.reward_form, weights=weights)

    def moas_of(self, labels: torch.Tensor) -> list[str]:
        """The MoA of each label, which is a row of `pairs.conditions`."""
        return [self.moas[label] for label in labels.tolist()]

    def context_of(self, labels: torch.Tensor, control: Any) -> Context:
        """What custom rewards may look at: the control, and the compound, concentration and plate of each label."""
        rows = self.pairs.conditions.iloc[labels.tolist()]
        columns = {name: rows[name].to_numpy() for name in ("compound", "concentration", "plate")}
        return Context.of(len(labels), control=control, **columns)


def parse_reward_weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """Read weights of rewards; those that are not named weigh 0.

    Raises:
        ValueError: For a name that is not among `names`, a weight that is not a number from 0 on, or all of them 0.

    Example:
        >>> parse_reward_weights("moa=2,roundness=1", ["moa", "containment", "roundness"])
        {'moa': 2.0, 'containment': 0.0, 'roundness': 1.0}
    """
    weights = dict.fromkeys(names, 0.0)
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in weights:
            raise unknown_name("reward in reward_weights", name, names)
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"reward_weights must be like 'moa=2,roundness=1', got {part!r}") from None
        if not 0 <= weights[name] < math.inf:
            raise ValueError(f"the weight of a reward must be a finite number from 0 on, got {part!r}")
    if not any(weights.values()):
        raise ValueError(f"reward_weights {text!r} leave no reward")
    return weights
