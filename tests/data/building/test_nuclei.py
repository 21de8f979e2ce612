"""Nuclei: those of simulated fields with truth, those of real crops, and none where there are none."""

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree
from synthetic_plate import published_rows, write_plate

from cellfluxrl.data.building.fields import read_image
from cellfluxrl.data.building.nuclei import find_nuclei

DIAMETER = 32  # BBBC021's
BORDER = 48
SHAPE = (512, 640)


@pytest.fixture(scope="module")
def simulated_fields(tmp_path_factory) -> list[tuple[np.ndarray, np.ndarray]]:
    """DNA images of untreated, enlarged and shrunken cells with the true centres, the last with dense cells."""
    fields = []
    folder = tmp_path_factory.mktemp("plates")
    for cells, compounds in ((15, [("DMSO", 0.0), ("camptothecin", 1.0), ("emetine", 1.0)]), (60, [("DMSO", 0.0)])):
        rows = published_rows(plate=f"Week1_{cells}", compounds=compounds, wells_per_compound=2, sites=2)
        plate = write_plate(folder, rows, shape=SHAPE, cells_per_field=cells)
        with zipfile.ZipFile(plate.archive) as archive:
            for name in rows["Image_FileName_DAPI"]:
                truth = plate.truth[plate.truth["field"] == name.removesuffix(".tif")]
                image = read_image(archive.read(f"Week1_{cells}/{name}"), name)
                fields.append((image, truth[["row", "column"]].to_numpy()))
    return fields


