"""Illumination: estimated from a plate whose vignette is known, and divided out of crops as out of whole images."""

import io
import zipfile

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from synthetic_plate import CHANNEL_COLUMNS, published_rows, write_plate

from cellfluxrl.data.building.illumination import block_mean, crop_corners, illumination_at, illumination_function


def mean_field(rows, plate, channel: int, factor: int) -> np.ndarray:
    folder = rows["Image_Metadata_Plate_DAPI"].iloc[0]
    with zipfile.ZipFile(plate.archive) as archive:
        contents = [archive.read(f"{folder}/{name}") for name in rows[f"Image_FileName_{CHANNEL_COLUMNS[channel]}"]]
    return np.mean([block_mean(tifffile.imread(io.BytesIO(content)), factor) for content in contents], axis=0)


def uncorrected_and_left(rows, plate, channel: int, factor: int, width: int) -> tuple[float, float]:
    """Relative standard deviation of the light before and after correction."""
    truth = block_mean((10000 * plate.illumination[channel, 1]).astype(np.uint16), factor)
    estimate = illumination_function(mean_field(rows, plate, channel, factor), sigma=width / factor / 8)
    assert np.quantile(estimate, 0.02) == pytest.approx(1, rel=1e-3)
    left = estimate / truth
    return truth.std() / truth.mean(), left.std() / left.mean()


@pytest.fixture(scope="module")
def small_plate(tmp_path_factory):
    """Forty fields of a quarter of the usual area, so that every cell is a larger part of the mean."""
    rows = published_rows(compounds=[("DMSO", 0.0), ("taxol", 0.3)], wells_per_compound=20, sites=1)
    return rows, write_plate(tmp_path_factory.mktemp("plate"), rows, shape=(512, 640), cells_per_field=12)


@pytest.mark.parametrize("channel", range(3))
def test_a_known_vignette_is_found_on_small_fields(small_plate, channel):
    uncorrected, left = uncorrected_and_left(*small_plate, channel, factor=8, width=640)
    assert uncorrected > 0.1
    assert left < 0.05


@pytest.mark.slow
def test_a_known_vignette_is_found_within_two_per_cent(tmp_path):
    """Sixty fields, which is what one site of one plate of BBBC021 has; and a third of them."""
    conditions = [("DMSO", 0.0), ("taxol", 0.3), ("cytochalasin B", 1.0)]
    rows = published_rows(compounds=conditions, wells_per_compound=20, sites=1)
    plate = write_plate(tmp_path, rows)
    for channel in range(3):
        uncorrected, left = uncorrected_and_left(rows, plate, channel, factor=16, width=1280)
        assert uncorrected > 0.1
        assert left < 0.02
        assert uncorrected_and_left(rows[::3], plate, channel, factor=16, width=1280)[1] < 0.035


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    factor=st.integers(1, 50),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_block_means_are_those_of_the_blocks(shape, factor, dtype, seed):
    image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    means = block_mean(image, factor)
    assert means.dtype == np.float32
    assert means.shape == tuple(-(-length // factor) for length in shape)
    for row, column in np.ndindex(means.shape):
        block = image[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert means[row, column] == pytest.approx(block.mean(), rel=1e-6)


def test_bright_blocks_do_not_overflow():
    assert block_mean(np.full((600, 600), 65535, dtype=np.uint16), 600).tolist() == [[65535.0]]


@pytest.mark.parametrize("sigma", [0.5, 3, 30])
def test_light_that_falls_off_linearly_is_found_exactly(sigma):
    """Also at the borders, where a Gaussian filter would bend it."""
    row, column = np.mgrid[:20, :30]
    light = 100 + 2 * row + 3 * column
    function = illumination_function(light, sigma)
    np.testing.assert_allclose(function / function.mean(), light / light.mean(), rtol=1e-4)


@given(scale=st.floats(0.01, 1e4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_function_does_not_depend_on_the_brightness(scale, seed):
    mean = np.random.default_rng(seed).uniform(50, 100, (9, 12))
    np.testing.assert_allclose(illumination_function(scale * mean, 2), illumination_function(mean, 2), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2)])
def test_tiny_fields(shape):
    np.testing.assert_allclose(illumination_function(np.full(shape, 9.0), 3), 1, rtol=1e-5)


def test_a_lightless_corner_does_not_amplify_noise_without_limit():
    mean = np.full((30, 40), 100.0)
    mean[:4, :4] = 0
    assert illumination_function(mean, 1).min() == 0.5


@given(
    shape=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    factor=st.integers(1, 9),
    crop_size=st.integers(1, 15),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_correcting_crops_is_correcting_the_image_and_cropping(shape, factor, crop_size, seed):
    random = np.random.default_rng(seed)
    image = random.integers(1, 4096, shape).astype(np.uint16)
    function = illumination_function(block_mean(image, factor), sigma=2)
    rows, columns = ((np.arange(length) + 0.5) / factor - 0.5 for length in shape)
    grid = np.meshgrid(rows, columns, indexing="ij")
    whole = image / ndimage.map_coordinates(function, grid, order=1, mode="nearest")

    centres = random.uniform(8, np.array(shape) - 9, (5, 2))
    corners = crop_corners(centres, crop_size)
    windows = [(slice(top, top + crop_size), slice(left, left + crop_size)) for top, left in corners]
    crops = np.stack([image[window] for window in windows])
    corrected = crops / illumination_at(function, centres, crop_size, factor)
    assert corrected.dtype == np.float32
    np.testing.assert_allclose(corrected, np.stack([whole[window] for window in windows]), rtol=1e-4)


def test_no_crops():
    assert illumination_at(np.ones((3, 4)), np.empty((0, 2)), 8, 16).shape == (0, 8, 8)


def test_a_crop_is_centred_on_its_nucleus():
    image = np.zeros((50, 60))
    image[20, 31] = 1
    ((top, left),) = crop_corners(np.array([[20.4, 30.6]]), 9)
    assert image[top : top + 9, left : left + 9][4, 4] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block_mean(np.zeros((3, 4, 4), np.uint8), 2), r"\(3, 4, 4\)"),
        (lambda: block_mean(np.zeros((0, 4), np.uint8), 2), r"\(0, 4\)"),
        (lambda: block_mean(np.zeros((4, 4)), 2), "float64"),
        (lambda: block_mean(np.zeros((4, 4), np.uint8), 0), "got 0"),
        (lambda: illumination_function(np.zeros((4, 4)), 2), "not dark"),
        (lambda: illumination_function(np.full((4, 4), np.nan), 2), "finite"),
        (lambda: illumination_function(np.ones((4, 4)), 0), "sigma must be above 0"),
    ],
)
def test_unusable_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
