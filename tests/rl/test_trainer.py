"""The engine on points in the plane: it knows nothing of images, so neither do these tests."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cellfluxrl.averaging import frozen_copy
from cellfluxrl.rl.trainer import NFTSettings, NFTTrainer, Starts, integrate
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.seeding import seeded_generator

MODES = 8
SPREAD = 0.2
ANGLES = torch.arange(MODES) * 2 * math.pi / MODES
CENTERS = 4 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
REWARDED = 2


class PlaneVelocity(nn.Module):
    """A velocity model of points, with the call of `CellFluxUNet2DModel`."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                    nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))  # fmt: skip

    def forward(self, sample, timestep, condition, return_dict=False):
        t = torch.as_tensor(timestep).expand(len(sample))[:, None]
        waves = [(math.pi * t).sin(), (math.pi * t).cos()]
        return (self.layers(torch.cat([sample, t, *waves, condition], dim=1)),)


def draw_targets(count, generator):
    mode = torch.randint(MODES, (count,), generator=generator)
    return CENTERS[mode] + SPREAD * torch.randn(count, 2, generator=generator)


def mode_of(samples):
    """The nearest mode of each sample, and whether it lies within four standard deviations of it."""
    distance, mode = torch.cdist(samples, CENTERS).min(dim=1)
    return mode, distance < 4 * SPREAD


class PlaneTask:
    """From a Gaussian to the rewarded mode of a ring of eight; all rollouts are one group."""

    def __init__(self, count=256, reward=None):
        self.count = count
        self.score = reward or (lambda samples: ((mode_of(samples)[0] == REWARDED) & mode_of(samples)[1]).float())

    def draw(self, generator):
        zeros = torch.zeros(self.count, dtype=torch.long)
        source = torch.randn(self.count, 2, generator=generator)
        return Starts(source=source, condition=torch.zeros(self.count, 1), group=zeros, label=zeros)

    def couple(self, labels, generator):
        return torch.randn(len(labels), 2, generator=generator)

    def draw_times(self, count, generator):
        return torch.rand(count, generator=generator)

    def reward(self, samples, labels):
        return {"combined": self.score(samples)}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    model = PlaneVelocity()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    generator = seeded_generator(0, "plane")
    for _ in range(1500):
        source, target = torch.randn(256, 2, generator=generator), draw_targets(256, generator)
        time = torch.rand(256, generator=generator)
        sample = torch.lerp(source, target, time[:, None])
        loss = (model(sample, time, torch.zeros(256, 1))[0] - (target - source)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return frozen_copy(model)


def make_trainer(base, task=None, learning_rate=1e-3, **settings):
    model = copy.deepcopy(base).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    settings = NFTSettings(**{"num_inference_steps": 10, "train_batch_size": 256, **settings})
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    return NFTTrainer(model, scheduler, optimizer, task or PlaneTask(), settings, Accelerator(cpu=True))


def measure(model):
    """Share of the rewarded mode, and share on any mode, of 2000 new samples."""
    source = torch.randn(2000, 2, generator=seeded_generator(0, "measure"))
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    mode, on_manifold = mode_of(integrate(model, scheduler, source, torch.zeros(2000, 1), 10))
    return float(((mode == REWARDED) & on_manifold).float().mean()), float(on_manifold.float().mean())


def distance(model, base):
    source = torch.randn(2000, 2, generator=seeded_generator(0, "measure"))
    inputs = (source, torch.linspace(0, 1, 2000), torch.zeros(2000, 1))
    with torch.no_grad():
        return float((model(*inputs)[0] - base(*inputs)[0]).square().mean())


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_the_base_knows_the_ring(base):
    share, on_manifold = measure(base)
    assert share == pytest.approx(1 / MODES, abs=0.06)
    assert on_manifold > 0.8


def test_the_rewarded_mode_wins_and_samples_stay_on_the_data(base):
    trainer = make_trainer(base, kl_weight=0.0)
    logs = [trainer.step() for _ in range(45)]
    share, on_manifold = measure(trainer.average)
    assert share > 0.85
    assert on_manifold > measure(base)[1] - 0.03
    assert logs[-1]["reward/combined"] > logs[0]["reward/combined"] + 0.6
    assert logs[0]["distance_to_old"] > 0
    assert all(log["sample_growth"] < 2 * logs[0]["sample_growth"] for log in logs)


def test_shuffled_rewards_do_not_raise_the_rewarded_mode(base):
    trainer = make_trainer(base, shuffle_rewards=True)
    for _ in range(45):
        log = trainer.step()
    assert measure(trainer.average)[0] < measure(base)[0] + 0.1
    assert log["r/std"] > 0


def test_a_constant_reward_moves_no_weight_at_all(base):
    constant = PlaneTask(reward=lambda samples: torch.full((len(samples),), 0.1))
    trainer = make_trainer(base, constant)
    logs = [trainer.step() for _ in range(4)]
    for model in (trainer.model, trainer.old, trainer.average, trainer.reference):
        assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(base), strict=True))
    assert all(log["dead_groups"] == 1 and "loss" not in log for log in logs)
    assert trainer.iteration == 4


