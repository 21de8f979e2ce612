import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfluxrl.pipelines.selection import StreamingMatch, select_best, select_match, select_reject


def energy_distance(chosen, reference):
    """What matching minimises: mean distance to the real cells minus half the mean distance within the set."""
    return float(torch.cdist(chosen, reference).mean() - torch.cdist(chosen, chosen).mean() / 2)


def choices_of(vectors, selected):
    return vectors[torch.arange(len(vectors)), selected]


def every_distance(vectors, reference):
    """The distance of every possible choice."""
    controls, candidates, _ = vectors.shape
    every = itertools.product(range(candidates), repeat=controls)
    return torch.tensor([energy_distance(choices_of(vectors, torch.tensor(chosen)), reference) for chosen in every])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_best_is_the_highest_score_of_each_control():
    scores = torch.tensor([[0.1, 0.9, 0.3], [2.0, -1.0, 1.0]])
    assert select_best(scores).tolist() == [1, 0]


def test_one_control_takes_the_candidate_nearest_to_the_real_cells():
    assert select_match(torch.tensor([[[5.0], [0.2], [-3.0]]]), torch.tensor([[0.0], [0.5]])).tolist() == [1]


def test_one_candidate_is_no_choice():
    assert select_match(normal(4, 1, 2), normal(10, 2)).tolist() == [0, 0, 0, 0]


def test_two_modes_are_both_kept():
    vectors = torch.tensor([[[-1.0], [1.0]]]).expand(10, -1, -1)
    chosen = select_match(vectors, torch.tensor([[-1.0], [1.0]]))
    assert int(chosen.sum()) == 5


@pytest.mark.parametrize("seed", range(8))
def test_real_cells_among_outliers_are_found_as_by_trying_every_choice(seed):
    reference = normal(50, 2, seed=seed)
    vectors = 6 + normal(4, 3, 2, seed=100 + seed)
    real = torch.tensor([0, 2, 1, 2])
    vectors[torch.arange(4), real] = reference[:4]
    selected = select_match(vectors, reference)
    assert torch.equal(selected, real)
    reached = energy_distance(choices_of(vectors, selected), reference)
    assert reached == pytest.approx(float(every_distance(vectors, reference).min()))


@pytest.mark.parametrize("seed", range(8))
def test_tiny_random_cases_come_close_to_the_best_of_all_choices(seed):
    vectors, reference = normal(4, 3, 2, seed=seed), normal(50, 2, seed=100 + seed)
    every = every_distance(vectors, reference)
    reached = energy_distance(choices_of(vectors, select_match(vectors, reference)), reference)
    assert reached < float(every.quantile(0.15))


@pytest.mark.parametrize("seed", range(8))
def test_no_single_change_improves_the_choice(seed):
    vectors, reference = normal(6, 4, 3, seed=seed), normal(60, 3, seed=100 + seed)
    selected = select_match(vectors, reference, sweeps=50)
    reached = energy_distance(choices_of(vectors, selected), reference)
    for control, candidate in itertools.product(range(6), range(4)):
        changed = selected.clone()
        changed[control] = candidate
        assert energy_distance(choices_of(vectors, changed), reference) >= reached - 1e-9


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.0, 2.0), (0.3, 0.7)])
def test_matching_is_closer_to_the_real_cells_than_the_first_or_the_best(mean, std):
    vectors, reference = mean + std * normal(100, 8, 3), normal(400, 3, seed=1)
    first = torch.zeros(100, dtype=torch.long)
    best = select_best(-vectors.abs().sum(dim=2))
    matched, of_first, of_best = (
        energy_distance(choices_of(vectors, chosen), reference)
        for chosen in (select_match(vectors, reference), first, best)
    )
    assert matched < of_first
    assert matched < of_best


