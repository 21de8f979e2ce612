"""Images of any size, with any channels and nothing in them, as an untrained or broken generator may make them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.rewards.forms import FORMS, UNMEASURED
from cellfluxrl.rewards.segmentation.measurements import STATISTICS

MOAS = ("DMSO", "DNA damage")
NUCLEUS_STATISTICS = ("roundness", "nucleus_size", "nucleus_count")
CHANNELS = ("dna", "tubulin", "actin", "er", "golgi", "mito", "rna", "membrane")


def suite_for(num_channels: int, side: int = 48) -> RewardSuite:
    """A suite whose real cells are of about the size of the drawn ones, in images whose shorter side is `side`."""
    torch.manual_seed(0)
    classifier = MoAClassifier(moas=MOAS, channel_names=CHANNELS[:num_channels], width=4).eval()
    suite = RewardSuite(dict(classifier.config))
    suite.classifier.load_state_dict(classifier.state_dict())
    unit = (side / 48) ** 2
    typical = {"roundness": (0.95, 0.1), "nucleus_size": (200 * unit, 60 * unit)}
    typical |= {"cytoplasm_size": (1000 * unit, 300 * unit)}
    for column, name in enumerate(suite.statistic_names):
        suite.mean[:, column], suite.std[:, column] = typical.get(name, (1.0, 1.0))
    suite.reference.copy_(torch.randn(suite.reference.shape, generator=torch.Generator().manual_seed(1)))
    suite.count += 100
    return suite


def cell_image(num_channels: int, height: int, width: int) -> np.ndarray:
    """One round cell in the middle: float32 (C, H, W) in [0, 1]."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2) / min(height, width) * 48
    nucleus = np.clip(8 - distance + 0.5, 0, 1) * 0.7
    return np.stack([nucleus] + [np.clip(18 - distance + 0.5, 0, 1) * 0.5] * (num_channels - 1)).astype(np.float32)


def broken_image(kind: str, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    broken = np.zeros_like(image)
    if kind == "constant":
        broken += random.uniform(0, 1)
    elif kind == "saturated":
        broken += 1
    elif kind == "one pixel":
        broken[:, random.integers(image.shape[1]), random.integers(image.shape[2])] = 1
    elif kind == "all nucleus":
        broken[0] = 1
    elif kind == "faint noise":
        broken += random.uniform(0, 0.05, image.shape).astype(np.float32)
    elif kind == "noise":
        broken += random.uniform(0, 1, image.shape).astype(np.float32)
    return broken.astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["empty", "constant", "saturated", "one pixel", "all nucleus", "faint noise", "noise"]),
    num_channels=st.integers(1, 8),
    height=st.integers(24, 512),
    width=st.integers(24, 512),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 2**31),
)
def test_an_image_without_cells_is_never_rewarded(kind, num_channels, height, width, form, seed):
    suite = suite_for(num_channels, min(height, width))
    good = cell_image(num_channels, height, width)
    broken = broken_image(kind, good, np.random.default_rng(seed))
    images = np.stack([broken, good, good])
    scores = suite(images, moa=["DMSO"] * 3, form=form)
    for name, values in scores.items():
        assert values.isfinite().all(), name
    assert scores["moa"][0] <= 0
    assert scores["containment"][0] == 0
    assert scores["combined"][0] < scores["combined"][1]
    for name in NUCLEUS_STATISTICS:
        assert scores[name][0] <= UNMEASURED + 2, name  # the energy form measures from each real cell
    counts = suite.measure(images, ["DMSO"] * 3).measurements
    assert counts["nucleus_count"].tolist() == [0, 1, 1]
    assert counts["cytoplasm_count"][1] == 1


@pytest.mark.parametrize("form", FORMS)
def test_one_image_of_nothing(form):
    scores = suite_for(3)(np.zeros((1, 3, 48, 48), np.float32), moa=["DMSO"], form=form)
    assert {name: float(scores[name][0]) for name in STATISTICS} == dict.fromkeys(STATISTICS, UNMEASURED)
    assert float(scores["moa"][0]) == float(scores["containment"][0]) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused(value):
    image = cell_image(3, 48, 48)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        suite_for(3)(image[None], moa=["DMSO"])
