"""Deliberately bad generators of simulated cells: each is caught by the measure meant for it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.evaluation.features.morphology import morphology_feature_names, morphology_features
from cellfluxrl.evaluation.statistics.distances import kernel_distance
from cellfluxrl.evaluation.statistics.effects import effect_agreement, effects_by_group
from cellfluxrl.evaluation.statistics.neighbours import coverage, memorisation
from cellfluxrl.evaluation.statistics.two_sample import two_sample_test
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

PER_MOA = 25
LABELS = [moa for moa in MOAS for _ in range(PER_MOA)]
NAMES = np.array(morphology_feature_names(["dna", "tubulin", "actin"]))


def measured(pictures: np.ndarray) -> np.ndarray:
    return morphology_features(torch.from_numpy(pictures).float() / 127.5 - 1, WatershedSegmenter())


@pytest.fixture(scope="module")
def real():
    """Features of three sets of real cells, and of controls."""
    sets = {
        name: measured(simulate_cells(LABELS, seed=seed).image) for seed, name in enumerate(("train", "test", "new"))
    }
    return {**sets, "control": measured(simulate_cells([CONTROL] * len(LABELS), seed=9).image)}


@pytest.fixture(scope="module")
def blurred():
    pictures = simulate_cells(LABELS, seed=5).image
    return measured(gaussian_filter(pictures.astype(np.float32), (0, 0, 0.7, 0.7)))


def agreement(generated, real):
    effects = [effects_by_group(x, LABELS, real["control"], MOAS) for x in (real["test"], generated)]
    return effect_agreement(*effects, resamples=100)


def test_new_real_cells_pass_every_measure(real):
    found = agreement(real["new"], real)
    assert found.pearson.value > 0.9
    assert found.same_sign.value > 0.9
    assert found.slope.value == pytest.approx(1, abs=0.15)
    assert memorisation(real["new"], real["train"], real["test"]).p_value > 0.05
    assert two_sample_test(real["new"], real["test"]).p_value > 0.05
    assert coverage(real["new"], real["test"]).value > 0.93


def test_a_copied_control_has_no_effect(real):
    copied = agreement(real["control"], real)
    assert abs(copied.slope.value) < 0.1
    assert copied.pearson.high < 0.3


def test_the_wrong_compounds_effects_do_not_agree(real):
    wrong = agreement(np.roll(real["new"], PER_MOA, axis=0), real)
    assert wrong.pearson.high < agreement(real["new"], real).pearson.low
    # Without the compound nothing is wrong with these cells.
    assert two_sample_test(np.roll(real["new"], PER_MOA, axis=0), real["test"]).p_value > 0.05


def test_half_the_effect_has_half_the_slope(real):
    median = np.median(real["control"], axis=0)
    assert agreement(median + (real["new"] - median) / 2, real).slope.value == pytest.approx(0.5, abs=0.1)


def test_blurred_cells_are_told_apart_by_their_texture_and_not_by_their_size(real, blurred):
    assert two_sample_test(blurred, real["test"]).accuracy.value > 0.95
    in_pixels = [k for k, name in enumerate(NAMES) if "_Texture_" in name or "_Granularity_" in name]
    sizes = [k for k, name in enumerate(NAMES) if name.endswith("AreaShape_Area")]
    assert two_sample_test(blurred[:, in_pixels], real["test"][:, in_pixels]).accuracy.value > 0.95
    assert two_sample_test(blurred[:, sizes], real["test"][:, sizes]).accuracy.value < 0.65


def test_memorised_training_cells_are_caught_by_their_neighbours_alone(real):
    found = memorisation(real["train"], real["train"], real["test"])
    assert found.copies.value == 1
    assert found.p_value < 1e-12
    assert agreement(real["train"], real).pearson.value > 0.9
    assert two_sample_test(real["train"], real["test"]).p_value > 0.05


def test_collapsed_modes_do_not_cover_the_real_cells(real):
    few = np.arange(len(LABELS)) // PER_MOA * PER_MOA + np.arange(len(LABELS)) % 3  # three cells of each mechanism
    collapsed = coverage(real["new"][few], real["test"])
    assert collapsed.high < coverage(real["new"], real["test"]).low
    assert collapsed.value < 0.5


def test_the_kernel_distance_ranks_blur_and_controls_behind_real_cells(real, blurred):
    std = real["train"].std(axis=0)
    scaled = {name: x / std for name, x in {**real, "blurred": blurred}.items()}
    distances = {name: kernel_distance(scaled[name], scaled["test"]) for name in ("new", "control", "blurred")}
    assert distances["new"].low < 0 < distances["new"].high
    assert min(distances["control"].low, distances["blurred"].low) > distances["new"].high
