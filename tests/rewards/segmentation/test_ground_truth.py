"""Segmentation and measurement against what the simulator drew, and images that break one rule on purpose.

`benchmarks/segmentation_accuracy.py` prints these numbers for other crops, and `benchmarks/simulated_truth.py` says
which crops have nuclei and cells that can be counted.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.segmentation.measurements import STATISTICS, measure, object_areas
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

ROWS, COLUMNS = np.mgrid[:48, :48]
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def measured(images):
    return measure(WatershedSegmenter()(images))


@pytest.fixture(scope="module")
def crops():
    """1,000 crops of several cells that can be counted, and were used for no setting and no weight."""
    spec = importlib.util.spec_from_file_location("simulated_truth", BENCHMARKS / "simulated_truth.py")
    truth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(truth)
    crops, _ = truth.known_crops(1000, seed=4711)
    assert len(crops.image) == 1000
    return crops


@pytest.fixture(scope="module")
def values(crops):
    return measured((crops.image / 255).astype(np.float32))


@pytest.fixture(scope="module")
def count(crops):
    return (object_areas(crops.nucleus_labels) >= 45).sum(axis=1)


@pytest.mark.slow
def test_nuclei_are_counted(values, count):
    assert np.mean(values["nucleus_count"] == count) >= 0.95


@pytest.mark.slow
def test_cells_are_counted(values, count):
    assert np.mean(values["cytoplasm_count"] == count) >= 0.9


@pytest.mark.slow
def test_nuclei_are_contained_as_drawn(crops, values):
    nucleus = crops.nucleus_labels > 0
    truth = (nucleus & (crops.cell_labels > 0)).sum(axis=(1, 2)) / nucleus.sum(axis=(1, 2))
    error = np.abs(values["containment"] - truth)
    assert error.mean() < 0.03
    assert np.mean(error <= 0.03) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("name", "labels"), [("nucleus_size", "nucleus_labels"), ("cytoplasm_size", "cell_labels")])
def test_largest_areas(crops, values, name, labels):
    error = values[name] / object_areas(getattr(crops, labels)).max(axis=1) - 1
    assert np.median(np.abs(error)) <= 0.05
    assert abs(np.median(error)) < 0.03


def paint(distance):
    """Brightness of an object from the distance to its edge, which is one pixel wide, on the square-root scale."""
    return 0.6 * np.sqrt(np.clip(distance + 0.5, 0, 1))


def disc(row, column, radius):
    return radius - np.hypot(ROWS - row, COLUMNS - column)


def image(nucleus, cell):
    return np.stack([paint(nucleus), paint(cell), paint(cell)])[None].astype(np.float32)


def star(row, column, radius):
    angle = np.arctan2(ROWS - row, COLUMNS - column)
    return radius * (1 + 0.3 * np.cos(5 * angle)) - np.hypot(ROWS - row, COLUMNS - column)


GOOD = image(disc(24, 24, 8), disc(24, 24, 16))
BROKEN = {
    "nucleus shifted out of its cell": (image(disc(10, 10, 8), disc(30, 30, 13)), {"containment", "cytoplasm_size"}),
    "two nuclei": (
        image(np.maximum(disc(24, 15.5, 7), disc(24, 32.5, 7)), disc(24, 24, 17)),
        {"nucleus_count", "cytoplasm_count", "cytoplasm_size", "nucleus_size"},
    ),
    "no nucleus": (
        image(disc(24, 24, -9), disc(24, 24, 16)),
        {"nucleus_count", "nucleus_size", "containment", "roundness"},
    ),
    "star": (image(star(24, 24, 8), disc(24, 24, 16)), {"roundness"}),
    "giant cell": (image(disc(24, 24, 8), disc(24, 24, 22)), {"cytoplasm_size"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_breaking_one_rule_changes_its_measurements_and_hardly_the_others(kind):
    broken, changed = BROKEN[kind]
    before, after = measured(GOOD), measured(broken)
    for name in before:
        change = abs(after[name][0] / before[name][0] - 1)
        assert change > 0.2 if name in changed else change < 0.1, (name, before[name], after[name])


def test_direction_of_each_change():
    values = {kind: measured(broken) for kind, (broken, _) in BROKEN.items()}
    good = measured(GOOD)
    assert good["containment"] == good["nucleus_count"] == good["cytoplasm_count"] == 1
    assert values["nucleus shifted out of its cell"]["containment"] < 0.3
    assert values["two nuclei"]["nucleus_count"] == values["two nuclei"]["cytoplasm_count"] == 2
    assert values["no nucleus"]["nucleus_count"] == 0
    assert values["star"]["roundness"] < good["roundness"] - 0.2
    assert values["giant cell"]["cytoplasm_size"] == pytest.approx(np.pi * 22**2, rel=0.08)


def test_shifting_the_nuclei_of_simulated_crops_lowers_containment():
    crops = simulate_cells([CONTROL, *MOAS] * 12, seed=5)
    images = (crops.image / 255).astype(np.float32)
    sparse = images[(crops.cell_labels > 0).mean(axis=(1, 2)) < 0.6]
    shifted = sparse.copy()
    shifted[:, 0] = np.roll(shifted[:, 0], 24, axis=-1)
    assert measured(shifted)["containment"].mean() < 0.85 * measured(sparse)["containment"].mean()


@pytest.fixture(scope="module")
def suite():
    """Real cells are like the good image: the rewards of each broken one are lower where its rule is broken."""
    suite = RewardSuite(dict(MoAClassifier(moas=["DMSO"], width=4).config))
    good = measured(GOOD)
    spread = {"roundness": 0.1, "nucleus_size": 60.0, "cytoplasm_size": 250.0}
    for column, name in enumerate(suite.statistic_names):
        if name in STATISTICS:
            suite.mean[:, column], suite.std[:, column] = float(good[name][0]), spread.get(name, 1.0)
    suite.count += 1
    return suite


RULES = {
    "nucleus shifted out of its cell": "containment",
    "two nuclei": "nucleus_count",
    "no nucleus": "nucleus_count",
    "star": "roundness",
    "giant cell": "cytoplasm_size",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_breaking_one_rule_lowers_exactly_its_reward(suite, kind):
    broken, changed = BROKEN[kind]
    before, after = suite(GOOD, ["DMSO"]), suite(broken, ["DMSO"])
    assert RULES[kind] in changed
    assert after["combined"][0] < before["combined"][0]
    for name in ("containment", *STATISTICS):
        if name in changed:
            assert after[name][0] < before[name][0] - 0.5, name
        else:
            assert after[name][0] == pytest.approx(float(before[name][0]), abs=0.35), name
