"""Segmentation of drawn discs with known answers, of noise, and of real crops where they are present."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu

from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.segmentation.labelling import basins, label_pieces, otsu_thresholds, remove_small
from cellfluxrl.rewards.segmentation.measurements import measure, object_areas
from cellfluxrl.rewards.segmentation.protocol import SEGMENTERS, make_segmenter
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter, share_out

SHAPE = (3, 8, 9)
random_foreground = arrays(bool, SHAPE)
random_seeds = arrays(np.int32, SHAPE, elements=st.sampled_from([0, 0, 0, 1, 2, 3]))
random_levels = arrays(np.float32, SHAPE, elements=st.sampled_from([1, 2, 3]))


def draw(nuclei, cells, size=48, intensity=0.6):
    """Draw discs (row, column, radius) into an image (1, 3, size, size): `nuclei` into DNA, `cells` into the rest."""
    rows, columns = np.mgrid[:size, :size]

    def discs(shapes):
        image = np.zeros((size, size), dtype=np.float32)
        for row, column, radius in shapes:
            # An edge one pixel wide, as a disc seen through pixels has.
            image = np.maximum(image, np.clip(radius + 0.5 - np.hypot(rows - row, columns - column), 0, 1))
        return image * intensity

    return np.stack([discs(nuclei), discs(cells), discs(cells)])[None].astype(np.float32)


def random_images(count, seed=0):
    """Draw `count` images of 1 to 3 cells each, some cut by the border."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        centres = rng.uniform(0, 48, (rng.integers(1, 4), 2))
        nuclei = [(row, column, rng.uniform(6, 9)) for row, column in centres]
        images.append(draw(nuclei, [(row, column, 14) for row, column in centres]))
    noise = rng.uniform(0, 0.05, (count, 3, 48, 48))
    return np.clip(np.concatenate(images) + noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("radius", [6, 8, 11])
def test_disc_has_its_area_and_one_label(radius):
    masks = WatershedSegmenter()(draw([(24, 24, radius)], [(24, 24, 18)]))
    assert masks.nuclei.dtype == masks.cells.dtype == np.int32
    assert masks.nuclei.max() == masks.cells.max() == 1
    # The threshold lies below half of the maximum, up to a pixel outside of the blurred edge.
    assert np.sqrt((masks.nuclei > 0).sum() / np.pi) == pytest.approx(radius, abs=0.9)
    assert np.sqrt((masks.cells > 0).sum() / np.pi) == pytest.approx(18, abs=1.5)


def test_overlapping_nuclei_are_two_only_with_evidence_for_it():
    """A waist alone may be that of one lobed nucleus."""
    image = draw([(24, 18, 7), (24, 30, 7)], [(24, 24, 22)])
    segment = WatershedSegmenter()
    assert segment(image).nuclei.max() == 1
    image[0, :, :, 24:] *= 1.5  # two cells, one brighter in every channel
    assert segment(image).nuclei.max() == 2


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_touching_nuclei_are_split(gap):
    half = 7 + gap / 2
    masks = WatershedSegmenter()(draw([(24, 24 - half, 7), (24, 24 + half, 7)], [(24, 24, 22)]))
    assert masks.nuclei.max() == 2
    areas = np.bincount(masks.nuclei.ravel())[1:]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)


def test_touching_cells_are_shared_out_between_their_nuclei():
    cells = [(24, 13, 11), (24, 35, 11)]
    masks = WatershedSegmenter()(draw([(24, 13, 6), (24, 35, 6)], cells))
    assert masks.nuclei.max() == masks.cells.max() == 2
    areas = np.bincount(masks.cells.ravel())[1:]
    assert areas[0] == pytest.approx(areas[1], rel=0.05)
    for k in (1, 2):
        assert len(np.unique(masks.cells[masks.nuclei == k])) == 1
    wider = [(24, 13, 13), (24, 35, 13)]
    assert WatershedSegmenter()(draw([], wider)).cells.max() == 1


def test_cytoplasm_without_a_nucleus_is_a_cell_of_its_own():
    masks = WatershedSegmenter()(draw([(12, 12, 6)], [(12, 12, 9), (36, 36, 9)]))
    assert (masks.nuclei.max(), masks.cells.max()) == (1, 2)
    assert masks.cells[0, 12, 12] != masks.cells[0, 36, 36]


