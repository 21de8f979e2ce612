"""What is watched while a policy is post-trained on cells: rewards against real cells, diversity, pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from cellfluxrl.rewards.partial import PartlyMeasured, measure_finite, scaled_statistics, score_partly
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rl.monitor import Moments, Monitor, moments, squared_deviations
from cellfluxrl.rl.trainer import RLTrainer
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training.cell_task import CellTask
from cellfluxrl.training.samples import save_sample_grid

REAL_CELLS = 128  # of a mechanism
BASE_SAMPLES = 256
GRID_CONTROLS, GRID_ROWS = 8, 3


def real_moments(task: CellTask, suite: RewardSuite) -> dict[str, Moments]:
    """Mean and standard error of each reward, in the deviation form, over training cells of each condition's MoA.

    Returns:
        For each reward and `"combined"`, moments of shape `(K,)` for the K conditions.
    """
    pairs, names = task.pairs, list(dict.fromkeys(task.moas))
    mechanism = torch.tensor([names.index(name) for name in task.moas])
    of_cell = mechanism[pairs.treated_condition]
    generator = seeded_generator(task.args.seed, "real cells")
    rewards: dict[str, list[torch.Tensor]] = {}
    labels = []
    for k, name in enumerate(names):
        own = (of_cell == k).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)[:REAL_CELLS]]
        label = pairs.treated_condition[own]
        control = pairs.draw_controls(label, seeded_generator(task.args.seed, "controls of real cells", k))
        seen = measure_finite(suite, pairs.targets(own), [name] * len(own), task.context_of(label, control))
        for reward, values in score_partly(suite, seen, [name] * len(own)).items():
            rewards.setdefault(reward, []).append(values.cpu())
        labels.append(torch.full((len(own),), k))
    of_mechanism = {
        name: moments(torch.cat(values), torch.cat(labels), len(names)) for name, values in rewards.items()
    }
    return {name: Moments(m.mean[mechanism], m.standard_error[mechanism]) for name, m in of_mechanism.items()}


def base_diversity(trainer: RLTrainer, task: CellTask) -> Moments:
    """Moments of the base's squared deviations in each condition; NaN for those that a few draws leave out."""
    values, labels = [], []
    while sum(len(label) for label in labels) < BASE_SAMPLES:
        starts = task.draw(seeded_generator(task.args.seed, "base diversity", len(labels)))
        samples = trainer.sample_reference(starts)
        seen = PartlyMeasured.from_tensors(task.measure(samples, starts)())
        vectors = scaled_statistics(task.suite, seen, task.moas_of(starts.label)).cpu()
        # The controls and rollouts of one draw, as the monitor will see them.
        values.append(squared_deviations(vectors, starts.label))
        labels.append(starts.label)
    return moments(torch.cat(values), torch.cat(labels), len(task.moas))


def make_monitor(trainer: RLTrainer, task: CellTask, suite: RewardSuite) -> Monitor:
    """The monitor of a run, which knows the real cells and the base; `combined` is that of the suite's own weights."""
    return Monitor(real_moments(task, suite), base_diversity(trainer, task), task.args.diversity_share)


def watch(monitor: Monitor, trainer: RLTrainer, task: CellTask, suite: RewardSuite) -> list[str]:
    """Show the monitor the rollouts of the last iteration; returns its warnings."""
    rollouts, starts = trainer.rollouts, trainer.rollouts.starts
    seen, moa = PartlyMeasured.from_tensors(rollouts.measured), task.moas_of(starts.label)
    # Deviations, whatever is optimised: at real cells the energy form is the same for everything.
    rewards = {name: value.cpu() for name, value in score_partly(suite, seen, moa).items()}
    return monitor.update(rewards, starts.label, starts.group, scaled_statistics(suite, seen, moa).cpu())


def save_samples(trainer: RLTrainer, task: CellTask) -> None:
    """Write a grid of the averaged weights' samples of fixed controls and noise, samples/STEP.png."""
    generator = seeded_generator(task.args.seed, "pictures")
    label = task.pairs.draw_conditions(GRID_CONTROLS, generator)
    controls = task.pairs.draw_controls(label, generator, augment=False)
    noise = torch.stack(
        [task.scheduler.sample_source_noise(tuple(controls.shape), generator) for _ in range(GRID_ROWS)]
    )
    save_sample_grid(
        trainer.average,
        trainer.scheduler,
        controls,
        task.conditions[label],
        noise,
        Path(task.args.output_dir) / "samples" / f"{trainer.iteration:06d}.png",
        task.args.num_inference_steps,
    )
