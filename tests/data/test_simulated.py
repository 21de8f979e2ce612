"""Simulated crops: reproducible, with ground truth that holds, and with each MoA's headline effect in the pixels."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.data.simulated import (
    CHANNELS,
    DMSO_PHENOTYPE,
    MAX_CELLS,
    MOA_EFFECTS,
    MOAS,
    SimulatedCrops,
    dose_effect,
    simulate_cells,
)

CONDITIONS = ("DMSO", *MOAS)
PER_CONDITION = 60


@pytest.fixture(scope="module")
def crops_by_moa() -> dict[str, SimulatedCrops]:
    """Crops of every condition from the same random numbers, so that differences are the MoA's."""
    return {name: simulate_cells([name] * PER_CONDITION, seed=11) for name in CONDITIONS}


def central_area(crops: SimulatedCrops, labels: str) -> float:
    return float((getattr(crops, labels) == 1).sum(axis=(1, 2)).mean())


def mean_intensity(crops: SimulatedCrops, channel: str, labels: str = "cell_labels") -> float:
    return float(crops.image[:, CHANNELS.index(channel)][getattr(crops, labels) == 1].mean())


def contrast(crops: SimulatedCrops, channel: str, labels: str = "cell_labels") -> float:
    """Mean over crops of the standard deviation over the mean, in the central cell or nucleus."""
    values = [
        image[CHANNELS.index(channel)][mask == 1]
        for image, mask in zip(crops.image, getattr(crops, labels), strict=True)
    ]
    return float(np.mean([v.std() / v.mean() for v in values]))


def solidity_and_eccentricity(crops: SimulatedCrops, labels: str) -> tuple[float, float]:
    """Mean area over convex area (1 = no lobes) and mean eccentricity (0 = round) of the central object."""
    from skimage.measure import regionprops

    regions = [regionprops((mask == 1).astype(np.uint8))[0] for mask in getattr(crops, labels)]
    return float(np.mean([r.solidity for r in regions])), float(np.mean([r.eccentricity for r in regions]))


# ---------------------------------------------------------------------------------------------------------------------
# Reproducibility
# ---------------------------------------------------------------------------------------------------------------------


def assert_same_crops(a: SimulatedCrops, b: SimulatedCrops) -> None:
    for name in ("image", "nucleus_labels", "cell_labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.parameters.keys() == b.parameters.keys()
    for name in a.parameters:
        np.testing.assert_array_equal(a.parameters[name], b.parameters[name])


def test_same_seed_same_crops_and_other_seed_other_crops():
    assert_same_crops(simulate_cells(CONDITIONS, seed=3), simulate_cells(CONDITIONS, seed=3))
    assert not np.array_equal(simulate_cells(["DMSO"], seed=3).image, simulate_cells(["DMSO"], seed=4).image)


def test_an_image_does_not_depend_on_the_rest_of_the_batch():
    long = simulate_cells(CONDITIONS * 2, plate=np.arange(26) % 3, seed=5)
    short = simulate_cells(CONDITIONS[:5], plate=np.arange(5) % 3, seed=5)
    first_five = SimulatedCrops(
        long.image[:5], long.nucleus_labels[:5], long.cell_labels[:5], {k: v[:5] for k, v in long.parameters.items()}
    )
    assert_same_crops(first_five, short)


# ---------------------------------------------------------------------------------------------------------------------
# Ground truth
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    moa=st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=4),
    effect=st.floats(0, 1),
    plate=st.integers(0, 1000),
    image_size=st.sampled_from([16, 33, 48, 68]),
    seed=st.integers(0, 2**31),
)
def test_ground_truth_agrees_with_the_labels(moa, effect, plate, image_size, seed):
    crops = simulate_cells(moa, effect, plate, image_size, seed)
    n = len(moa)
    assert crops.image.shape == (n, 3, image_size, image_size)
    assert crops.image.dtype == crops.cell_labels.dtype == crops.nucleus_labels.dtype == np.uint8
    for i in range(n):
        cells, nuclei = crops.cell_labels[i], crops.nucleus_labels[i]
        count = crops.parameters["n_cells"][i]
        assert set(np.unique(cells[cells > 0])) == set(range(1, count + 1))
        assert 1 <= count <= MAX_CELLS
        np.testing.assert_array_equal(nuclei[nuclei > 0], cells[nuclei > 0])
        found = np.unique(nuclei[nuclei > 0])
        assert len(found) == crops.parameters["n_nuclei"][i]
        assert 1 in found, "the central cell has its nucleus in the crop"
        for name in ("nucleus_radius", "center_row", "mitotic"):
            known = ~np.isnan(crops.parameters[name][i])
            np.testing.assert_array_equal(known, np.arange(MAX_CELLS) < count)