def test_one_elongated_nucleus_stays_one():
    rows, columns = np.mgrid[:48, :48]
    image = draw([], [(24, 24, 20)])
    image[0, 0] = 0.6 * (((rows - 24) / 7) ** 2 + ((columns - 24) / 13) ** 2 < 1)
    assert WatershedSegmenter()(image).nuclei.max() == 1


def assert_foreground_ignores_dna(images):
    segment = WatershedSegmenter()
    expected = segment(images).cells > 0
    for level in (np.zeros_like(images[:, 0]), images[::-1, 0], images[:, 0, :, ::-1]):
        changed = images.copy()
        changed[:, 0] = level
        np.testing.assert_array_equal(segment(changed).cells > 0, expected)


def test_foreground_of_cells_does_not_depend_on_the_dna_channel():
    assert_foreground_ignores_dna(random_images(30))
    # Either nucleus' share of the one cell is smaller than the smallest cell.
    assert_foreground_ignores_dna(draw([(24, 16, 7), (24, 32, 7)], [(24, 24, 5)]))


def test_nucleus_outside_the_cytoplasm_fails_containment():
    masks = WatershedSegmenter()(draw([(12, 12, 7)], [(34, 34, 10)]))
    assert masks.nuclei.max() == masks.cells.max() == 1
    assert measure(masks)["containment"][0] < 0.1


@pytest.mark.parametrize("level", [0.0, 0.05, 0.5, 1.0])
def test_blank_image_has_no_nuclei(level):
    assert WatershedSegmenter()(np.full((1, 3, 48, 48), level, dtype=np.float32)).nuclei.max() == 0


@pytest.mark.parametrize("kind", ["uniform", "binary", "dim normal", "bright normal"])
def test_noise_has_no_nuclei(kind):
    rng = np.random.default_rng(0)
    shape = (50, 3, 48, 48)
    noise = {
        "uniform": lambda: rng.random(shape),
        "binary": lambda: rng.integers(0, 2, shape),
        "dim normal": lambda: rng.normal(0.1, 0.1, shape),
        "bright normal": lambda: rng.normal(0.5, 0.3, shape),
    }[kind]()
    assert WatershedSegmenter()(np.clip(noise, 0, 1).astype(np.float32)).nuclei.max() == 0


def assert_independent_of_the_batch(images):
    """Compare images in order, in two other orders, and some of them alone."""
    segment = WatershedSegmenter()
    together = segment(images)
    orders = [np.arange(len(images))[::-1], np.random.default_rng(0).permutation(len(images))]
    orders += [np.array([i]) for i in range(0, len(images), 7)]
    for order in orders:
        masks = segment(images[order])
        np.testing.assert_array_equal(masks.nuclei, together.nuclei[order])
        np.testing.assert_array_equal(masks.cells, together.cells[order])


def test_masks_do_not_depend_on_the_batch():
    assert_independent_of_the_batch(random_images(70))  # more than one strip


def test_masks_of_symmetric_nuclei_do_not_depend_on_the_batch():
    """Pixels halfway between two equal nuclei are ties, which a watershed of the whole batch settles at random."""
    shapes = [(column, half, radius) for column in (23, 23.5, 24) for half in (7.5, 8) for radius in (6.5, 7)]
    pairs = [[(24, column - half, radius), (24, column + half, radius)] for column, half, radius in shapes]
    images = np.concatenate([draw(pair, [(24, 24, 40)]) for pair in pairs])
    assert (WatershedSegmenter()(images).nuclei.max(axis=(1, 2)) == 2).all()
    assert_independent_of_the_batch(images)


def test_labels_are_contiguous_in_each_image():
    masks = WatershedSegmenter()(random_images(40))
    for labels in (*masks.nuclei, *masks.cells):
        np.testing.assert_array_equal(np.unique(np.append(labels, 0)), np.arange(labels.max() + 1))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), turns=st.integers(1, 3))
