"""Texture features inside a region, against scikit-image."""

import numpy as np
import pytest
from skimage.feature import graycomatrix, graycoprops

from cellfluxrl.evaluation.features.texture import granularity, haralick, local_binary_patterns

ROWS, COLUMNS = np.mgrid[:48, :48]
WHOLE = np.ones((1, 48, 48), dtype=bool)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, size=(3, 48, 48, 2), dtype=np.uint8)


def test_haralick_features_of_a_whole_image_are_those_of_scikit_image(images):
    values = haralick(images, np.ones(images.shape[:3], dtype=bool))
    pairs = graycomatrix(images[1, :, :, 1] // 16, [1, 3], np.arange(4) * np.pi / 4, levels=16, symmetric=True)
    pooled = pairs.sum(axis=3, keepdims=True)
    for k, name in enumerate(["contrast", "dissimilarity", "homogeneity", "ASM", "correlation"]):
        expected = graycoprops(pooled, name)[:, 0]
        np.testing.assert_allclose(values[1, 1, [k, 6 + k]], expected)


def test_haralick_features_see_the_region_only(images):
    mask = np.zeros((3, 48, 48), dtype=bool)
    mask[:, 10:30, 5:40] = True
    changed = np.where(mask[..., None], images, 255 - images)
    np.testing.assert_array_equal(haralick(images, mask), haralick(changed, mask))
    inside = haralick(images[:, 10:30, 5:40], np.ones((3, 20, 35), dtype=bool))
    np.testing.assert_allclose(haralick(images, mask), inside)


def test_entropy_is_in_bits():
    checkerboard = (((ROWS + COLUMNS) % 2) * 255).astype(np.uint8)[None, :, :, None]
    # Of the pairs 1 px apart, those side by side are black-white and white-black, diagonal ones black or white.
    assert haralick(checkerboard, WHOLE)[0, 0, 5] == pytest.approx(2, abs=0.01)
    assert haralick(np.zeros_like(checkerboard), WHOLE)[0, 0, 5] == 0


def test_patterns_are_those_of_the_definition(images):
    mask = np.random.default_rng(1).random((3, 48, 48)) < 0.3
    values = local_binary_patterns(images, mask)
    image = np.pad(images[2, :, :, 0], 1, mode="edge")
    expected = np.zeros(10)
    for row, column in np.argwhere(mask[2]) + 1:
        square = image[row - 1 : row + 2, column - 1 : column + 2] >= image[row, column]
        ring = [*square[0], square[1, 2], *square[2, ::-1], square[1, 0]]
        uniform = sum(ring[k] != ring[k - 1] for k in range(8)) <= 2
        expected[sum(ring) if uniform else 9] += 1
    np.testing.assert_allclose(values[2, 0], expected / mask[2].sum())


@pytest.mark.parametrize(
    ("image", "pattern"),
    [
        ((ROWS == 24) & (COLUMNS == 24), 0),  # a spot
        (COLUMNS == 24, 9),  # a line: two of the neighbours, on opposite sides
        (COLUMNS >= 24, 5),  # an edge
        (ROWS < 99, 8),  # flat
    ],
)
def test_patterns_of_simple_shapes(image, pattern):
    centre = (ROWS == 24) & (COLUMNS == 24)
    values = local_binary_patterns((image * 200).astype(np.uint8)[None, :, :, None], centre[None])
    assert values[0, 0].argmax() == pattern


@pytest.mark.parametrize("radius", [2, 4, 6])
def test_the_granularity_peaks_at_the_size_of_the_spots(radius):
    spots = np.zeros((48, 48), dtype=np.uint8)
    for row, column in ((12, 12), (12, 36), (36, 12), (36, 36)):
        spots[(ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2] = 200
    spectrum = granularity(spots[None, :, :, None], WHOLE)[0, 0]
    # A spot is left by the opening of its own radius, and removed by the next.
    assert spectrum.argmax() == radius
    assert spectrum[radius] == pytest.approx(1)


def test_the_granularity_does_not_depend_on_brightness(images):
    dim = images // 4 * 4
    mask = np.ones(images.shape[:3], dtype=bool)
    np.testing.assert_allclose(granularity(dim // 4, mask), granularity(dim, mask), atol=1e-6)


def test_large_images_are_made_smaller_first():
    small = np.random.default_rng(0).integers(0, 256, size=(2, 48, 48, 3), dtype=np.uint8)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    masks = [np.ones(x.shape[:3], dtype=bool) for x in (small, large)]
    np.testing.assert_allclose(granularity(large, masks[1]), granularity(small, masks[0]), atol=1e-6)


@pytest.mark.parametrize("function", [granularity, haralick, local_binary_patterns])
def test_an_empty_region_has_no_texture(function, images):
    assert np.isnan(function(images, np.zeros((3, 48, 48), dtype=bool))).all()
