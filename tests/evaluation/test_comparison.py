from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from cellfluxrl import MoAClassifier
from cellfluxrl.evaluation.comparison import (
    COLUMN_NOTES,
    COLUMNS,
    PairedDifference,
    Scored,
    choose,
    paired_difference,
    score_images,
    table_row,
)
from cellfluxrl.pipelines.selection import select_match
from cellfluxrl.training.condition_use import condition_use


def scored(count, generator, dim=6):
    def values(*shape):
        return torch.randn(*shape, generator=generator)

    return Scored(
        images=torch.arange(count).view(count, 1, 1, 1).float(),
        rewards={name: values(count) for name in COLUMNS[:8]},
        vectors=values(count, dim),
        outside=values(count).abs(),
        judge=torch.rand(count, generator=generator),
        judge_features=values(count, 4),
        image_features=values(count, 5),
    )


def suite_of(**real_appearance):
    return SimpleNamespace(real_appearance=real_appearance.__getitem__)


def rows_of(chosen):
    return chosen.images.flatten().long().tolist()


# --- the table ---


def test_every_column_is_explained():
    assert set(COLUMN_NOTES) == set(COLUMNS)


def test_a_row_has_every_column_with_its_error(generator):
    generated, real = scored(60, generator), scored(80, generator)
    row = table_row(generated, real)
    assert set(row) == set(COLUMNS)
    for value, error in row.values():
        assert np.isfinite(value)
        assert error > 0
    for name in ("combined", "moa"):
        values = generated.rewards[name]
        assert row[name] == pytest.approx((float(values.mean()), float(values.std()) / 60**0.5))


def test_real_cells_against_themselves_have_no_distance(generator):
    real = scored(80, generator)
    row = table_row(real, real)
    for name in ("frechet", "frechet_image", "wasserstein"):
        assert row[name][0] == pytest.approx(0, abs=1e-6)
    assert row["spread"][0] == pytest.approx(1)


def test_images_are_measured_by_the_suite_and_by_the_judge(suite, controls):
    torch.manual_seed(0)
    judge = MoAClassifier(moas=["DNA damage", "DMSO"], width=4).eval()
    moa = ["DMSO", "DNA damage", "DMSO"]
    measured = score_images(controls, moa, suite, judge)
    probabilities = judge(controls).logits.softmax(dim=1)
    torch.testing.assert_close(measured.judge, probabilities[[0, 1, 2], [1, 0, 1]])
    assert torch.equal(measured.rewards["combined"], suite(controls, moa=moa)["combined"])
    assert torch.equal(measured.vectors[:, :6], suite.statistics(controls, moa))
    assert not any(t.requires_grad for t in (measured.judge, measured.judge_features, measured.vectors))


# --- choosing ---


def test_the_first_candidate_is_no_choice(generator):
    candidates = scored(12, generator)
    for selection in ("best", "match"):
        assert rows_of(choose(candidates, ["a"] * 3, 1, selection, suite_of(a=torch.zeros(5, 6)))) == [0, 4, 8]


def test_another_selection_is_refused(generator):
    with pytest.raises(ValueError, match="did you mean 'match'"):
        choose(scored(4, generator), ["a"], 2, "macth", suite_of())


def test_the_best_of_the_first_candidates_is_taken_with_all_that_was_measured(generator):
    candidates = scored(12, generator)
    chosen = choose(candidates, ["a"] * 3, 2, "best", suite_of())
    best = candidates.rewards["combined"].view(3, 4)[:, :2].argmax(dim=1)
    rows = torch.tensor([0, 4, 8]) + best
    assert rows_of(chosen) == rows.tolist()
    assert torch.equal(chosen.vectors, candidates.vectors[rows])
    assert torch.equal(chosen.rewards["moa"], candidates.rewards["moa"][rows])


def test_matching_is_done_for_each_mechanism_with_its_own_reference(generator):
    candidates, moa = scored(5 * 4, generator), ["a", "b", "a", "a", "b"]
    references = {name: torch.randn(30, 6, generator=generator) for name in "ab"}
    chosen = choose(candidates, moa, 4, "match", suite_of(**references))
    vectors = candidates.vectors.view(5, 4, 6)
    for name, rows in (("a", [0, 2, 3]), ("b", [1, 4])):
        expected = [4 * m + int(k) for m, k in zip(rows, select_match(vectors[rows], references[name]), strict=True)]
        assert [rows_of(chosen)[m] for m in rows] == expected


# --- differences ---


def test_with_one_sample_a_control_it_is_the_paired_t_test(generator):
    base = torch.randn(40, generator=generator)
    ours = base + 0.2 + 0.5 * torch.randn(40, generator=generator)
    difference = paired_difference(ours, base, controls=40)
    assert difference.mean == pytest.approx(float((ours - base).mean()))
    assert difference.standard_errors == pytest.approx(ttest_rel(ours, base).statistic, rel=1e-4)


def test_the_samples_of_a_control_are_averaged_first(generator):
    per_control = torch.randn(10, generator=generator)
    ours = per_control.repeat_interleave(5)
    difference = paired_difference(ours, torch.zeros(50), controls=10)
    assert difference.mean == pytest.approx(float(per_control.mean()))
    assert difference.standard_error == pytest.approx(float(per_control.std()) / 10**0.5)


def test_no_difference_is_no_standard_errors_away():
    assert paired_difference(torch.ones(4), torch.ones(4), 4) == PairedDifference(0.0, 0.0)
    assert PairedDifference(0.0, 0.0).standard_errors == 0


# --- use of the condition ---


class Toy(torch.nn.Module):
    """Moves every pixel by the first entry of the condition, times `use`."""

    def __init__(self, use: float):
        super().__init__()
        self.use = use

    def forward(self, sample, time, condition, return_dict=False):
        shift = 0 if condition is None else self.use * condition[:, 0].view(-1, 1, 1, 1)
        return (torch.ones_like(sample) + shift,)


def use_of(model, condition, generator):
    sample = torch.zeros(len(condition), 3, 4, 4)
    velocity = 1 + condition[:, 0].view(-1, 1, 1, 1) + 0.1 * torch.randn(sample.shape, generator=generator)
    return condition_use(model, sample, torch.zeros(len(condition)), condition, velocity, generator)


def test_a_network_that_ignores_the_compound_is_found_out(generator):
    use = use_of(Toy(0.0), torch.randn(40, 2, generator=generator), generator)
    assert use["swapped_cosine"] == pytest.approx(1)
    assert use["swapped_loss_increase"] == pytest.approx(0)


def test_a_network_that_uses_the_compound_loses_by_a_swap(generator):
    use = use_of(Toy(1.0), torch.randn(40, 2, generator=generator), generator)
    assert use["swapped_cosine"] < 0.9
    assert use["swapped_loss_increase"] > 10


def test_only_cells_whose_compound_changed_are_compared(generator):
    condition = torch.zeros(200, 1)
    condition[:100] = 2.0
    use = use_of(Toy(1.0), condition, generator)
    # Swapped between shifts of 0 and 2, the error is 4 instead of the noise's 0.01.
    assert use["swapped_loss_increase"] == pytest.approx(400, rel=0.1)


def test_a_single_compound_is_swapped_for_none(generator):
    use = use_of(Toy(1.0), torch.full((20, 1), 3.0), generator)
    assert use["swapped_loss_increase"] == pytest.approx(900, rel=0.2)