def test_nucleus_radius_is_the_radius_of_the_nucleus_mask(crops_by_moa):
    drawn = crops_by_moa["DMSO"].parameters["nucleus_radius"][:, 0]
    measured = np.sqrt((crops_by_moa["DMSO"].nucleus_labels == 1).sum(axis=(1, 2)) / np.pi)
    assert np.median(np.abs(measured / drawn - 1)) < 0.05


def test_crop_is_centred_on_the_first_nucleus(crops_by_moa):
    for crops in crops_by_moa.values():
        np.testing.assert_allclose(crops.parameters["center_row"][:, 0], 23.5)
        np.testing.assert_allclose(crops.parameters["center_column"][:, 0], 23.5)


def test_a_larger_crop_shows_the_same_cells():
    small = simulate_cells(["DMSO"] * 20, seed=2)
    large = simulate_cells(["DMSO"] * 20, image_size=96, seed=2)
    assert central_area(large, "cell_labels") == pytest.approx(4 * central_area(small, "cell_labels"), rel=0.05)
    # The outlines are the same but for the half pixel that the sampling positions moved.
    same = large.cell_labels[:, ::2, ::2] == small.cell_labels
    assert same.mean() > 0.9


# ---------------------------------------------------------------------------------------------------------------------
# Biology
# ---------------------------------------------------------------------------------------------------------------------


def test_moas_are_those_of_bbbc021():
    assert len(MOAS) == 12
    assert list(MOAS) == sorted(MOAS)
    assert set(MOAS) == set(MOA_EFFECTS)
    for row in MOA_EFFECTS.values():
        assert row.keys() <= DMSO_PHENOTYPE.keys()


@pytest.mark.parametrize("moa", ["Aurora kinase inhibitors", "DNA damage", "DNA replication"])
def test_nuclei_grow(crops_by_moa, moa):
    assert central_area(crops_by_moa[moa], "nucleus_labels") > 1.2 * central_area(
        crops_by_moa["DMSO"], "nucleus_labels"
    )


@pytest.mark.parametrize("moa", ["Aurora kinase inhibitors", "Microtubule stabilizers", "Microtubule destabilizers"])
def test_nuclei_become_lobed(crops_by_moa, moa):
    treated, _ = solidity_and_eccentricity(crops_by_moa[moa], "nucleus_labels")
    control, _ = solidity_and_eccentricity(crops_by_moa["DMSO"], "nucleus_labels")
    assert treated < control - 0.03


@pytest.mark.parametrize(
    ("moa", "smallest", "largest"),
    [
        ("Aurora kinase inhibitors", 1.1, 2.0),
        ("Protein synthesis", 0.3, 0.8),
        ("Microtubule destabilizers", 0.3, 0.85),
        ("Actin disruptors", 0.3, 0.85),
        ("Cholesterol-lowering", 0.3, 0.85),
        ("Kinase inhibitors", 1.0, 1.4),
    ],
)
def test_cell_size(crops_by_moa, moa, smallest, largest):
    ratio = central_area(crops_by_moa[moa], "cell_labels") / central_area(crops_by_moa["DMSO"], "cell_labels")
    assert smallest < ratio < largest


def test_fewer_cells_after_dna_damage_and_more_in_epithelial_sheets(crops_by_moa):
    count = {name: crops.parameters["n_cells"].mean() for name, crops in crops_by_moa.items()}
    assert count["DNA damage"] < count["DMSO"] - 1
    assert count["Epithelial"] > count["DMSO"] + 0.5


def test_cell_shape(crops_by_moa):
    eccentricity = {
        name: solidity_and_eccentricity(crops_by_moa[name], "cell_labels")[1]
        for name in ("DMSO", "Cholesterol-lowering", "Epithelial", "Microtubule destabilizers")
    }
    assert eccentricity["Cholesterol-lowering"] > eccentricity["DMSO"] + 0.05
    assert eccentricity["Epithelial"] < eccentricity["DMSO"] - 0.05
    assert eccentricity["Microtubule destabilizers"] < eccentricity["DMSO"] - 0.03


def test_actin(crops_by_moa):
    assert contrast(crops_by_moa["Actin disruptors"], "actin") > 1.1 * contrast(crops_by_moa["DMSO"], "actin")
    assert mean_intensity(crops_by_moa["Epithelial"], "actin") > 1.1 * mean_intensity(crops_by_moa["DMSO"], "actin")
    assert mean_intensity(crops_by_moa["Kinase inhibitors"], "actin") < mean_intensity(crops_by_moa["DMSO"], "actin")


def test_tubulin(crops_by_moa):
    control = contrast(crops_by_moa["DMSO"], "tubulin")
    assert contrast(crops_by_moa["Microtubule stabilizers"], "tubulin") > 1.2 * control
    assert contrast(crops_by_moa["Microtubule destabilizers"], "tubulin") < 0.95 * control
    # One bright spot: the brightest pixels gain more than the mean.
    degraded, dmso = crops_by_moa["Protein degradation"], crops_by_moa["DMSO"]
    peak = [
        np.percentile(c.image[:, 1][c.cell_labels == 1], 98) - mean_intensity(c, "tubulin") for c in (degraded, dmso)
    ]
    assert peak[0] > 1.2 * peak[1]


