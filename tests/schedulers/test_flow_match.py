import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl import CellFluxFlowMatchScheduler
from cellfluxrl.flow.noise import band_limited_noise
from cellfluxrl.schedulers.grids import edm_times
from cellfluxrl.schedulers.solvers import SOLVERS

# Where in a step each solver evaluates.
NODES = {
    "euler": [0.0],
    "midpoint": [0.0, 0.5],
    "heun": [0.0, 1.0],
    "rk4": [0.0, 0.5, 0.5, 1.0],
    "ab2": [0.0],
    "exponential_ab2": [0.0],
}
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2, "exponential_ab2": 2}
SHAPE = (2, 3, 4, 4)


def integrate(scheduler, velocity, start, **grid):
    """Solve dx/dt = velocity(x, t) as a pipeline does, except that t is in double precision."""
    scheduler.set_timesteps(**grid)
    nodes = torch.tensor(NODES[scheduler.config.solver], dtype=torch.float64)
    times = (scheduler.grid[:-1, None] + scheduler.grid.diff()[:, None] * nodes).flatten()
    torch.testing.assert_close(scheduler.timesteps, times.float())
    sample = start
    for t in times.tolist():
        sample = scheduler.step(velocity(sample, t), t, sample).prev_sample
    return sample


# --- solvers ---

# Velocity, and the exact solution that starts at 1 at t = 0. The last one is the flow from N(0, 1) to N(2, 0.6^2),
# where x_t is Gaussian with mean 2 t and variance (1 - t)^2 + (0.6 t)^2.


def gaussian_std(t):
    return math.sqrt((1 - t) ** 2 + (0.6 * t) ** 2)


FLOWS = {
    "decay": (lambda x, t: -x, lambda t: math.exp(-t)),
    "time dependent": (lambda x, t: (1 + t) * x, lambda t: math.exp(t + t * t / 2)),
    "nonlinear": (lambda x, t: -x * x, lambda t: 1 / (1 + t)),
    "between Gaussians": (
        lambda x, t: 2 + (t - 1 + 0.36 * t) / gaussian_std(t) ** 2 * (x - 2 * t),
        lambda t: 2 * t + gaussian_std(t),
    ),
}


def uniform(steps):
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def non_uniform(steps):
    return 1 - (1 - uniform(steps)) ** 1.5 * (1 - 0.3 * uniform(steps))


def fitted_order(errors, doublings=2):
    """By which power of the step the error fell while the number of steps was doubled that often."""
    return math.log2(errors[0] / errors[-1]) / doublings


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("grid", [uniform, non_uniform])
@pytest.mark.parametrize("solver", SOLVERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver, grid, flow):
    velocity, exact = FLOWS[flow]
    start = torch.ones(1, dtype=torch.float64)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    errors = [abs(float(integrate(scheduler, velocity, start, grid=grid(n))) - exact(1)) for n in (40, 80, 160)]
    # At least: for some flows and grids the leading errors of different steps cancel. On even steps the error of the
    # exponential solver falls as h^2 log(1 / h).
    allowance = 0.4 if solver == "exponential_ab2" and grid is uniform else 0.2
    assert fitted_order(errors) > ORDERS[solver] - allowance