def test_rotation_by_quarter_turns_keeps_the_foreground(seed, turns):
    images = random_images(2, seed)
    segment = WatershedSegmenter()
    masks, rotated = segment(images), segment(np.rot90(images, turns, axes=(2, 3)))
    before, after = measure(masks), measure(rotated)
    # Only ties on plateaus of the watershed may fall differently; Gaussian sums round differently in the last bit.
    assert np.mean(np.rot90(masks.nuclei > 0, turns, axes=(1, 2)) != (rotated.nuclei > 0)) < 0.002
    np.testing.assert_allclose(before["containment"], after["containment"], atol=0.02)
    np.testing.assert_array_equal(before["nucleus_count"], after["nucleus_count"])
    np.testing.assert_allclose(before["nucleus_size"], after["nucleus_size"], rtol=0.05)


def test_channels_are_found_by_name():
    images = random_images(4)
    expected = WatershedSegmenter()(images)
    reordered = WatershedSegmenter(channel_names=("actin", "tubulin", "dna"))(images[:, ::-1])
    np.testing.assert_array_equal(reordered.nuclei, expected.nuclei)
    np.testing.assert_array_equal(reordered.cells, expected.cells)


def test_lengths_follow_the_image_size():
    masks = WatershedSegmenter()(draw([(48, 32, 15), (48, 64, 15)], [(48, 48, 44)], size=96))
    assert masks.nuclei.shape == (1, 96, 96)
    assert masks.nuclei.max() == 2


def test_an_empty_batch_gives_empty_masks():
    assert WatershedSegmenter()(np.zeros((0, 3, 48, 48), dtype=np.float32)).nuclei.shape == (0, 48, 48)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 3, 8, 8), np.nan, dtype=np.float32), "nan"),
        (np.full((1, 3, 8, 8), np.inf, dtype=np.float32), "inf"),
        (np.full((1, 3, 8, 8), -0.5, dtype=np.float32), "-0.5"),
        (np.full((1, 3, 8, 8), 255.0, dtype=np.float32), "255"),
        (np.zeros((1, 3, 8, 8), dtype=np.uint8), "uint8"),
        (np.zeros((3, 8, 8), dtype=np.float32), r"\(3, 8, 8\)"),
        (np.zeros((1, 4, 8, 8), dtype=np.float32), r"\(1, 4, 8, 8\)"),
        ([[0.0]], "list"),
    ],
)
def test_bad_images_are_refused_by_value(images, message):
    with pytest.raises(ValueError, match=message):
        WatershedSegmenter()(images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channel_names": ("tubulin", "actin")}, "unknown nucleus_channel 'dna'.*tubulin"),
        ({"channel_names": ("dna", "er", "er")}, "differ .* 'er', 'er'"),
        ({"channel_names": ("dapi", "er"), "nucleus_channel": "dap1"}, "'dap1'; did you mean 'dapi'"),
        ({"nucleus_sigma": -1.0}, r"nucleus_sigma .* -1.0"),
        ({"cell_area": float("nan")}, "cell_area .* nan"),
        ({"nucleus_floor": 0.5}, "nucleus_floor must not exceed nucleus_ceiling"),
    ],
)
def test_bad_settings_are_refused_by_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        WatershedSegmenter(**wrong)


def test_settings_survive_json():
    segmenter = WatershedSegmenter(channel_names=("dna", "er"), cell_floor=0.1)
    saved = json.loads(json.dumps(dataclasses.asdict(segmenter)))
    assert make_segmenter("watershed", **saved) == segmenter


def test_unknown_names_are_refused_with_the_nearest():
    assert SEGMENTERS["watershed"] is WatershedSegmenter
    with pytest.raises(ValueError, match="unknown segmenter 'watershd'; did you mean 'watershed'"):
        make_segmenter("watershd")
    with pytest.raises(ValueError, match="'nucleus_sgma'; did you mean 'nucleus_sigma'"):
        make_segmenter("watershed", nucleus_sgma=1.0)


def test_otsu_is_that_of_scikit_image():
    images = np.random.default_rng(0).beta(0.5, 2, (10, 20, 20))
    centres = (np.arange(256) + 0.5) / 256
    expected = [threshold_otsu(hist=(np.histogram(i, 256, (0, 1))[0], centres)) for i in images]
    np.testing.assert_allclose(otsu_thresholds(images), expected)