def test_dna_intensity(crops_by_moa):
    def dna(name):
        return mean_intensity(crops_by_moa[name], "dna", "nucleus_labels")

    assert dna("DNA replication") < 0.95 * dna("DMSO")
    assert dna("Eg5 inhibitors") > 1.1 * dna("DMSO")
    smooth, control = (contrast(crops_by_moa[n], "dna", "nucleus_labels") for n in ("DNA replication", "DMSO"))
    assert smooth < control


def test_small_cells_are_brighter(crops_by_moa):
    for channel in ("tubulin", "actin"):
        treated = mean_intensity(crops_by_moa["Protein synthesis"], channel)
        assert treated > 1.1 * mean_intensity(crops_by_moa["DMSO"], channel)


def test_eg5_inhibitors_arrest_cells_in_mitosis(crops_by_moa):
    arrested = {name: crops_by_moa[name].parameters["mitotic"][:, 0].mean() for name in ("Eg5 inhibitors", "DMSO")}
    assert arrested["Eg5 inhibitors"] > 0.6
    assert arrested["DMSO"] < 0.15


@pytest.mark.parametrize("moa", MOAS)
def test_without_effect_a_treated_cell_is_the_control_cell(moa):
    np.testing.assert_array_equal(
        simulate_cells([moa] * 3, effect=0, seed=9).image, simulate_cells(["DMSO"] * 3, seed=9).image
    )


def test_nuclei_grow_with_the_dose():
    areas = [central_area(simulate_cells(["DNA damage"] * 40, e, seed=1), "nucleus_labels") for e in (0, 0.3, 0.6, 1)]
    assert areas == sorted(areas)
    assert areas[-1] > 1.2 * areas[0]


# ---------------------------------------------------------------------------------------------------------------------
# Plates and exposure
# ---------------------------------------------------------------------------------------------------------------------


def test_plates_change_the_photograph_and_not_the_cells():
    first, second = (simulate_cells(["DMSO"] * 20, plate=p, seed=4) for p in (0, 1))
    np.testing.assert_array_equal(first.cell_labels, second.cell_labels)
    means = [crops.image.mean(axis=(0, 2, 3)) for crops in (first, second)]
    assert np.abs(means[0] / means[1] - 1).max() > 0.02
    assert second.parameters["plate"].tolist() == [1] * 20


def test_exposure_fills_the_range_and_rarely_saturates(crops_by_moa):
    images = np.concatenate([crops.image for crops in crops_by_moa.values()])
    for channel in range(3):
        low, high = np.percentile(images[:, channel], [2, 99.5])
        assert low < 40
        assert high > 180
        assert (images[:, channel] == 255).mean() < 0.02


# ---------------------------------------------------------------------------------------------------------------------
# Doses and errors
# ---------------------------------------------------------------------------------------------------------------------


@given(dose=st.floats(0, 1e300), half=st.floats(1e-6, 1e6))
@settings(derandomize=True)
def test_dose_effect_is_a_fraction_that_rises_with_the_dose(dose, half):
    assert 0 <= dose_effect(dose, half) <= dose_effect(2 * dose, half) <= 1


def test_dose_effect_at_landmarks():
    np.testing.assert_allclose(dose_effect(np.array([0, 3, 1e9]), 3.0), [0, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize("arguments", [(-1, 3), (float("nan"), 3), (1, 0), (1, float("nan"))])
def test_dose_effect_refuses_impossible_doses(arguments):
    with pytest.raises(ValueError, match="uM, got"):
        dose_effect(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"moa": ["Actin disruptor"]}, "unknown MoA 'Actin disruptor'; did you mean 'Actin disruptors'? 13 known"),
        ({"moa": "DMSO"}, "use ['DMSO']"),
        ({"moa": []}, "moa is empty"),
        ({"effect": 1.5}, "effect must be in [0, 1], got 1.5"),
        ({"effect": [0.5, -0.25]}, "effect must be in [0, 1], got -0.25"),
        ({"effect": float("nan")}, "effect must be in [0, 1], got nan"),
        ({"effect": [0.1, 0.2, 0.3]}, "one per image, (2,); got shape (3,)"),
        ({"plate": -1}, "plate must be integers of at least 0, got [-1, -1]"),
        ({"plate": 0.5}, "plate must be integers of at least 0"),
        ({"image_size": 0}, "image_size must be an integer of at least 16, got 0"),
        ({"image_size": 48.0}, "image_size must be an integer of at least 16, got 48.0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        simulate_cells(**({"moa": ["DMSO", "DMSO"]} | arguments))