def nuclei_and_background(positions, shape=(300, 340), background=60.0, brightness=300.0) -> np.ndarray:
    """Discs of the usual diameter, blurred; float."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    discs = np.zeros(shape)
    for row, column in positions:
        discs[(rows - row) ** 2 + (columns - column) ** 2 <= (DIAMETER / 2) ** 2] = brightness
    return background + ndimage.gaussian_filter(discs, 2)


def photograph(light: np.ndarray, seed: int = 0) -> np.ndarray:
    noisy = light + np.sqrt(0.15 * light) * np.random.default_rng(seed).standard_normal(light.shape)
    return np.clip(np.rint(noisy), 0, 65535).astype(np.uint16)


def recall_and_precision(fields, change=lambda image: image) -> tuple[float, float]:
    found, right = [], []
    for image, truth in fields:
        centres = find_nuclei(change(image), DIAMETER)
        inside = ((truth > BORDER) & (truth < np.array(image.shape) - BORDER)).all(axis=1)
        found.append(cKDTree(centres).query(truth[inside])[0] < DIAMETER / 4)
        right.append(cKDTree(truth).query(centres)[0] < DIAMETER / 2)
    return np.concatenate(found).mean(), np.concatenate(right).mean()


def test_simulated_nuclei_are_found(simulated_fields):
    recall, precision = recall_and_precision(simulated_fields)
    assert recall >= 0.98
    assert precision >= 0.97


def test_strong_vignetting_does_not_matter(simulated_fields):
    row, column = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    vignette = 1.4 - 0.4 * (row**2 + column**2)  # 1.4 in the middle, 0.6 in the corners
    recall, precision = recall_and_precision(simulated_fields, lambda image: (image * vignette).astype(np.uint16))
    assert recall >= 0.97
    assert precision >= 0.97


def test_8_bit_images_are_as_good(simulated_fields):
    recall, precision = recall_and_precision(simulated_fields, lambda image: np.minimum(image // 3, 255).astype("u1"))
    assert recall >= 0.97
    assert precision >= 0.97


@given(shift=st.tuples(st.integers(-60, 60), st.integers(-60, 60)), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_shifted_nuclei_are_found_shifted(shift, seed):
    positions = np.array([[90, 100], [90, 136], [200, 120], [150, 230]])
    before = find_nuclei(photograph(nuclei_and_background(positions), seed), DIAMETER)
    after = find_nuclei(photograph(nuclei_and_background(positions + shift), seed), DIAMETER)
    np.testing.assert_allclose(cKDTree(before).query(positions)[0], 0, atol=1.5)
    np.testing.assert_allclose(cKDTree(after).query(positions + shift)[0], 0, atol=1.5)
    assert len(before) == len(after) == len(positions)


@given(scale=st.integers(2, 15), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_brightness_does_not_matter(scale, seed):
    image = photograph(nuclei_and_background([[90, 100], [90, 137], [200, 120]]), seed)
    np.testing.assert_allclose(find_nuclei(image * scale, DIAMETER), find_nuclei(image, DIAMETER), atol=1e-3)


@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    value=st.integers(0, 255),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    diameter=st.floats(4, 200),
)
@settings(max_examples=50, deadline=None)
def test_constant_images_are_empty(shape, value, dtype, diameter):
    centres = find_nuclei(np.full(shape, value, dtype=dtype), diameter)
    assert centres.shape == (0, 2)
    assert centres.dtype == np.float32


@pytest.mark.parametrize("level", [20, 200, 3000])
@pytest.mark.parametrize("slope", [0.0, 0.8])
def test_nothing_is_found_in_noise(level, slope):
    light = level * (1 + slope * np.linspace(-0.5, 0.5, 640) * np.ones((512, 1)))
    for seed in range(3):
        assert len(find_nuclei(photograph(light, seed), DIAMETER)) == 0
    uniform = np.random.default_rng(0).integers(0, level, (512, 640)).astype(np.uint16)
    assert len(find_nuclei(uniform, DIAMETER)) == 0


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), seed=st.integers(0, 999), diameter=st.floats(4, 60))
@settings(max_examples=50, deadline=None)
def test_centres_lie_in_the_image_and_are_sorted(shape, seed, diameter):
    random = np.random.default_rng(seed)
    image = (1000 * np.clip(ndimage.gaussian_filter(random.standard_normal(shape), 5) * 10, 0, 4)).astype(np.uint16)
    centres = find_nuclei(image, diameter)
    assert (centres >= -0.5).all()
    assert (centres <= np.array(shape)).all()
    assert centres.tolist() == sorted(centres.tolist())
    if min(shape) < diameter:
        assert len(centres) == 0


def test_debris_is_left_out():
    image = nuclei_and_background([[90, 100], [200, 120]])
    for row, column in ((40, 40), (150, 40), (250, 250), (40, 250)):
        image[row : row + 8, column : column + 8] += 500
    assert len(find_nuclei(photograph(image), DIAMETER)) == 2


def test_saturated_nuclei_are_found():
    positions = [[90, 100], [90, 138], [200, 120]]
    image = np.minimum(photograph(nuclei_and_background(positions, brightness=9000)), 4095)
    centres = find_nuclei(image, DIAMETER)
    assert len(centres) == 3
    np.testing.assert_allclose(cKDTree(centres).query(positions)[0], 0, atol=1.5)


@pytest.mark.parametrize("diameter", [0, 3.9, float("nan"), float("inf")])
def test_impossible_diameters_are_named(diameter):
    with pytest.raises(ValueError, match=f"at least 4 pixels, got {diameter}"):
        find_nuclei(np.zeros((9, 9), np.uint8), diameter)


def test_real_nuclei_are_found_where_crops_were_centred(bbbc021_dir):
    """Most of the others are crops between two nuclei, or beside the middle of one."""
    distances = []
    for path in sorted(bbbc021_dir.glob("Week*.npz")):
        with np.load(path, allow_pickle=False) as plate:
            dna = plate["image"][plate["compound"] == "DMSO"][::5, ..., 0]
        middle = (np.array(dna.shape[1:]) - 1) / 2
        for crop in dna:
            centres = find_nuclei(crop, DIAMETER)
            distances.append(np.linalg.norm(centres - middle, axis=1).min(initial=np.inf))
    assert np.mean(np.array(distances) <= 6) >= 0.95


def test_a_mosaic_of_real_crops(bbbc021_dir):
    side = 12
    with np.load(sorted(bbbc021_dir.glob("Week*.npz"))[-1], allow_pickle=False) as plate:
        dna = plate["image"][plate["compound"] == "DMSO"][: side**2, ..., 0]
    size = dna.shape[1]
    mosaic = dna.reshape(side, side, size, size).swapaxes(1, 2).reshape(side * size, side * size)
    middles = (np.argwhere(np.ones((side, side))) + 0.5) * size - 0.5
    assert np.mean(cKDTree(find_nuclei(mosaic, DIAMETER)).query(middles)[0] <= 6) >= 0.93


def test_a_real_field_of_other_cells(real_field):
    """Twenty-five nuclei of U2OS cells, counted by eye."""
    for diameter in (28, 32, 36):
        assert abs(len(find_nuclei(real_field, diameter)) - 25) <= 1


@pytest.fixture
def real_field(bbbc021_dir) -> np.ndarray:
    path = bbbc021_dir.parent / "real_fields" / "bbbc022_IXMtest_A02_s9.tif"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return read_image(path, path.name, page=0)
