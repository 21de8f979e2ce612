"""The test of the tests: an evaluation tells deliberately bad generators from new real cells, each by its measure."""

import numpy as np
import pytest
import torch
from fitted import as_dataset, fitted_classifier, pictures
from scipy.ndimage import gaussian_filter

from cellfluxrl import RewardSuite
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.evaluation.columns import REAL_ROW
from cellfluxrl.evaluation.evaluate import Images, evaluate
from cellfluxrl.evaluation.features.extractors import classifier_extractor
from cellfluxrl.evaluation.measuring import Evaluators
from cellfluxrl.pipelines.selection import select_best
from cellfluxrl.rewards.segmentation.otsu import OtsuSegmenter

PER_MOA = 20
CANDIDATES = 5
LABELS = [moa for moa in MOAS for _ in range(PER_MOA)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite():
    names = [moa for moa in MOAS for _ in range(40)]
    return RewardSuite.fit(as_dataset(simulate_cells(names, seed=77), names), fitted_classifier(8, seed=0))


def over_optimised(suite):
    """The best of several real cells by the combined reward: all near the mean."""
    repeated = [moa for moa in LABELS for _ in range(CANDIDATES)]
    candidates = pictures(repeated, seed=6)
    combined = suite(candidates, moa=repeated)["combined"].view(-1, CANDIDATES)
    return candidates.reshape(-1, CANDIDATES, *candidates.shape[1:])[np.arange(len(LABELS)), select_best(combined)]


@pytest.fixture(scope="module")
def results(suite):
    torch.manual_seed(0)
    fresh, training = pictures(LABELS, seed=5), pictures(LABELS, seed=4)
    three = np.arange(len(LABELS)) // PER_MOA * PER_MOA + np.arange(len(LABELS)) % 3
    control = pictures([CONTROL] * len(LABELS), seed=1)
    generators = {
        "fresh": fresh,
        "blurred": gaussian_filter(fresh.astype(np.float32), (0, 0, 0.7, 0.7)).round().astype(np.uint8),
        "collapsed": fresh[three],
        "wrong compound": np.roll(fresh, PER_MOA, axis=0),
        "copied control": pictures([CONTROL] * len(LABELS), seed=8),
        "memorised": training,
        "over-optimised": over_optimised(suite),
    }
    images = Images(
        control=control,
        real=pictures(LABELS, seed=2),
        reference=pictures(LABELS, seed=3),
        generated={name: cells[:, None] for name, cells in generators.items()},
        moa=LABELS,
        compound=LABELS,
        reference_moa=LABELS,
        reference_compound=LABELS,
        training=training,
    )
    judge = fitted_classifier(10, seed=1)
    return evaluate(images, Evaluators(suite, classifier_extractor(judge, "held out"), OtsuSegmenter(), judge))


def apart(results, column, low, high):
    """Whether the whole interval of one row lies below that of another."""
    return results.rows[low][column].high < results.rows[high][column].low


def failed(results, model):
    return {
        claim.column
        for claim in results.claims
        if claim.model == model and claim.verdict == "fails" and not claim.against
    }


def test_new_real_cells_fail_nothing_and_are_like_the_real_row(results):
    assert failed(results, "fresh") == set()
    for column in results.columns:
        fresh, real = results.rows["fresh"][column], results.rows[REAL_ROW][column]
        assert max(fresh.low, real.low) <= min(fresh.high, real.high), column


def test_new_real_cells_hold_every_claim_against_their_controls(results):
    held = {claim.column for claim in results.claims if claim.model == "fresh" and claim.verdict == "holds"}
    assert {"accuracy_judge", "kernel", "wasserstein", "effect_error", "effect_correlation"} <= held


def test_blur_is_caught_by_texture(results):
    assert {"two_sample", "coverage"} <= failed(results, "blurred")
    assert apart(results, "effect_error", "fresh", "blurred")


def test_mode_collapse_is_caught_by_coverage(results):
    assert "coverage" in failed(results, "collapsed")
    assert results.rows["collapsed"]["coverage"].value < 0.7


def test_wrong_compounds_are_caught_by_effects_and_classifier_only(results):
    for column in ("accuracy_judge", "effect_correlation", "effect_sign"):
        assert apart(results, column, "wrong compound", "fresh"), column
    # Nothing is wrong with these cells but what they are called.
    assert not failed(results, "wrong compound") & {"two_sample", "coverage", "copies", "combined"}
    kernel = results.rows["wrong compound"]["kernel"]
    assert kernel.low < 0 < kernel.high


def test_copied_controls_have_no_effect_and_no_mechanism(results):
    assert abs(results.rows["copied control"]["effect_slope"].value) < 0.2
    assert apart(results, "accuracy_judge", "copied control", "fresh")
    assert apart(results, "kernel", "fresh", "copied control")
    assert {"two_sample", "effect_slope"} <= failed(results, "copied control")


def test_memorised_cells_are_caught_by_their_neighbours_alone(results):
    assert results.rows["memorised"]["copies"].value == 1
    assert failed(results, "memorised") == {"copies"}


def test_over_optimised_cells_win_the_rewards_and_lose_diversity(results):
    assert apart(results, "combined", "fresh", "over-optimised")
    combined = {name: row["combined"].value for name, row in results.rows.items()}
    assert max(combined, key=combined.get) == "over-optimised"
    # By a segmenter that they were not chosen with.
    assert failed(results, "over-optimised") == {"combined", "spread_within"}
    assert results.rows["over-optimised"]["spread_within"].value < 0.9


@pytest.mark.parametrize("model", ["blurred", "collapsed", "wrong compound", "copied control"])
def test_new_real_cells_win_the_paired_comparison(results, model):
    held_out = [c for c in results.claims if (c.model, c.against) == ("fresh", model) and not c.optimised]
    assert "fails" not in {claim.verdict for claim in held_out}
    assert "holds" in {claim.verdict for claim in held_out}


def test_nothing_else_but_the_check_for_copies_tells_memorised_cells_from_new_ones(results):
    assert {test.adjusted >= 0.05 for test in results.paired[("fresh", "memorised")].values()} == {True}