def test_remove_small_numbers_each_image_from_one():
    labels = np.array([[[1, 2, 2, 3, 3]], [[4, 4, 0, 5, 5]], [[0, 0, 0, 0, 6]]])
    expected = [[[0, 1, 1, 2, 2]], [[1, 1, 0, 2, 2]], [[0, 0, 0, 0, 0]]]
    np.testing.assert_array_equal(remove_small(labels, 2), expected)


def test_remove_small_numbers_by_image_where_labels_do_not():
    labels = np.array([[[1, 1, 9, 9]], [[3, 3, 4, 5]], [[0, 2, 2, 2]]])
    np.testing.assert_array_equal(remove_small(labels, 2), [[[1, 1, 2, 2]], [[1, 1, 0, 0]], [[0, 1, 1, 1]]])
    np.testing.assert_array_equal(remove_small(labels, 0), [[[1, 1, 2, 2]], [[1, 1, 2, 3]], [[0, 1, 1, 1]]])


def divide(foreground, seeds, levels=None):
    """Share out images that are small next to a cell, without any difference in brightness unless it is given."""
    levels = np.zeros(foreground.shape, dtype=np.float32) if levels is None else levels
    return share_out(label_pieces(foreground), seeds, np.stack([levels, levels]), levels, scale=10.0)


def pieces_of(mask):
    """Return the connected pieces of an (H, W) mask, one mask each."""
    labels, count = ndi.label(mask)
    return [labels == k for k in range(1, count + 1)]


@settings(max_examples=100, deadline=None)
@given(foreground=random_foreground, seeds=random_seeds)
def test_shares_are_a_partition_of_the_foreground(foreground, seeds):
    labels = divide(foreground, seeds)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, foreground)
    in_images = [set(np.unique(image[image > 0])) for image in labels]
    assert len(set.union(*in_images)) == sum(map(len, in_images))


@settings(max_examples=100, deadline=None)
@given(foreground=random_foreground, seeds=random_seeds)
def test_every_seed_in_the_foreground_keeps_its_pixels_to_itself(foreground, seeds):
    for image, mask, seed in zip(divide(foreground, seeds), foreground, seeds, strict=True):
        inside = mask & (seed > 0)
        pairs = set(zip(seed[inside], image[inside], strict=True))
        assert len({k for k, _ in pairs}) == len({label for _, label in pairs}) == len(pairs)
        for label in np.unique(image[mask]):
            share = image == label
            if (share & inside).any():  # each piece of a share holds a pixel of its seed
                assert all((piece & inside).any() for piece in pieces_of(share))


@settings(max_examples=100, deadline=None)
@given(foreground=random_foreground, seeds=random_seeds)
def test_pieces_without_a_seed_are_objects_of_their_own(foreground, seeds):
    for image, mask, seed in zip(divide(foreground, seeds), foreground, seeds, strict=True):
        for piece in pieces_of(mask):
            if not seed[piece].any():
                np.testing.assert_array_equal(image == image[piece][0], piece)


@settings(max_examples=100, deadline=None)
@given(foreground=random_foreground, seeds=random_seeds, levels=random_levels)
def test_division_of_an_image_does_not_depend_on_the_batch(foreground, seeds, levels):
    """On few levels, so that a watershed meets many ties."""

    def divided(order):
        shares = divide(foreground[order], seeds[order], levels[order] / 10)
        summits = basins(levels[order], foreground[order])
        return np.stack([remove_small(shares, 1), remove_small(summits, 1)])

    together = divided([0, 1, 2])
    for order in ([2, 0, 1], [1, 1, 0, 2], [0], [1], [2]):
        np.testing.assert_array_equal(divided(order), together[:, order])


@pytest.mark.parametrize("seeded", [[], [1], [0, 1, 2]])
def test_images_without_background_are_shared_out(seeded):
    seeds = np.zeros((3, 6, 8), dtype=np.int32)
    seeds[seeded, 1, 1] = 1
    seeds[seeded, 4, 6] = 2
    labels = divide(np.ones(seeds.shape, dtype=bool), seeds)
    assert labels.min() > 0
    for n in range(3):
        assert len(np.unique(labels[n])) == (2 if n in seeded else 1)