def test_a_large_kl_weight_holds_the_model_near_the_base(base):
    moved = []
    for kl_weight in (0.0, 10.0):
        trainer = make_trainer(base, kl_weight=kl_weight)
        for _ in range(15):
            trainer.step()
        moved.append(distance(trainer.model, base))
    assert moved[1] < 0.02 * moved[0]
    assert measure(trainer.average)[0] == pytest.approx(measure(base)[0], abs=0.05)


def test_the_reference_stays_and_old_and_average_follow_as_the_settings_say(base):
    trainer = make_trainer(base, old_decay_rate=0.25, old_decay_max=0.6, ema_decay=0.9)
    decays = []
    for iteration in range(4):
        old, average = weights(trainer.old), weights(trainer.average)
        decays.append(trainer.step()["old_decay"])
        ema = min(0.9, (1 + iteration) / (10 + iteration))
        now = weights(trainer.model)
        for before, model, decay in ((old, trainer.old, decays[-1]), (average, trainer.average, ema)):
            for a, b, c in zip(weights(model), before, now, strict=True):
                torch.testing.assert_close(a, decay * b + (1 - decay) * c)
    assert decays == [0.0, 0.25, 0.5, 0.6]
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.reference), weights(base), strict=True))


@pytest.mark.parametrize("settings", [{}, {"shuffle_rewards": True}])
def test_a_resumed_run_is_the_same_run_bit_for_bit(base, settings):
    task = PlaneTask(64)
    whole = make_trainer(base, task, **settings)
    for _ in range(5):
        whole.step()
    first, second = make_trainer(base, task, **settings), make_trainer(base, task, **settings)
    for _ in range(3):
        first.step()
    second.load_state(copy.deepcopy(first.state_tensors()), first.iteration)
    for _ in range(2):
        second.step()
    for group, tensors in whole.state_tensors().items():
        resumed = second.state_tensors()[group]
        assert tensors.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in tensors.items()), group


def test_the_batch_size_changes_memory_and_not_the_result(base):
    # 100 rollouts in parts of 32: the last part is smaller and must weigh less.
    results = []
    for train_batch_size in (100, 32):
        trainer = make_trainer(base, PlaneTask(100), train_batch_size=train_batch_size)
        for _ in range(2):
            trainer.step()
        results.append(weights(trainer.model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_dropout_is_off(base):
    class WithDropout(PlaneVelocity):
        def __init__(self):
            super().__init__()
            self.layers.insert(2, nn.Dropout(0.5))

    torch.manual_seed(0)
    trainer = make_trainer(WithDropout(), PlaneTask(64, reward=lambda samples: samples[:, 0]), inner_steps=1)
    # With masks of their own, the trained and the old policy would differ before the first update.
    assert trainer.step()["distance_to_old"] == 0


def test_a_reward_that_is_not_finite_stops_the_run_before_any_weight_moves(base):
    broken = PlaneTask(64, reward=lambda samples: torch.where(samples[:, 0] > 0, samples[:, 0], torch.nan))
    trainer = make_trainer(base, broken)
    with pytest.raises(FloatingPointError, match="of 64 rewards are not finite"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.model), weights(base), strict=True))


def test_rollouts_that_cannot_be_shared_evenly_are_refused(base, monkeypatch):
    trainer = make_trainer(base, PlaneTask(9))
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    with pytest.raises(ValueError, match="9 rollouts an iteration cannot be shared by 2 processes"):
        trainer.step()
