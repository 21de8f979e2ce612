import itertools

import pytest
import torch

from cellfluxrl.evaluation.selection import select_best, select_match


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