def test_nothing_to_divide():
    nothing = np.zeros((2, 6, 8), dtype=bool)
    assert divide(nothing, np.ones(nothing.shape, dtype=np.int32)).max() == 0


def test_shares_go_to_the_nearest_seed():
    """Counted in steps along rows and columns, and but for the lines on which two shares meet."""
    rng = np.random.default_rng(0)
    seeds = np.zeros((20, 48, 48), dtype=np.int32)
    for image in seeds:
        for k, (row, column) in enumerate(rng.integers(3, 45, (3, 2)), start=1):
            image[row - 2 : row + 3, column - 2 : column + 3] = k
    steps = [ndi.distance_transform_cdt(s != k, "taxicab") for s in seeds for k in (1, 2, 3)]
    steps = np.stack(steps).reshape(20, 3, 48, 48)
    own = (divide(np.ones(seeds.shape, dtype=bool), seeds) - 1) % 3
    excess = np.take_along_axis(steps, own[:, None], axis=1)[:, 0] - steps.min(axis=1)
    assert (excess > 0).mean() < 0.05
    assert (excess > 2).mean() < 0.01


def test_cells_meet_where_the_brightness_changes():
    """Not halfway between their nuclei."""
    image = draw([(24, 10, 5), (24, 40, 5)], [])
    image[0, 1:, 8:40, :30], image[0, 1:, 8:40, 30:] = 0.4, 0.8
    cells = WatershedSegmenter()(image).cells[0]
    assert cells.max() == 2
    assert (cells[10:38, 2:28] == cells[24, 10]).all()
    assert (cells[10:38, 33:46] == cells[24, 40]).all()


def test_cytoplasm_of_a_cell_outside_is_set_apart_by_a_membrane():
    """A cell whose nucleus lies outside of the image, far from that of its neighbour."""
    image = draw([(24, 8, 6)], [])
    image[0, 1:, 4:44] = 0.6
    assert WatershedSegmenter()(image).cells.max() == 1
    image[0, 1:, 4:44, 27:29] = 0.25
    cells = WatershedSegmenter()(image).cells[0]
    assert cells.max() == 2
    assert cells[24, 8] != cells[24, 40]


def test_shares_do_not_jump_over_background():
    """Two seeds in the arms of a U: most of the left arm is nearer to the right seed, but only across the gap."""
    foreground = np.ones((1, 30, 7), dtype=bool)
    foreground[0, :28, 3] = False
    seeds = np.zeros(foreground.shape, dtype=np.int32)
    seeds[0, 2, 1], seeds[0, 6, 5] = 1, 2
    labels = divide(foreground, seeds)[0]
    assert (labels[:27, :3] == 1).all()
    assert (labels[:27, 4:] == 2).all()


def test_simulated_cells_are_found_where_they_were_drawn():
    simulated = simulate_cells(["DMSO", "DNA damage", "Protein synthesis"] * 20, seed=3)
    masks = WatershedSegmenter()((simulated.image / 255).astype(np.float32))

    def overlap(found, drawn):
        return ((found > 0) & (drawn > 0)).sum() / ((found > 0) | (drawn > 0)).sum()

    assert overlap(masks.nuclei, simulated.nucleus_labels) > 0.8
    assert overlap(masks.cells, simulated.cell_labels) > 0.9
    # Slivers cut off by the border are removed, so they are not expected.
    drawn = [(np.bincount(labels.ravel())[1:] >= 30).sum() for labels in simulated.nucleus_labels]
    found = masks.nuclei.max(axis=(1, 2))
    assert np.mean(found == drawn) > 0.6
    assert abs(np.mean(found - drawn)) < 0.4


def test_measurements_follow_the_simulated_truth():
    simulated = simulate_cells([CONTROL, *MOAS] * 40, seed=1)
    values = measure(WatershedSegmenter()((simulated.image / 255).astype(np.float32)))
    cells, nuclei = object_areas(simulated.cell_labels), object_areas(simulated.nucleus_labels)
    truth = {
        "cytoplasm_size": cells.max(axis=1),
        "cytoplasm_count": (cells > 0).sum(axis=1),
        "nucleus_size": nuclei.max(axis=1),
        "nucleus_count": (nuclei > 0).sum(axis=1),
    }
    correlation = {name: np.corrcoef(values[name], truth[name])[0, 1] for name in truth}
    assert correlation["cytoplasm_size"] > 0.7
    assert correlation["cytoplasm_count"] > 0.65
    assert correlation["nucleus_size"] > 0.85
    assert correlation["nucleus_count"] > 0.85


