"""The panel of morphology features, against scikit-image and against what must and must not change it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import perimeter_crofton, regionprops

from cellfluxrl.data.simulated import MOAS, simulate_cells
from cellfluxrl.evaluation.features.morphology import morphology_feature_names, morphology_features
from cellfluxrl.rewards.segmentation.protocol import Masks
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

CHANNELS = ("dna", "tubulin", "actin")
NAMES = morphology_feature_names(CHANNELS)


def as_images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float() / 127.5 - 1


@pytest.fixture(scope="module")
def crops():
    return simulate_cells(list(MOAS), seed=3)


@pytest.fixture(scope="module")
def masks(crops):
    return Masks(crops.nucleus_labels, crops.cell_labels)


@pytest.fixture(scope="module")
def features(crops, masks):
    return columns(morphology_features(as_images(crops.image), masks))


def columns(values: np.ndarray, names=NAMES) -> dict[str, np.ndarray]:
    assert values.shape[1] == len(names)
    return dict(zip(names, values.T, strict=True))


def largest(labels: np.ndarray) -> np.ndarray:
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


# --- what is measured ---


def test_there_are_more_than_forty_features_of_distinct_names():
    assert len(set(NAMES)) == len(NAMES) > 150
    assert len(morphology_feature_names(["dna"])) > 40


def test_the_shape_of_the_largest_nucleus_is_that_of_regionprops(crops, features):
    for n, labels in enumerate(crops.nucleus_labels):
        nucleus = largest(labels)
        expected = regionprops(nucleus.astype(np.uint8))[0]
        assert features["Nucleus_AreaShape_Area"][n] == expected.area
        assert features["Nucleus_AreaShape_Perimeter"][n] == pytest.approx(perimeter_crofton(nucleus, directions=4))
        assert features["Nucleus_AreaShape_Eccentricity"][n] == pytest.approx(expected.eccentricity)
        assert features["Nucleus_AreaShape_Extent"][n] == pytest.approx(expected.extent)
        assert features["Nucleus_AreaShape_MajorAxisLength"][n] == pytest.approx(expected.axis_major_length)
        assert features["Nucleus_AreaShape_MinorAxisLength"][n] == pytest.approx(expected.axis_minor_length)


def test_the_solidity_is_the_share_of_the_convex_hull():
    square = np.zeros((2, 24, 24), np.int32)
    square[:, 4:14, 4:14] = 1
    square[1, 9:14, 9:14] = 0  # a quarter is missing: the hull of pixel centres takes back 4 + 3 + 2 + 1 pixels of it
    values = columns(morphology_features(torch.zeros(2, 3, 24, 24), Masks(square, square)))
    np.testing.assert_allclose(values["Nucleus_AreaShape_Solidity"], [1, 75 / (75 + 10)])


def test_the_cell_is_the_one_around_the_largest_nucleus():
    nuclei, cells = np.zeros((1, 32, 32), np.int32), np.zeros((1, 32, 32), np.int32)
    nuclei[0, 2:4, 2:4], nuclei[0, 20:26, 20:26] = 1, 2
    cells[0, :18, :18], cells[0, 19:28, 19:28] = 1, 2  # the cell of the smaller nucleus is the larger one
    values = columns(morphology_features(torch.zeros(1, 3, 32, 32), Masks(nuclei, cells)))
    assert values["Nucleus_AreaShape_Area"] == 36
    assert values["Cell_AreaShape_Area"] == 81
    assert values["Cell_AreaShape_NucleusShare"] == pytest.approx(36 / 81)
    assert values["Image_Count_Nuclei"] == values["Image_Count_Cells"] == 2
    assert values["Image_AreaOccupied_Cells"] == pytest.approx((18**2 + 81) / 32**2)


def test_intensities_are_those_of_the_pixels_of_the_object(crops, features):
    for n, labels in enumerate(crops.nucleus_labels):
        pixels = crops.image[n, 1][largest(labels)] / 255
        for name, expected in {
            "Mean": pixels.mean(),
            "Std": pixels.std(),
            "Quantile05": np.quantile(pixels, 0.05),
            "Median": np.median(pixels),
            "Quantile95": np.quantile(pixels, 0.95),
        }.items():
            assert features[f"Nucleus_Intensity_{name}_tubulin"][n] == pytest.approx(expected, abs=1e-5)
        dna = crops.image[n, 0][largest(labels)]
        expected = np.corrcoef(dna, pixels)[0, 1]
        assert features["Nucleus_Correlation_dna_tubulin"][n] == pytest.approx(expected, abs=1e-4)


def test_the_light_of_a_channel_is_divided_between_the_rings():
    rows, cols = np.mgrid[:48, :48] - 23.5
    distance = np.hypot(rows, cols)
    disc = Masks((distance < 6).astype(np.int32)[None], (distance < 20).astype(np.int32)[None])
    image = np.stack([distance < 4, distance < 100, distance > 16])[None]  # centre, everywhere, rim
    values = columns(morphology_features(torch.from_numpy(image) * 2.0 - 1, disc))
    shares = {c: [values[f"Cell_RadialDistribution_FracAtD_{k}of4_{c}"][0] for k in range(1, 5)] for c in CHANNELS}
    assert all(sum(share) == pytest.approx(1) for share in shares.values())
    assert shares["dna"][0] > 0.9
    assert shares["actin"][3] == pytest.approx(1)
    np.testing.assert_allclose(shares["tubulin"], np.array([1, 3, 5, 7]) / 16, atol=0.03)


# --- what changes it, and what does not ---


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_changes_nothing(crops, masks, turns):
    turned = Masks(*(np.rot90(m, turns, axes=(1, 2)) for m in (masks.nuclei, masks.cells)))
    images = as_images(crops.image)
    before = morphology_features(images, masks)
    after = morphology_features(torch.rot90(images, turns, dims=(2, 3)), turned)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch(crops, masks):
    images = as_images(crops.image)
    one = morphology_features(images[4:5], Masks(masks.nuclei[4:5], masks.cells[4:5]))
    np.testing.assert_allclose(one[0], morphology_features(images, masks)[4], rtol=1e-6, atol=1e-9)


def test_blur_changes_granularity_and_texture_and_hardly_any_area(crops):
    blurred = ndimage.gaussian_filter(crops.image.astype(np.float32), (0, 0, 1.0, 1.0))
    segmenter = WatershedSegmenter()
    before, after = (columns(morphology_features(as_images(x), segmenter)) for x in (crops.image, blurred))

    def change(name: str) -> float:
        return abs(np.nanmedian(after[name]) / np.nanmedian(before[name]) - 1)

    for channel in CHANNELS:
        assert change(f"Cell_Granularity_1_{channel}") > 0.25
        assert change(f"Cell_Texture_Haralick_contrast_1px_{channel}") > 0.25
        assert change(f"Cell_Texture_LBP_9_{channel}") > 0.25
    assert change("Nucleus_AreaShape_Area") < 0.1
    assert change("Cell_AreaShape_Area") < 0.1


@pytest.mark.parametrize("mechanism", ["DNA damage", "Aurora kinase inhibitors"])
def test_larger_nuclei_are_measured_larger(mechanism):
    crops = simulate_cells(["DMSO"] * 20 + [mechanism] * 20)
    areas = columns(morphology_features(as_images(crops.image), WatershedSegmenter()))["Nucleus_AreaShape_Area"]
    assert np.nanmedian(areas[20:]) > 1.2 * np.nanmedian(areas[:20])


# --- odd input ---


def test_what_a_crop_does_not_have_is_nan():
    cells = np.zeros((2, 24, 24), np.int32)
    cells[:, 4:20, 4:20] = 1
    nuclei = np.zeros_like(cells)
    nuclei[1, 0:3, 0:3] = 1  # outside of the cell
    values = columns(morphology_features(torch.rand(2, 3, 24, 24), Masks(nuclei, cells)))
    for name, (without, outside) in values.items():
        if name.startswith("Image"):
            assert np.isfinite([without, outside]).all()
        else:
            assert np.isnan(without)
            assert np.isnan(outside) == name.startswith("Cell")


def test_a_dark_channel_has_neither_shares_nor_correlations():
    labels = np.zeros((1, 24, 24), np.int32)
    labels[:, 4:20, 4:20] = 1
    values = columns(morphology_features(torch.full((1, 3, 24, 24), -1.0), Masks(labels, labels)))
    undefined = {name.split("_")[1] for name, (value,) in values.items() if np.isnan(value)}
    assert undefined == {"Correlation", "RadialDistribution", "Granularity", "Intensity"}
    assert np.isnan(values["Cell_Intensity_MassDisplacement_dna"])
    assert values["Cell_Intensity_Mean_dna"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.sampled_from([24, 31, 48, 100]), st.integers(0, 3), st.integers(0, 2**16))
def test_any_channels_size_and_labels_will_do(channels, size, count, seed):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.uniform(-1, 1, size=(count, channels, size, size)))
    masks = Masks(*random.integers(0, 4, size=(2, count, size, size)).astype(np.int32))
    names = morphology_feature_names([f"channel {k}" for k in range(channels)])
    values = morphology_features(images, masks)
    assert values.shape == (count, len(names))
    if count:
        assert np.isfinite(values).all()


def test_large_crops_of_many_channels():
    labels = np.zeros((1, 512, 512), np.int32)
    labels[:, 100:300, 150:350] = 1
    values = morphology_features(torch.rand(1, 5, 512, 512), Masks(labels, labels))
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 24), "must be floats of shape"),
        (torch.zeros(2, 3, 24, 24, dtype=torch.uint8), "must be floats of shape"),
        (torch.full((2, 3, 24, 24), 255.0), "got values from 255 to 255"),
        (torch.full((2, 3, 24, 24), torch.nan), "must be finite"),
        (torch.zeros(2, 3, 24, 25), r"nuclei must have shape \(2, 24, 25\)"),
    ],
)
def test_other_images_are_refused(images, message):
    labels = np.zeros((2, 24, 24), np.int32)
    with pytest.raises(ValueError, match=message):
        morphology_features(images, Masks(labels, labels))


def test_real_crops_are_measured(bbbc021_dir):
    from cellfluxrl.data.building.normalization import normalize_plate

    plate = np.load(bbbc021_dir / "Week4_27801.npz", allow_pickle=False)["image"][:200]
    images = as_images(normalize_plate(plate.transpose(0, 3, 1, 2), 48))
    values = morphology_features(images, WatershedSegmenter())
    assert np.isfinite(values).all(axis=1).mean() > 0.95
