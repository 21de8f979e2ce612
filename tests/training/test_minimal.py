"""The algorithm in one file: it improves its reward, and its updates are those of the trainer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cellfluxrl import CellFluxFlowMatchScheduler
from cellfluxrl.checkpoints import frozen_copy
from cellfluxrl.flow.integration import integrate
from cellfluxrl.flow.paths import PathSample, flow_matching_loss
from cellfluxrl.rl.settings import RLSettings
from cellfluxrl.rl.task import Probes, Starts
from cellfluxrl.rl.trainer import RLTrainer
from cellfluxrl.training import minimal

SCRIPT = Path(__file__).parents[2] / "training" / "minimal.py"
COUNT = minimal.CONTROLS * minimal.ROLLOUTS


@pytest.fixture(scope="module")
def base():
    return minimal.train_base(torch.manual_seed(0))


class Called(nn.Module):
    """A velocity of the file, called as the trainer calls one."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, sample, timestep, condition, return_dict=False):
        return (self.velocity(sample, timestep),)


class Task:
    """What the file draws and scores, drawn in the same order from one generator."""

    def __init__(self, generator):
        self.generator = generator

    def draw(self, generator):
        source = minimal.draw_sources(minimal.CONTROLS, self.generator, minimal.ROLLOUTS)
        group = torch.arange(COUNT) // minimal.ROLLOUTS
        return Starts(source=source, condition=torch.zeros(COUNT, 1), group=group, label=group)

    def couple(self, labels, generator):
        return minimal.draw_sources(COUNT, self.generator)

    def draw_times(self, count, generator):
        return torch.rand(count, generator=self.generator)

    def draw_probes(self, count, generator):
        return Probes(noised=torch.zeros(count, 2), time=torch.zeros(count), condition=torch.zeros(count, 1))

    def measure(self, samples, labels):
        rewards = minimal.reward(samples)
        return lambda: {"reward": rewards}

    def score(self, measured, labels, weights=None):
        return {"combined": measured["reward"]}


def test_its_updates_are_those_of_the_trainer(base):
    iterations = 6
    settings = RLSettings(
        num_inference_steps=minimal.SOLVER_STEPS,
        inner_steps=minimal.INNER_STEPS,
        learning_rate=minimal.RATE,
        lr_warmup_steps=0,
        mixing_weight=minimal.MIXING_WEIGHT,
        kl_weight=minimal.KL_WEIGHT,
        advantage_clip=minimal.CLIP,
        train_batch_size=COUNT,
    )
    model = Called(frozen_copy(base).requires_grad_(True))
    task = Task(torch.Generator().manual_seed(7))
    trainer = RLTrainer(model, CellFluxFlowMatchScheduler(solver="euler"), task, settings, Accelerator(cpu=True))
    rewards = [trainer.step()["reward/combined"] for _ in range(iterations)]
    assert rewards[-1] > rewards[0]
    ours = minimal.post_train(base, torch.Generator().manual_seed(7), iterations)
    for mine, theirs in zip(ours, (trainer.model, trainer.old, trainer.average), strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    moved = [(a - b).abs().max() for a, b in zip(ours[0].parameters(), base.parameters(), strict=True)]
    assert min(moved) > 1e-3


def test_its_base_and_samples_are_those_of_the_package(base):
    generator = torch.Generator().manual_seed(1)
    x_0, x_1 = minimal.draw_sources(50, generator), minimal.draw_treated(50, generator)
    t = torch.rand(50, generator=generator)
    (x_t, u), path = minimal.on_path(x_0, x_1, t), PathSample(x_0, x_1, t)
    assert torch.equal(x_t, path.x_t)
    v = base(x_t, t)
    torch.testing.assert_close((v - u).square().mean(), flow_matching_loss(v, path).mean())
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    found = integrate(Called(base), scheduler, x_0, torch.zeros(50, 1), minimal.SOLVER_STEPS)
    torch.testing.assert_close(found, minimal.sample(base, x_0), rtol=1e-5, atol=1e-5)


def test_the_reward_rises_and_cells_of_the_phenotype_still_vary_as_real_ones_do(base):
    _, _, trained = minimal.post_train(base, torch.Generator().manual_seed(0))
    before, after = minimal.summary(base), minimal.summary(trained)
    assert before["reward"] < 1.5 / minimal.PHENOTYPES
    assert after["reward"] > 0.7
    assert minimal.SPREAD / 2 < after["spread"] < 2 * minimal.SPREAD


def test_the_script_shows_before_and_after_and_can_be_read_at_a_sitting():
    assert len(SCRIPT.read_text().splitlines()) <= 150
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before.startswith("base ")
    assert after.startswith("post-trained ")
    assert float(after.split()[2]) > float(before.split()[2]) + 0.5
