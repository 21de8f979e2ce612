"""When the monitor warns, and when it does not."""

import json
import re
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.rl.monitor import Monitor, moments, squared_deviations

GROUPS = torch.arange(8).repeat_interleave(8)
LABELS = torch.arange(2).repeat_interleave(32)


def draw(seed, shift=0.0, spread=1.0, count=64):
    """Samples of two labels, at -1 and at 1, in three columns."""
    generator = torch.Generator().manual_seed(seed)
    labels = LABELS if count == 64 else torch.arange(count) % 2
    centre = 2.0 * labels[:, None] - 1
    return centre + shift + spread * torch.randn(count, 3, generator=generator), labels


@pytest.fixture(scope="module")
def real():
    values, labels = draw(0, count=800)
    return {"size": moments(values[:, 0], labels, 2), "shape": moments(values[:, 1], labels, 2)}


@pytest.fixture(scope="module")
def base():
    values, labels = draw(1, count=800)
    return moments(squared_deviations(values, labels), labels, 2)


def run(monitor, iterations, first_seed=100, **how):
    """Feed drawn samples and return the warnings of each iteration."""
    warnings = []
    for i in range(iterations):
        values, labels = draw(first_seed + i, **how)
        warnings.append(monitor.update({"size": values[:, 0], "shape": values[:, 1]}, labels, GROUPS, values))
    return warnings


def test_samples_like_the_real_ones_are_no_reason_to_warn(real, base):
    monitor = Monitor(real, base)
    assert run(monitor, 30) == [[]] * 30
    assert not monitor.stop
    values = monitor.values()
    assert set(values) == {"excess/size", "excess/shape", "diversity"}
    assert values["diversity"] == pytest.approx(1, abs=0.05)
    assert values["excess/size"] == pytest.approx(0, abs=0.15)


def test_each_reward_that_passes_the_real_samples_is_named_once(real):
    monitor = Monitor(real)
    warnings = run(monitor, 25, shift=1.0)
    assert warnings[:9] == [[]] * 9  # the window is not full
    assert len(warnings[9]) == 2
    assert re.match(r"reward 'size' is (0\.9|1)\d* \+- 0\.0\d+ above its mean in real samples: over", warnings[9][0])
    assert "'shape'" in warnings[9][1]
    assert warnings[10:] == [[]] * 15
    assert monitor.stop


def test_a_reward_below_the_real_samples_is_no_reason_to_warn(real):
    monitor = Monitor(real)
    assert run(monitor, 12, shift=-2.0) == [[]] * 12


@pytest.mark.parametrize(("spread", "warns"), [(1.3, False), (1.0, False), (0.8, True)])
def test_lost_diversity_is_reported(real, base, spread, warns):
    monitor = Monitor({}, base)
    warnings = list(chain(*run(monitor, 12, spread=spread)))
    assert [w.startswith("diversity fell to 0.") for w in warnings] == [True] * warns
    assert monitor.stop == warns
    assert monitor.values()["diversity"] == pytest.approx(spread, rel=0.05)


def test_samples_are_compared_with_real_ones_of_their_own_label(real):
    """Label 1 is at 1, label 0 at -1: a batch of label 1 alone is not above the real samples."""
    monitor = Monitor({"size": real["size"]}, window=1)
    values, labels = draw(5)
    assert monitor.update({"size": values[32:, 0]}, labels[32:], GROUPS[32:]) == []
    assert monitor.values()["excess/size"] == pytest.approx(0, abs=0.5)
    assert monitor.update({"size": values[32:, 0]}, 0 * labels[32:], GROUPS[32:]) != []


def test_copies_of_one_sample_are_not_evidence():
    """Eight groups of equal rewards, half a standard deviation up: eight samples, not sixty-four."""
    normal = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    level = {"size": moments(normal, torch.zeros(10_000, dtype=torch.long), 1)}
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.5, 1.0, 1.5, 2.0]).repeat_interleave(8)
    labels = torch.zeros(64, dtype=torch.long)
    assert Monitor(level, window=1).update({"size": values}, labels, GROUPS) == []
    assert Monitor(level, window=1).update({"size": values}, labels, torch.arange(64)) != []


def test_nan_and_labels_without_real_samples_are_left_out():
    level = {"size": moments(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0, 0, 0]), 2)}
    monitor = Monitor(level, window=1, standard_errors=0)
    rewards = torch.tensor([0.0, torch.nan, 0.5, 9.0])
    assert monitor.update({"size": rewards}, torch.tensor([0, 0, 0, 1]), torch.arange(4)) == []
    assert monitor.values() == {"excess/size": -0.25}
    nothing = Monitor(level, window=1)
    assert nothing.update({"size": torch.full((4,), torch.nan)}, torch.zeros(4, dtype=torch.long), GROUPS[:4]) == []
    assert nothing.values() == {}


def test_a_resumed_monitor_is_the_same_monitor(real, base):
    whole, first, second = (Monitor(real, base) for _ in range(3))
    expected = run(whole, 20, shift=0.3)
    warnings = run(first, 12, shift=0.3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert warnings + run(second, 8, first_seed=112, shift=0.3) == expected
    assert second.values() == whole.values()
    assert second.stop == whole.stop == any(expected)
    assert second.state_dict() == whole.state_dict()


def test_a_saved_state_is_not_changed_by_what_comes_later(real):
    monitor = Monitor(real)
    run(monitor, 12, shift=1.0)
    state = monitor.state_dict()
    before = json.dumps(state)
    run(monitor, 12, shift=1.0)
    assert json.dumps(state) == before


def test_what_does_not_fit_is_refused(real):
    with pytest.raises(ValueError, match=r"diversity_share must be in \(0, 1\], got 1.5"):
        Monitor(real, diversity_share=1.5)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Monitor(real, window=0)
    with pytest.raises(ValueError, match="standard_errors must not be negative, got -1"):
        Monitor(real, standard_errors=-1)
    with pytest.raises(ValueError, match="reward 'size' is watched, but there are only \\['shape'\\]"):
        Monitor(real).update({"shape": torch.zeros(64)}, LABELS, GROUPS)
    with pytest.raises(ValueError, match=r"the state is of \['excess/shape', 'excess/size'\], this monitor of \[\]"):
        Monitor({}).load_state_dict(Monitor(real).state_dict())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(2, 4))
def test_the_mean_squared_deviation_is_the_variance_of_each_label(values, copies):
    """Whatever the labels' means and sizes."""
    column = torch.tensor(values, dtype=torch.double)
    vectors = torch.cat([column + 1000 * k for k in range(copies)])[:, None]
    labels = torch.arange(copies).repeat_interleave(len(values))
    squares = squared_deviations(vectors, labels)
    assert float(squares.mean()) == pytest.approx(float(column.var()), rel=1e-6, abs=1e-6)
    alone = squared_deviations(torch.cat([vectors, vectors[:1] + 5]), torch.cat([labels, torch.tensor([99])]))
    assert alone[-1].isnan()
    assert torch.equal(alone[:-1], squares)
