"""The engine on points in the plane: it knows nothing of images, so neither do these tests."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cellfluxrl.checkpoints import frozen_copy
from cellfluxrl.flow.integration import integrate
from cellfluxrl.rl.advantages import compute_advantages
from cellfluxrl.rl.objectives import OBJECTIVES
from cellfluxrl.rl.settings import RLSettings
from cellfluxrl.rl.task import Probes, Starts
from cellfluxrl.rl.trainer import PATIENCE, RLTrainer
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
    """From a Gaussian to the rewarded mode of a ring of eight, in groups of equal size."""

    def __init__(self, count=256, reward=None, groups=1):
        self.count, self.groups = count, groups
        self.reward = reward or (lambda samples: ((mode_of(samples)[0] == REWARDED) & mode_of(samples)[1]).float())

    def draw(self, generator):
        zeros = torch.zeros(self.count, dtype=torch.long)
        source = torch.randn(self.count, 2, generator=generator)
        group = torch.arange(self.count) * self.groups // self.count
        return Starts(source=source, condition=torch.zeros(self.count, 1), group=group, label=zeros)

    def couple(self, labels, generator):
        return torch.randn(len(labels), 2, generator=generator)

    def draw_times(self, count, generator):
        return torch.rand(count, generator=generator)

    def draw_probes(self, count, generator):
        source, time = torch.randn(count, 2, generator=generator), torch.rand(count, generator=generator)
        noised = torch.lerp(source, draw_targets(count, generator), time[:, None])
        return Probes(noised=noised, time=time, condition=torch.zeros(count, 1))

    def measure(self, samples, starts):
        values = self.reward(samples)
        return lambda: {"value": values}

    def score(self, measured, labels, weights=None):
        return {"combined": measured["value"]}


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


def make_trainer(base, task=None, **settings):
    model = copy.deepcopy(base).requires_grad_(True)
    changed = {"num_inference_steps": 10, "train_batch_size": 256, "learning_rate": 1e-3, "lr_warmup_steps": 0}
    settings = RLSettings(**{**changed, **settings})
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    return RLTrainer(model, scheduler, task or PlaneTask(), settings, Accelerator(cpu=True))


def measure(model):
    """Share of the rewarded mode, and share on any mode, of 2000 new samples."""
    source = torch.randn(2000, 2, generator=seeded_generator(0, "measure"))
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    mode, on_manifold = mode_of(integrate(model, scheduler, source, torch.zeros(2000, 1), 10))
    return float(((mode == REWARDED) & on_manifold).float().mean()), float(on_manifold.float().mean())


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
    assert [log["skipped_no_signal"] for log in logs] == [2, 4, 6, 8]
    assert trainer.iteration == 4


def test_a_large_kl_weight_holds_the_model_near_the_base(base):
    moved = []
    for kl_weight in (0.0, 10.0):
        trainer = make_trainer(base, kl_weight=kl_weight)
        for _ in range(15):
            trainer.step()
        moved.append(trainer.distance_to_base())
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shuffle_rewards": True, "advantage_std": "group"},
        {"kl_target": 0.01, "lr_warmup_steps": 20},
        {"objective": "rwr"},
        {"objective": "best_of_n"},
        {"objective": "dpo"},
    ],
)
def test_a_resumed_run_is_the_same_run_bit_for_bit(base, settings):
    task = PlaneTask(64, groups=4)
    whole = make_trainer(base, task, **settings)
    for _ in range(5):
        whole.step()
    first, second = make_trainer(base, task, **settings), make_trainer(base, task, **settings)
    for _ in range(3):
        first.step()
    saved = copy.deepcopy(first.state_tensors()), json.loads(json.dumps(first.state()))
    second.load_state(*saved, first.iteration)
    for _ in range(2):
        second.step()
    for group, tensors in whole.state_tensors().items():
        resumed = second.state_tensors()[group]
        assert tensors.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in tensors.items()), group
    assert second.state() == whole.state()


def test_dropout_is_off(base):
    class WithDropout(PlaneVelocity):
        def __init__(self):
            super().__init__()
            self.layers.insert(2, nn.Dropout(0.5))

    torch.manual_seed(0)
    trainer = make_trainer(WithDropout(), PlaneTask(64, reward=lambda samples: samples[:, 0]), inner_steps=1)
    # With masks of their own, the trained and the old policy would differ before the first update.
    assert trainer.step()["distance_to_old"] == 0


# ----------------------------------------------------------------------------------------------------------------
# Every objective
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_raises_the_mean_reward(base, objective):
    trainer = make_trainer(base, PlaneTask(groups=16), objective=objective, kl_weight=0.0, dpo_beta=1.0)
    rewards = [trainer.step()["reward/combined"] for _ in range(30)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25
    assert measure(trainer.average)[0] > measure(base)[0] + 0.2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_batch_size_changes_memory_and_not_the_result(base, objective):
    # 102 rollouts in parts of 32: the last part is smaller and must weigh less.
    results = []
    for train_batch_size in (102, 32):
        task = PlaneTask(102, reward=lambda samples: samples[:, 0], groups=17)
        trainer = make_trainer(base, task, objective=objective, train_batch_size=train_batch_size)
        for _ in range(2):
            trainer.step()
        results.append(weights(trainer.model))
    # Adam's first steps go by the sign: where a gradient is zero but for rounding, a single weight may differ by them.
    moved, differ = (
        torch.cat([(a - b).abs().flatten() for a, b in zip(x, y, strict=True)]).mean()
        for x, y in ((results[0], weights(base)), results)
    )
    assert moved > 5e-4
    assert differ < 1e-3 * moved


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_shares_of_three_processes_are_those_of_one(base, objective, monkeypatch):
    # 5 groups alive out of 9: neither 5 rows, nor 10 in pairs, can be shared by three evenly.
    trainer = make_trainer(base, objective=objective)
    together = trainer.settings.rows_together
    rewards, groups = torch.arange(27.0), torch.arange(27) // 3
    rewards[15:] = 1.0
    advantages = compute_advantages({"combined": rewards}, groups)
    objective = OBJECTIVES[objective]
    selection = objective.select(advantages, groups, trainer.settings)
    shares = []
    for process in range(3):
        monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 3))
        monkeypatch.setattr(type(trainer.accelerator), "process_index", property(lambda self, p=process: p))
        shares.append(trainer._shared_out(selection, together))
    assert len({len(rows) for rows, *_ in shares}) == 1
    assert all(len(rows) % together == 0 for rows, *_ in shares)
    rows, draws, preference, share = (torch.cat(column) for column in zip(*shares, strict=True))
    counted = share > 0
    assert rows[counted].tolist() == selection.rows.tolist()
    assert draws[counted].tolist() == selection.draws.tolist()
    assert torch.equal(preference[counted], selection.preference)
    assert float(share.sum()) == pytest.approx(1)


# ----------------------------------------------------------------------------------------------------------------
# The rate, and the distance to the base
# ----------------------------------------------------------------------------------------------------------------


def test_the_rate_rises_to_its_value_over_the_warm_up(base):
    trainer = make_trainer(base, learning_rate=1e-3, lr_warmup_steps=5, inner_steps=2)
    rates = [trainer.step()["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([4e-4, 8e-4, 1e-3, 1e-3])


def test_the_warm_up_takes_the_kick_out_of_the_first_iterations(base):
    moved = []
    for lr_warmup_steps in (0, 20):
        trainer = make_trainer(base, lr_warmup_steps=lr_warmup_steps)
        moved.append([trainer.step()["distance_to_base"] for _ in range(2)][-1])
    assert moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize(("target", "first_weight"), [(0.1, 0.1), (0.4, 1.0)])
def test_the_kl_weight_finds_the_distance_that_is_asked_for(base, target, first_weight):
    trainer = make_trainer(base, kl_weight=first_weight, kl_target=target)
    logs = [trainer.step() for _ in range(40)]
    assert logs[0]["kl_weight"] == first_weight
    assert all(0.6 * target < log["distance_to_base"] < 1.5 * target for log in logs[-10:])
    assert (logs[-1]["kl_weight"] > first_weight) == (target == 0.1)


def test_the_probes_are_the_same_in_every_iteration_and_run(base):
    trainer, other = make_trainer(base), make_trainer(base)
    assert trainer.distance_to_base() == 0
    trainer.step()
    moved = trainer.distance_to_base()
    assert moved == trainer.distance_to_base() > 0
    other.load_state(trainer.state_tensors(), trainer.state(), 1)
    assert other.distance_to_base() == moved


def test_settings_may_change_between_iterations(base):
    trainer = make_trainer(base, kl_weight=0.1)
    first = trainer.step()
    second = trainer.step(dataclasses.replace(trainer.settings, kl_weight=0.7, learning_rate=5e-4))
    assert (first["kl_weight"], second["kl_weight"]) == (0.1, 0.7)
    assert (first["learning_rate"], second["learning_rate"]) == (1e-3, 5e-4)


# ----------------------------------------------------------------------------------------------------------------
# Numbers that are not finite, and other bad input
# ----------------------------------------------------------------------------------------------------------------


def missing(share):
    """The first coordinate as reward, and NaN in that share of the rollouts."""

    def reward(samples):
        score = samples[:, 0].clone()
        score[: round(share * len(score))] = torch.nan
        return score

    return reward


def test_a_few_missing_rewards_mark_their_rollouts_and_not_the_run(base):
    trainer = make_trainer(base, PlaneTask(64, reward=missing(4 / 64)))
    for _ in range(PATIENCE + 1):
        log = trainer.step()
        assert log["non_finite_rewards"] == 4
        assert math.isfinite(log["loss"])
    assert trainer.failure() is None
    assert log["reward/combined"] != 0
    assert trainer.progress.updates == 2 * (PATIENCE + 1)


def test_many_missing_rewards_stop_the_run_after_a_while_unless_they_come_back(base):
    trainer = make_trainer(base, PlaneTask(64, reward=missing(0.25)))
    for _ in range(PATIENCE - 1):
        trainer.step()
        assert trainer.failure() is None
    trainer.step()
    assert "rewards are not finite" in trainer.failure()
    trainer.task.reward = missing(0)
    trainer.step()
    assert trainer.failure() is None


def test_an_iteration_without_most_of_its_rewards_moves_no_weight_and_stops_the_run(base):
    trainer = make_trainer(base, PlaneTask(64, reward=missing(0.6)))
    log = trainer.step()
    assert "rewards are not finite" in trainer.failure()
    assert log["non_finite_rewards"] == 38
    assert "loss" not in log
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.model), weights(base), strict=True))


def test_a_gradient_that_is_not_finite_skips_the_step_and_a_run_of_them_stops(base):
    trainer = make_trainer(base, PlaneTask(64, reward=missing(0)), inner_steps=1)
    trainer.step()
    before, state = weights(trainer.model), copy.deepcopy(trainer.optimizer.state_dict()["state"])
    couple = trainer.task.couple
    trainer.task.couple = lambda labels, generator: couple(labels, generator) * torch.nan
    for run in range(PATIENCE):
        assert trainer.failure() is None
        log = trainer.step()
        assert log["skipped_non_finite"] == run + 1
        assert "loss" not in log
    assert "gradient was not finite in 5 iterations" in trainer.failure()
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.model), before, strict=True))
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], state[0]["exp_avg"])
    trainer.task.couple = couple
    assert math.isfinite(trainer.step()["loss"])
    assert trainer.failure() is None


def test_a_base_without_noise_has_no_signal_and_is_refused(base):
    class Still(PlaneTask):
        def draw(self, generator):
            starts = super().draw(generator)
            return dataclasses.replace(starts, source=torch.ones(self.count, 2))

    with pytest.raises(ValueError, match=r"the 64 rollouts of a group are the same.*no signal.*source noise"):
        make_trainer(base, Still(64)).check()
    with pytest.raises(ValueError, match="a group has one rollout"):
        make_trainer(base, PlaneTask(8, groups=8)).check()
    make_trainer(base, PlaneTask(8)).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "nfft"}, "unknown objective 'nfft'; did you mean 'nft'"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"inner_steps": 0}, "inner_steps must be positive, got 0"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative, got -1.0"),
        ({"kl_target": 0.1, "kl_weight": 0.0}, "kl_weight on, which must be positive"),
        ({"objective": "dpo", "train_batch_size": 7}, "a positive multiple of 2 for objective 'dpo', got 7"),
        ({"train_batch_size": 0}, "a positive multiple of 1 for objective 'nft', got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RLSettings(**settings)


def test_rollouts_that_cannot_be_shared_evenly_are_refused(base, monkeypatch):
    trainer = make_trainer(base, PlaneTask(9))
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    with pytest.raises(ValueError, match="9 rollouts an iteration cannot be shared by 2 processes"):
        trainer.step()