@pytest.fixture(scope="module")
def real_crops(bbbc021_dir):
    crops = np.load(bbbc021_dir / "Week4_27801.npz")["image"].transpose(0, 3, 1, 2)
    return (normalize_plate(crops, 48)[::20] / 255).astype(np.float32)


def test_masks_of_real_crops_do_not_depend_on_the_batch(real_crops):
    assert_independent_of_the_batch(real_crops)


def test_foreground_of_real_cells_does_not_depend_on_the_dna_channel(real_crops):
    assert_foreground_ignores_dna(real_crops)


def test_real_crops_have_nuclei_inside_cells(real_crops):
    values = measure(WatershedSegmenter()(real_crops))
    assert values["containment"].mean() > 0.98
    assert (values["nucleus_count"] >= 1).mean() > 0.98
    assert (values["cytoplasm_count"] >= 1).mean() > 0.98
    assert 0.85 < values["roundness"].mean() < 1


def test_shifted_dna_fails_containment_on_real_crops(real_crops):
    """Nuclei of one crop on the cytoplasm of another, where that leaves background, are not contained."""
    values = measure(WatershedSegmenter()(real_crops))
    sparse = values["cytoplasm_size"] < np.quantile(values["cytoplasm_size"], 0.1)
    shifted = real_crops[sparse]
    shifted[:, 0] = np.roll(shifted[:, 0], 24, axis=1)
    assert measure(WatershedSegmenter()(shifted))["containment"].mean() < 0.9 * values["containment"][sparse].mean()


DEGENERATE = {
    "empty": lambda shape, rng: np.zeros(shape),
    "constant": lambda shape, rng: np.full(shape, 0.4),
    "saturated": lambda shape, rng: np.ones(shape),
    "one bright pixel": lambda shape, rng: np.eye(shape[0] * shape[1], shape[2] * shape[3], 7).reshape(shape),
    "noise": lambda shape, rng: rng.random(shape),
}


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(DEGENERATE)),
    channels=st.integers(1, 8),
    height=st.integers(24, 130),
    width=st.integers(24, 130),
    nucleus=st.integers(0, 7),
)
def test_degenerate_images_of_any_size_and_channels_have_no_nuclei(kind, channels, height, width, nucleus):
    names = tuple(f"stain{c}" for c in range(channels))
    segment = WatershedSegmenter(names, nucleus_channel=names[nucleus % channels])
    images = DEGENERATE[kind]((2, channels, height, width), np.random.default_rng(0)).astype(np.float32)
    masks = segment(images)
    assert masks.nuclei.shape == masks.cells.shape == (2, height, width)
    assert masks.nuclei.max() == 0
    assert all(np.isfinite(value).all() for value in measure(masks).values())


@pytest.mark.parametrize("size", [24, 512])
def test_small_and_large_images(size):
    part = size / 48
    image = draw([(size / 2, size / 2, 8 * part)], [(size / 2, size / 2, 18 * part)], size)
    values = measure(WatershedSegmenter()(image))
    assert values["nucleus_count"] == values["cytoplasm_count"] == values["containment"] == 1


def test_without_a_cytoplasm_channel_cells_come_from_the_nuclei():
    image = draw([(24, 14, 7), (24, 34, 7)], [])[:, :1]
    masks = WatershedSegmenter(("dapi",), nucleus_channel="dapi")(image)
    assert masks.nuclei.max() == masks.cells.max() == 2
    assert (masks.cells > 0)[masks.nuclei > 0].mean() > 0.95


def test_an_image_that_is_one_nucleus_has_at_most_one():
    rows, columns = np.mgrid[:48, :48]
    bright = np.where(np.hypot(rows - 24, columns - 24) < 31, 0.9, 0.05).astype(np.float32)
    assert WatershedSegmenter()(np.stack([bright] * 3)[None]).nuclei.max() == 1
