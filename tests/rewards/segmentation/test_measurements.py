"""Measurements of drawn masks, against their known values and against scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import perimeter_crofton

from cellfluxrl.rewards.segmentation.measurements import STATISTICS, measure, object_areas, object_perimeters
from cellfluxrl.rewards.segmentation.protocol import Masks

ROWS, COLUMNS = np.mgrid[:48, :48]
label_images = arrays(np.int32, (2, 7, 6), elements=st.integers(0, 3))


def disc(row, column, radius):
    return (np.hypot(ROWS - row, COLUMNS - column) < radius).astype(np.int32)


def measure_one(nuclei, cells):
    return {name: value[0] for name, value in measure(Masks(nuclei[None], cells[None])).items()}


def test_values_are_float64_for_every_image():
    values = measure(Masks(np.zeros((3, 8, 8), np.int32), np.zeros((3, 8, 8), np.int32)))
    assert set(values) == {"containment", *STATISTICS}
    assert all(value.shape == (3,) and value.dtype == np.float64 for value in values.values())


@pytest.mark.parametrize("radius", [6, 8.3, 11, 15.5, 20])
def test_disc_is_round(radius):
    """On average over positions within a pixel: a single digital disc may be off by 0.06."""
    offsets = np.random.default_rng(0).random((40, 2))
    discs = np.stack([disc(24 + row, 24 + column, radius) for row, column in offsets])
    values = measure(Masks(discs, discs))
    assert values["roundness"].mean() == pytest.approx(1, abs=0.02)
    assert abs(values["roundness"] - 1).max() < 0.07
    assert values["nucleus_size"].mean() == pytest.approx(np.pi * radius**2, rel=0.01)


def test_ellipse_is_less_round_than_a_disc():
    ellipse = (((ROWS - 24) / 6) ** 2 + ((COLUMNS - 24) / 18) ** 2 <= 1).astype(np.int32)
    # Ramanujan's perimeter of an ellipse with half-axes 6 and 18
    perimeter = np.pi * (3 * 24 - np.sqrt((3 * 6 + 18) * (6 + 3 * 18)))
    assert measure_one(ellipse, ellipse)["roundness"] == pytest.approx(4 * np.pi**2 * 6 * 18 / perimeter**2, rel=0.04)


def test_counts_and_largest_sizes():
    nuclei = disc(12, 12, 6) + 2 * disc(34, 34, 8)
    cells = disc(12, 12, 9) + 2 * disc(34, 34, 12)
    values = measure_one(nuclei, cells)
    assert values["nucleus_count"] == values["cytoplasm_count"] == 2
    assert values["nucleus_size"] == disc(34, 34, 8).sum()
    assert values["cytoplasm_size"] == disc(34, 34, 12).sum()
    assert values["containment"] == 1


def test_containment_is_the_share_inside_any_cell():
    nuclei, cells = np.zeros((2, 10, 10), np.int32)
    nuclei[2:4, 0:10] = 1
    cells[:, 0:3] = 1
    cells[:, 8:10] = 2
    assert measure_one(nuclei, cells)["containment"] == pytest.approx(0.5)


def test_nuclei_at_the_border_count_for_roundness_only_where_there_are_no_others():
    whole, cut = disc(24, 24, 8), disc(0, 40, 6)
    cell = disc(24, 24, 60)
    assert measure_one(whole + 2 * cut, cell)["roundness"] == measure_one(whole, cell)["roundness"]
    assert 0 < measure_one(cut, cell)["roundness"] < 0.95


def test_an_image_without_nuclei_measures_zero():
    values = measure_one(np.zeros((48, 48), np.int32), disc(24, 24, 10))
    assert values["cytoplasm_count"] == 1
    assert [values[n] for n in ("containment", "roundness", "nucleus_size", "nucleus_count")] == [0, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(labels=label_images)
def test_perimeters_and_areas_are_those_of_scikit_image(labels):
    perimeters, areas = object_perimeters(labels), object_areas(labels)
    for n, image in enumerate(labels):
        for k in range(1, labels.max() + 1):
            assert perimeters[n, k - 1] == pytest.approx(perimeter_crofton(image == k, directions=4))
            assert areas[n, k - 1] == (image == k).sum()


@settings(max_examples=50, deadline=None)
@given(nuclei=label_images, cells=label_images, turns=st.integers(1, 3), flip=st.booleans())
def test_rotation_and_reflection_change_nothing(nuclei, cells, turns, flip):
    def move(labels):
        turned = np.rot90(labels, turns, axes=(1, 2))
        return turned[:, ::-1] if flip else turned

    before, after = measure(Masks(nuclei, cells)), measure(Masks(move(nuclei), move(cells)))
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-9, err_msg=name)


@settings(max_examples=50, deadline=None)
@given(nuclei=label_images, cells=label_images)
def test_values_do_not_depend_on_the_batch(nuclei, cells):
    together = measure(Masks(nuclei, cells))
    for i in range(2):
        alone = measure(Masks(nuclei[i : i + 1], cells[i : i + 1]))
        for name in together:
            assert alone[name][0] == pytest.approx(together[name][i]), name


@pytest.mark.parametrize(
    ("nuclei", "cells", "message"),
    [
        (np.zeros((1, 8, 8)), np.zeros((1, 8, 8), np.int32), "nuclei .* float64"),
        (np.zeros((8, 8), np.int32), np.zeros((1, 8, 8), np.int32), r"nuclei .* \(8, 8\)"),
        (np.zeros((1, 8, 8), np.int32), np.full((1, 8, 8), -1), "cells .* -1"),
        (np.zeros((1, 8, 8), np.int32), np.zeros((2, 8, 8), np.int32), r"\(1, 8, 8\) and \(2, 8, 8\)"),
    ],
)
def test_bad_masks_are_refused_by_value(nuclei, cells, message):
    with pytest.raises(ValueError, match=message):
        measure(Masks(nuclei, cells))
