"""The second segmenter finds simulated cells, each image by itself, and is another one than the default."""

import numpy as np
import pytest

from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.otsu import OtsuSegmenter
from cellfluxrl.rewards.segmentation.protocol import Masks, make_segmenter
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

NAMES = [name for name in (CONTROL, *MOAS) for _ in range(10)]


@pytest.fixture(scope="module")
def crops():
    return simulate_cells(NAMES, seed=3)


@pytest.fixture(scope="module")
def images(crops):
    return crops.image.astype(np.float32) / 255


@pytest.fixture(scope="module")
def masks(images):
    return OtsuSegmenter()(images)


def overlap(found, true):
    return ((found > 0) & (true > 0)).sum() / ((found > 0) | (true > 0)).sum()


def test_finds_the_nuclei_and_cells_of_simulated_crops(crops, masks):
    assert overlap(masks.nuclei, crops.nucleus_labels) > 0.85
    assert overlap(masks.cells, crops.cell_labels) > 0.9
    true = measure(Masks(crops.nucleus_labels.astype(np.int32), crops.cell_labels.astype(np.int32)))
    found = measure(masks)
    for name, least in (("nucleus_count", 0.8), ("nucleus_size", 0.7), ("cytoplasm_size", 0.6)):
        assert np.corrcoef(true[name], found[name])[0, 1] > least, name


def test_is_another_segmenter_than_the_default(images, masks):
    other = WatershedSegmenter()(images)
    assert (other.nuclei > 0).sum() != (masks.nuclei > 0).sum()
    assert measure(other)["roundness"].std() != measure(masks)["roundness"].std()


def test_images_do_not_depend_on_each_other(images, masks):
    alone = OtsuSegmenter()(images[7:9])
    np.testing.assert_array_equal(alone.nuclei, masks.nuclei[7:9])
    np.testing.assert_array_equal(alone.cells, masks.cells[7:9])


def test_labels_count_from_one_in_each_image(masks):
    for labels in (*masks.nuclei, *masks.cells):
        assert np.array_equal(np.unique(labels[labels > 0]), np.arange(1, labels.max() + 1))


@pytest.mark.parametrize("value", [0.0, 0.05, 1.0])
def test_nothing_is_found_in_blank_images(value):
    masks = OtsuSegmenter()(np.full((2, 3, 48, 48), value, dtype=np.float32))
    assert masks.nuclei.max() == 0


def test_touching_nuclei_are_two():
    y, x = np.mgrid[:48, :48]
    dna = (np.hypot(y - 24, x - 16) < 7) | (np.hypot(y - 24, x - 29) < 7)
    image = np.stack([dna, np.ones_like(dna), np.ones_like(dna)]).astype(np.float32) * 0.6
    assert OtsuSegmenter()(image[None]).nuclei.max() == 2


def test_larger_images_of_the_same_field_of_view_have_the_same_objects(images, masks):
    large = OtsuSegmenter()(images[:8].repeat(2, axis=2).repeat(2, axis=3))
    small = Masks(masks.nuclei[:8], masks.cells[:8])
    assert abs(measure(large)["nucleus_count"] - measure(small)["nucleus_count"]).mean() < 0.5
    ratio = measure(large)["nucleus_size"] / measure(small)["nucleus_size"]
    assert np.median(ratio) == pytest.approx(4, rel=0.1)


def test_is_known_by_its_name_and_refuses_what_does_not_fit():
    assert isinstance(make_segmenter("otsu", sigma=1.5), OtsuSegmenter)
    with pytest.raises(ValueError, match="unknown nucleus_channel 'dna'"):
        OtsuSegmenter(channel_names=("er", "rna"))
    with pytest.raises(ValueError, match="cells are found in other channels"):
        OtsuSegmenter(channel_names=("dna",))
    with pytest.raises(ValueError, match="sigma must be positive and finite, got -1"):
        OtsuSegmenter(sigma=-1.0)
    with pytest.raises(ValueError, match="images must be"):
        OtsuSegmenter()(np.zeros((1, 2, 48, 48), dtype=np.float32))