@settings(max_examples=60, deadline=None)
@given(
    solver=st.sampled_from(SOLVERS),
    times=st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_straight_paths_are_followed_exactly_on_any_grid(solver, times, reverse, seed):
    source, target = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = [t / 1000 for t in sorted(times, reverse=reverse)]
    start, end = ((1 - t) * source + t * target for t in (grid[0], grid[-1]))
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    torch.testing.assert_close(integrate(scheduler, lambda x, t: target - source, start, grid=grid), end)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True), st.floats(-3, 3))
def test_the_exponential_solver_is_exact_for_a_target_that_changes_evenly(times, slope):
    # D = slope t makes dx/dt = (slope t - x) / (1 - t), solved by x = slope (t + (1 - t) log(1 - t)) from x = 0.
    def exact(t):
        return slope * (t + (1 - t) * math.log(1 - t)) if t < 1 else slope

    # A first step that is so short that Euler's error in it, slope h^2 / 2, does not count.
    grid = [0.0, 1e-6, *sorted(t / 1000 for t in times)]
    scheduler = CellFluxFlowMatchScheduler(solver="exponential_ab2")
    scheduler.set_timesteps(grid=grid)
    sample = torch.zeros(1, dtype=torch.float64)
    for t, time in zip(scheduler.timesteps, grid, strict=False):
        sample = scheduler.step((slope * time - sample) / (1 - time), t, sample).prev_sample
    assert float(sample) == pytest.approx(exact(grid[-1]), abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_target_is_predicted_along_the_way(solver, generator):
    source, target = torch.randn(2, *SHAPE, generator=generator)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(3)
    sample = source
    for t in scheduler.timesteps:
        sample, predicted = scheduler.step(target - source, t, sample, return_dict=False)
        torch.testing.assert_close(predicted, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_model_is_evaluated_as_often_as_the_solver_needs(solver):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(5)
    assert len(scheduler) == len(scheduler.timesteps) == 5 * len(NODES[solver])
    assert scheduler.order == len(NODES[solver])
    assert scheduler.num_inference_steps == 5


def test_a_step_after_the_end_is_refused():
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    sample = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(sample, 0.0, sample)
    integrate(scheduler, lambda x, t: x, sample, num_inference_steps=2)
    with pytest.raises(ValueError, match="all 4 evaluations are done"):
        scheduler.step(sample, 1.0, sample)
    integrate(scheduler, lambda x, t: x, sample, num_inference_steps=2)


def test_an_evaluation_that_was_left_out_is_noticed():
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    scheduler.set_timesteps(2)
    sample = torch.zeros(SHAPE)
    scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match=r"timestep 0\.5 is not the next one: evaluation 1 of timesteps is at 0\.25"):
        scheduler.step(sample, scheduler.timesteps[2], sample)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_that_was_broken_off_does_not_disturb_the_next(solver):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    start = torch.ones(SHAPE)
    whole = integrate(scheduler, lambda x, t: -x, start, num_inference_steps=3)
    scheduler.set_timesteps(3)
    scheduler.step(start, scheduler.timesteps[0], start)
    assert torch.equal(integrate(scheduler, lambda x, t: -x, start, num_inference_steps=3), whole)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_the_caller_passes_is_left_as_it_was(solver, generator):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(3, readout_times=[0.1, 0.9])
    sample = torch.randn(SHAPE, generator=generator)
    for t in scheduler.timesteps:
        velocity = torch.randn(SHAPE, generator=generator)
        given = sample.clone(), velocity.clone()
        moved = scheduler.step(velocity, t, sample).prev_sample
        assert torch.equal(sample, given[0])
        assert torch.equal(velocity, given[1])
        sample = moved


@pytest.mark.parametrize("prediction_type", ["velocity", "target"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_never_waits_for_a_value_from_the_device(solver, prediction_type):
    # A tensor on the meta device has no values: reading one, which on a GPU would wait for it, raises.
    scheduler = CellFluxFlowMatchScheduler(solver=solver, prediction_type=prediction_type)
    scheduler.set_timesteps(3, device="meta", readout_times=[0.2, 1.0])
    sample = torch.zeros(SHAPE, device="meta")
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    assert scheduler.readout().shape == (2, *SHAPE)


# --- reverse ---


@pytest.mark.parametrize("solver", SOLVERS)
def test_forward_then_reverse_returns_to_the_start_to_the_order_of_the_solver(solver):
    velocity, _ = FLOWS["between Gaussians"]
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    errors = []
    for n in (40, 80, 160):
        end = integrate(scheduler, velocity, start, num_inference_steps=n)
        back = integrate(scheduler, velocity, end, num_inference_steps=n, reverse=True)
        errors.append(float((back - start).abs().max()))
    assert fitted_order(errors) > ORDERS[solver] - 0.15
    assert errors[-1] < 0.05


@pytest.mark.parametrize("time_grid", ["uniform", "edm"])
def test_reverse_runs_the_same_grid_from_treated_to_control(time_grid):
    scheduler = CellFluxFlowMatchScheduler(solver="euler", time_grid=time_grid)
    scheduler.set_timesteps(4)
    forward = scheduler.grid
    scheduler.set_timesteps(4, reverse=True)
    assert torch.equal(scheduler.grid, forward.flip(0))
    assert float(scheduler.timesteps[0]) == 1


def test_a_decreasing_custom_grid_runs_in_reverse():
    scheduler = CellFluxFlowMatchScheduler(solver="rk4")
    end = integrate(scheduler, lambda x, t: torch.ones_like(x), torch.ones(SHAPE), grid=[1.0, 0.7, 0.25])
    torch.testing.assert_close(end, torch.full(SHAPE, 0.25))
    with pytest.raises(ValueError, match="a custom grid runs as it is given"):
        scheduler.set_timesteps(grid=[0.0, 1.0], reverse=True)


# --- readout ---


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_readout_inside_steps_has_the_order_of_the_solver(solver, reverse):
    velocity, exact = FLOWS["between Gaussians"]
    start = torch.full((1,), exact(1.0 if reverse else 0.0), dtype=torch.float64)
    times = [0.9137, 0.031, 0.5, 0.77, 0.2718]
    wanted = torch.tensor([[exact(t)] for t in times], dtype=torch.float64)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    errors = []
    for n in (20, 40, 80, 160):
        integrate(scheduler, velocity, start, num_inference_steps=n, reverse=reverse, readout_times=times)
        errors.append(float((scheduler.readout() - wanted).square().mean().sqrt()))
    assert fitted_order(errors, doublings=3) > ORDERS[solver] - 0.3


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_readout_at_times_of_the_grid_is_what_the_steps_gave(solver):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(4, readout_times=[1.0, 0.0, 0.5])
    sample = torch.linspace(-1, 1, 96).view(SHAPE)
    states = [sample]
    for i, t in enumerate(scheduler.timesteps):
        sample = scheduler.step(-sample * (1 + float(t)), t, sample).prev_sample
        if (i + 1) % scheduler.order == 0:
            states.append(sample)
    assert torch.equal(scheduler.readout(), torch.stack([states[4], states[0], states[2]]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_readout_does_not_change_the_sample(solver):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    start = torch.linspace(-1, 1, 96).view(SHAPE)
    plain = integrate(scheduler, lambda x, t: -x * x, start, num_inference_steps=3)
    assert torch.equal(
        integrate(scheduler, lambda x, t: -x * x, start, num_inference_steps=3, readout_times=[0.2, 0.5]), plain
    )


@pytest.mark.parametrize("time", [-0.1, 1.01, float("nan")])
def test_a_readout_outside_the_grid_is_refused(time):
    with pytest.raises(ValueError, match=rf"readout time {time} is outside the grid, which covers \[0, 1\]"):
        CellFluxFlowMatchScheduler().set_timesteps(3, readout_times=[0.5, time])


def test_the_edm_grid_has_no_readout_before_it_starts():
    scheduler = CellFluxFlowMatchScheduler(time_grid="edm")
    with pytest.raises(ValueError, match=r"readout time 0.0 is outside the grid, which covers \[0.01235, 1\]"):
        scheduler.set_timesteps(3, readout_times=[0.0])
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(torch.zeros(SHAPE), 0.0, torch.zeros(SHAPE))


def test_a_readout_before_it_is_there_is_refused():
    scheduler = CellFluxFlowMatchScheduler(solver="euler")
    with pytest.raises(ValueError, match="call set_timesteps with readout_times first"):
        scheduler.readout()
    scheduler.set_timesteps(2, readout_times=[0.1, 0.6, 0.9])
    scheduler.step(torch.zeros(SHAPE), 0.0, torch.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"not reached the readout times \[0\.6, 0\.9\] yet"):
        scheduler.readout()


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
    "grid",
    [[0.0], [], [0.0, 0.5, 0.5], [0.0, 1.0, 0.5], [-0.1, 1.0], [0.0, 1.1], [[0.0, 1.0]], [0.0, float("nan"), 1.0]],
)
def test_a_custom_grid_must_run_in_one_direction_within_0_and_1(grid):
    with pytest.raises(ValueError, match=r"two or more times in \[0, 1\] that only increase or only decrease"):
        CellFluxFlowMatchScheduler().set_timesteps(grid=grid)


@pytest.mark.parametrize("steps", [0, -3])
def test_there_is_at_least_one_step(steps):
    with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
        CellFluxFlowMatchScheduler().set_timesteps(steps)


@pytest.mark.parametrize("steps", [2.0, True, "4", torch.tensor(3)])
def test_the_number_of_steps_is_an_integer(steps):
    with pytest.raises(ValueError, match="num_inference_steps must be an integer, got"):
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


def test_detail_is_white_noise_within_the_same_variance(generator):
    scheduler = CellFluxFlowMatchScheduler(
        source_noise="band_limited", source_noise_grid=6, source_noise_scale=0.5, source_noise_detail=0.6
    )
    noise = scheduler.sample_source_noise((4000, 1, 24, 24), generator)
    torch.testing.assert_close(noise.std(dim=0), torch.full((1, 24, 24), 0.5), rtol=0, atol=3 / math.sqrt(8000))
    # Neighbours share the smooth part, 0.64 of the variance, and nothing of the rest.
    assert neighbour_correlation(noise) / 0.25 == pytest.approx(0.64, abs=0.05)


@pytest.mark.parametrize("detail", [-0.1, 1.1])
def test_detail_outside_of_the_noise_is_refused(detail):
    with pytest.raises(ValueError, match=rf"source_noise_detail must be in \[0, 1\], got {detail}"):
        CellFluxFlowMatchScheduler(source_noise="band_limited", source_noise_detail=detail)


def test_white_noise_has_no_detail_to_add():
    with pytest.raises(ValueError, match=r"source_noise_detail=0\.2 is for band_limited noise"):
        CellFluxFlowMatchScheduler(source_noise="white", source_noise_detail=0.2)


@pytest.mark.parametrize("source_noise", ["white", "band_limited"])
def test_noise_is_scaled(source_noise):
    small, one = (
        CellFluxFlowMatchScheduler(source_noise=source_noise, source_noise_scale=scale).sample_source_noise(
            SHAPE, torch.Generator().manual_seed(0)
        )
        for scale in (0.25, 1.0)
    )
    torch.testing.assert_close(small, 0.25 * one)


@pytest.mark.parametrize(("source_noise", "detail"), [("white", 0.0), ("band_limited", 0.0), ("band_limited", 0.3)])
def test_with_a_list_of_generators_a_sample_does_not_depend_on_its_batch(source_noise, detail, generators):
    scheduler = CellFluxFlowMatchScheduler(source_noise=source_noise, source_noise_detail=detail)
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
    swapped = CellFluxFlowMatchScheduler.from_config(loaded.config, solver="rk4")
    assert (swapped.order, swapped.config.source_noise_grid) == (4, 5)


def test_what_diffusers_asks_of_a_scheduler():
    scheduler = CellFluxFlowMatchScheduler()
    sample = torch.ones(SHAPE)
    assert scheduler.init_noise_sigma == 1
    assert scheduler.scale_model_input(sample, 0.5) is sample
    assert scheduler.compatibles == []


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


# --- samples that change between two steps ---


def decay(sample):
    return -sample


def run(scheduler, sample, change_after=None, rows=None, renewed=None, fresh=None):
    """Follow dx/dt = -x; after so many steps replace the samples by `rows` of them, the `renewed` ones by fresh."""
    for i, t in enumerate(scheduler.timesteps):
        if change_after is not None and i == change_after * scheduler.order:
            sample = sample[rows]
            sample[renewed] = fresh[renewed]
            scheduler.resample(rows, renewed)
        sample = scheduler.step(decay(sample), t, sample).prev_sample
    return sample


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_that_change_places_go_on_as_they_would_have(solver, generator):
    start = torch.randn(SHAPE, generator=generator)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(5)
    expected = run(scheduler, start)
    scheduler.set_timesteps(5)
    rows, renewed = torch.tensor([1, 0, 1]), torch.tensor([False, False, False])
    assert torch.equal(run(scheduler, start, 3, rows, renewed, start[rows]), expected[rows])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_that_is_drawn_anew_starts_again_and_leaves_the_others_alone(solver, generator):
    start, fresh = torch.randn(2, *SHAPE, generator=generator)
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(5)
    expected = run(scheduler, start)
    scheduler.set_timesteps(5)
    ours = run(scheduler, start, 2, torch.tensor([0, 1]), torch.tensor([False, True]), fresh)
    assert torch.equal(ours[0], expected[0])
    scheduler.set_timesteps(grid=torch.linspace(0, 1, 6)[2:])
    torch.testing.assert_close(ours[1], run(scheduler, fresh)[1])


def test_samples_do_not_change_in_the_middle_of_a_step():
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    scheduler.set_timesteps(2)
    scheduler.step(torch.zeros(SHAPE), scheduler.timesteps[0], torch.zeros(SHAPE))
    with pytest.raises(ValueError, match="between two steps only, not between the evaluations of one"):
        scheduler.resample(torch.arange(2), torch.zeros(2, dtype=torch.bool))