def test_matching_keeps_the_spread_that_the_best_loses():
    vectors, reference = normal(200, 8, 2), normal(400, 2, seed=1)
    best = choices_of(vectors, select_best(-vectors.norm(dim=2)))
    matched = choices_of(vectors, select_match(vectors, reference))
    assert float(best.std()) < 0.5
    assert float(matched.std()) == pytest.approx(1, abs=0.1)


def test_the_inputs_are_not_changed():
    vectors, reference = normal(5, 3, 2), normal(9, 2, seed=1)
    kept = vectors.clone(), reference.clone()
    select_match(vectors, reference)
    assert torch.equal(vectors, kept[0])
    assert torch.equal(reference, kept[1])


# --- rejection ---


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_rejection_takes_the_first_inside_or_else_the_nearest(outside):
    selected = select_reject(torch.tensor(outside))
    for row, chosen in zip(outside, selected.tolist(), strict=True):
        assert row[chosen] == min(row)
        assert chosen == (row.index(0.0) if 0.0 in row else row.index(min(row)))


def test_rejection_maximises_nothing_among_the_accepted():
    """The first of those inside follows the distribution of all that are inside."""
    candidates = normal(4000, 16)
    chosen = choices_of(candidates, select_reject((candidates.abs() - 1).clamp(min=0)))
    inside = candidates[candidates.abs() <= 1]
    assert float(chosen.abs().max()) <= 1
    assert float(chosen.std()) == pytest.approx(float(inside.std()), abs=0.02)
    assert float(chosen.mean()) == pytest.approx(0, abs=0.03)


# --- matching in batches ---


def streamed(match, vectors, reference, batch):
    return torch.cat([match.select(part, reference, "taxol") for part in vectors.split(batch)])


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_a_single_batch_is_matched_jointly(controls, candidates, seed):
    vectors, reference = normal(controls, candidates, 2, seed=seed), normal(20, 2, seed=100 + seed)
    assert torch.equal(StreamingMatch().select(vectors, reference, "taxol"), select_match(vectors, reference))


@pytest.mark.parametrize("batch", [4, 32])
@pytest.mark.parametrize(("mean", "std"), [(0.4, 1.3), (-0.3, 0.8)])
def test_batches_come_within_a_few_percent_of_the_joint_choice(batch, mean, std):
    """Of the way from one sample of each control to the joint choice, in energy distance; the best is far behind."""
    vectors, reference = mean + std * normal(480, 4, 6), normal(300, 6, seed=1)
    distance = {
        name: energy_distance(choices_of(vectors, selected), reference)
        for name, selected in {
            "first": torch.zeros(480, dtype=torch.long),
            "best": select_best(-vectors.norm(dim=2)),
            "joint": select_match(vectors, reference),
            "streamed": streamed(StreamingMatch(window=256), vectors, reference, batch),
        }.items()
    }
    way = distance["first"] - distance["joint"]
    assert distance["streamed"] - distance["joint"] < 0.05 * way
    assert distance["best"] - distance["joint"] > 0.2 * way


def test_what_is_remembered_does_not_grow_with_the_number_of_controls():
    match = StreamingMatch(window=50)
    for seed in range(8):
        match.select(normal(30, 2, 3, seed=seed), normal(20, 3, seed=100), "taxol")
    (remembered,) = match._chosen.values()
    assert remembered.shape == (50, 3)
    assert remembered.untyped_storage().nbytes() == 50 * 3 * 8  # and no view keeps the whole alive


def test_groups_are_matched_apart():
    both, alone = StreamingMatch(), StreamingMatch()
    real = {"taxol": normal(20, 2, seed=1), "DMSO": 3 + normal(20, 2, seed=2)}
    for seed in range(3):
        own, other = 1 + 2 * normal(5, 3, 2, seed=10 + seed), 1 + 2 * normal(5, 3, 2, seed=20 + seed)
        both.select(other, real["DMSO"], "DMSO")
        ours = both.select(own, real["taxol"], "taxol")
        assert torch.equal(ours, alone.select(own, real["taxol"], "taxol"))


def test_a_window_holds_something():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        StreamingMatch(window=0)
