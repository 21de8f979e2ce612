import itertools
import math

import pytest
import torch

from cellfluxrl import CellFluxFlowMatchScheduler
from cellfluxrl.schedulers.flow_match import band_limited_noise, edm_times

SOLVERS = ("euler", "midpoint", "heun")
SHAPE = (2, 3, 4, 4)


def integrate(scheduler, velocity, start, **grid):
    """Solve dx/dt = velocity(x, t) as a pipeline does."""
    scheduler.set_timesteps(**grid)
    sample = start
    for t in scheduler.timesteps:
        sample = scheduler.step(velocity(sample, float(t)), t, sample).prev_sample
    return sample


# --- solvers ---


ODES = {
    "decay": (lambda x, t: -x, math.exp(-1)),
    "time dependent": (lambda x, t: (1 + t) * x, math.exp(1.5)),
    "nonlinear": (lambda x, t: -x * x, 0.5),
}


@pytest.mark.parametrize("ode", ODES)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, order, ode):
    velocity, exact = ODES[ode]
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    errors = [abs(float(integrate(scheduler, velocity, start, num_inference_steps=n)) - exact) for n in (20, 40, 80)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straight_paths_are_followed_exactly(solver, steps, generator):
    source, target = torch.randn(2, *SHAPE, generator=generator)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    end = integrate(scheduler, lambda x, t: target - source, source, num_inference_steps=steps)
    torch.testing.assert_close(end, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_target_is_predicted_along_the_way(solver, generator):
    source, target = torch.randn(2, *SHAPE, generator=generator)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(3)
    sample = source
    for t in scheduler.timesteps:
        sample, predicted = scheduler.step(target - source, t, sample, return_dict=False)
        torch.testing.assert_close(predicted, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("solver", "per_step"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_model_is_evaluated_as_often_as_the_solver_needs(solver, per_step):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(5)
    assert len(scheduler) == len(scheduler.timesteps) == 5 * per_step
    assert scheduler.order == per_step
    assert scheduler.num_inference_steps == 5


def test_the_times_of_each_solver():
    times = {}
    for solver in SOLVERS:
        scheduler = CellFluxFlowMatchScheduler(solver=solver)
        scheduler.set_timesteps(2)
        times[solver] = scheduler.timesteps.tolist()
    assert times == {"euler": [0, 0.5], "midpoint": [0, 0.25, 0.5, 0.75], "heun": [0, 0.5, 0.5, 1]}


def test_a_step_after_the_end_is_refused():
    scheduler = CellFluxFlowMatchScheduler()
    sample = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(sample, 0.0, sample)
    integrate(scheduler, lambda x, t: x, sample, num_inference_steps=2)
    with pytest.raises(ValueError, match="all 4 evaluations are done"):
        scheduler.step(sample, 1.0, sample)
    integrate(scheduler, lambda x, t: x, sample, num_inference_steps=2)


def test_a_run_that_was_broken_off_does_not_disturb_the_next():
    scheduler = CellFluxFlowMatchScheduler()
    start = torch.ones(SHAPE)
    whole = integrate(scheduler, lambda x, t: -x, start, num_inference_steps=3)
    scheduler.set_timesteps(3)
    scheduler.step(start, scheduler.timesteps[0], start)
    assert torch.equal(integrate(scheduler, lambda x, t: -x, start, num_inference_steps=3), whole)


# --- time grids ---


def test_the_edm_grid_has_cellflux_s_times():
    times = edm_times(50)
    assert len(times) == 51
    assert float(times[0]) == pytest.approx(1 / 81)
    assert float(times[-2]) == pytest.approx(1 / 1.002)
    assert float(times[-1]) == 1
    assert (times.diff() > 0).all()
    # Karras et al. (2022), eq. 5 with 3 levels: the middle one is ((80^(1/7) + 0.002^(1/7)) / 2)^7.
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert float(edm_times(3)[1]) == pytest.approx(1 / (1 + middle))


def test_one_edm_step_covers_the_whole_grid():
    torch.testing.assert_close(edm_times(1), torch.tensor([1 / 81, 1], dtype=torch.float64))


def test_the_edm_grid_is_what_is_integrated_over():
    scheduler = CellFluxFlowMatchScheduler(solver="euler", time_grid="edm")
    end = integrate(scheduler, lambda x, t: torch.ones_like(x), torch.zeros(SHAPE), num_inference_steps=10)
    torch.testing.assert_close(end, torch.full(SHAPE, 80 / 81))
    assert float(scheduler.timesteps[0]) == pytest.approx(0.0123, abs=1e-4)


def test_a_custom_grid_is_followed():
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    end = integrate(scheduler, lambda x, t: torch.ones_like(x), torch.zeros(SHAPE), grid=[0.0, 0.1, 0.7])
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([0.0, 0.1]))
    torch.testing.assert_close(end, torch.full(SHAPE, 0.7))


@pytest.mark.parametrize(
    "grid", [[0.0], [], [0.0, 0.5, 0.5], [1.0, 0.0], [-0.1, 1.0], [0.0, 1.1], [[0.0, 1.0]], [0.0, float("nan"), 1.0]]
)
def test_a_custom_grid_that_does_not_increase_from_0_to_1_is_refused(grid):
    with pytest.raises(ValueError, match=r"two or more increasing times in \[0, 1\]"):
        CellFluxFlowMatchScheduler().set_timesteps(grid=grid)


@pytest.mark.parametrize("steps", [0, -3])
def test_there_is_at_least_one_step(steps):
    with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
        CellFluxFlowMatchScheduler().set_timesteps(steps)


@pytest.mark.parametrize("arguments", [{}, {"num_inference_steps": 2, "grid": [0.0, 1.0]}])
def test_either_steps_or_a_grid(arguments):
    with pytest.raises(ValueError, match="either num_inference_steps or a custom grid"):
        CellFluxFlowMatchScheduler().set_timesteps(**arguments)


# --- prediction types ---


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_of_targets_gives_the_samples_of_its_velocity(solver):
    def target(x, t):
        return torch.tanh(2 * x) + t

    def velocity(x, t):
        return (target(x, t) - x) / max(1 - t, 0.2)

    start = torch.linspace(-1, 1, 96).view(SHAPE)
    settings = {"solver": solver, "min_time_remaining": 0.2}
    by_target = CellFluxFlowMatchScheduler(prediction_type="target", **settings)
    by_velocity = CellFluxFlowMatchScheduler(**settings)
    torch.testing.assert_close(
        integrate(by_target, target, start, num_inference_steps=8),
        integrate(by_velocity, velocity, start, num_inference_steps=8),
    )


# --- source noise ---


def neighbour_correlation(noise):
    return float((noise[..., 1:] * noise[..., :-1]).mean())


@pytest.mark.parametrize("source_noise", ["white", "band_limited"])
def test_noise_has_unit_variance_at_every_pixel(source_noise, generator):
    scheduler = CellFluxFlowMatchScheduler(source_noise=source_noise, source_noise_grid=6)
    noise = scheduler.sample_source_noise((4000, 2, 16, 20), generator)
    assert noise.shape == (4000, 2, 16, 20)
    # Six standard errors of a standard deviation from 4,000 values.
    torch.testing.assert_close(noise.std(dim=0), torch.ones(2, 16, 20), rtol=0, atol=6 / math.sqrt(8000))
    assert float(noise.mean(dim=0).abs().max()) < 6 / math.sqrt(4000)


def test_band_limited_noise_is_smoother_than_white(generator):
    smooth, white = (
        CellFluxFlowMatchScheduler(source_noise=kind, source_noise_grid=6).sample_source_noise(
            (200, 1, 24, 24), generator
        )
        for kind in ("band_limited", "white")
    )
    assert abs(neighbour_correlation(white)) < 0.02
    assert neighbour_correlation(smooth) > 0.9


def test_band_limited_noise_on_its_own_grid_is_white(generator):
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    torch.testing.assert_close(band_limited_noise(noise, 8, 8), noise)


@pytest.mark.parametrize("source_noise", ["white", "band_limited"])
def test_noise_is_scaled(source_noise):
    small, one = (
        CellFluxFlowMatchScheduler(source_noise=source_noise, source_noise_scale=scale).sample_source_noise(
            SHAPE, torch.Generator().manual_seed(0)
        )
        for scale in (0.25, 1.0)
    )
    torch.testing.assert_close(small, 0.25 * one)


@pytest.mark.parametrize("source_noise", ["white", "band_limited"])
def test_with_a_list_of_generators_a_sample_does_not_depend_on_its_batch(source_noise, generators):
    scheduler = CellFluxFlowMatchScheduler(source_noise=source_noise)
    together = scheduler.sample_source_noise((3, 3, 16, 16), generators(5, 6, 7))
    alone = scheduler.sample_source_noise((1, 3, 16, 16), generators(6))
    torch.testing.assert_close(together[1:2], alone)


# --- configuration ---


def test_a_saved_scheduler_has_the_same_configuration(tmp_path):
    settings = {"solver": "heun", "time_grid": "edm", "source_noise": "band_limited", "source_noise_grid": 5}
    CellFluxFlowMatchScheduler(**settings).save_pretrained(tmp_path)
    loaded = CellFluxFlowMatchScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in settings} == settings
    assert loaded.order == 2
    assert CellFluxFlowMatchScheduler.from_config(loaded.config, solver="euler").order == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "eular"}, "unknown solver 'eular'; did you mean 'euler'"),
        ({"time_grid": "unifrom"}, "unknown time_grid 'unifrom'; did you mean 'uniform'"),
        ({"prediction_type": "x1"}, "unknown prediction_type 'x1'; 2 known: target, velocity"),
        ({"source_noise": "pink"}, "unknown source_noise 'pink'; 2 known: band_limited, white"),
        ({"source_noise_scale": -1.0}, "source_noise_scale must not be negative, got -1.0"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CellFluxFlowMatchScheduler(**settings)
