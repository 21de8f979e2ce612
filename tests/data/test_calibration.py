"""Controls of another plate at the intensities of those of training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pairs import dataset_of

from cellfluxrl import ControlTreatedPairs
from cellfluxrl.data.calibration import LEVELS, MOST_IMAGES, control_levels, intensity_levels, match_levels
from cellfluxrl.data.images import evenly_spread


def plate(count: int = 40, seed: int = 0) -> np.ndarray:
    """Images in [0, 1] of two channels; a third of each is black."""
    drawn = np.random.default_rng(seed).gamma(2.0, size=(count, 2, 12, 12))
    return (drawn - np.quantile(drawn, 1 / 3)).clip(0, None) / drawn.max()


@given(gamma=st.floats(0.5, 2), gain=st.floats(0.3, 1), offset=st.floats(0, 0.2))
@settings(max_examples=25, deadline=None)
def test_a_plate_that_was_stained_or_exposed_otherwise_is_brought_back(gamma, gain, offset):
    images = plate()
    other = gain * images**gamma + offset
    back = match_levels(torch.from_numpy(other), intensity_levels(other), intensity_levels(images)).numpy()
    # Within what lies between two levels; in the long tail of the brightest half percent that is more.
    error = np.abs(back - images)
    assert np.quantile(error, 0.99) < 0.02
    assert abs(back.mean() - images.mean()) < 0.005


def test_the_order_of_the_intensities_stays():
    images = torch.from_numpy(plate(seed=1))
    matched = match_levels(images, intensity_levels(images.numpy()), intensity_levels(plate(seed=2) ** 0.5))
    for before, after in zip(images.unbind(1), matched.unbind(1), strict=True):
        assert (after.flatten()[before.flatten().argsort()].diff() >= 0).all()


def test_its_own_levels_change_nothing():
    images = torch.from_numpy(plate())
    levels = intensity_levels(images.numpy())
    torch.testing.assert_close(match_levels(images, levels, levels), images.float())


def test_a_black_background_becomes_one_intensity():
    dark, grey = plate(), plate(seed=3) + np.linspace(0, 0.1, 12)
    matched = match_levels(torch.from_numpy(dark), intensity_levels(dark), intensity_levels(grey)).numpy()
    for channel in range(2):
        background = matched[:, channel][dark[:, channel] == 0]
        assert background.min() == background.max()
        ranked = np.sort(grey[:, channel].ravel())[: len(background)]
        assert background[0] == pytest.approx(ranked.mean(), abs=0.002)


def test_what_is_beyond_the_levels_is_clipped():
    bright = match_levels(torch.tensor([[[[-3.0, 0.25, 9.0]]]]), np.array([[0.0, 0.5]]), np.array([[0.2, 1.0]]))
    torch.testing.assert_close(bright.flatten(), torch.tensor([0.2, 0.6, 1.0]))


def test_an_empty_channel_is_refused():
    images = plate()
    images[:, 1] = 0.5
    with pytest.raises(ValueError, match=r"channel 1 of the plate has the intensity 0\.5 everywhere"):
        match_levels(torch.from_numpy(images), intensity_levels(images), intensity_levels(plate()))


def test_a_handful_of_cells_is_no_plate():
    with pytest.raises(ValueError, match="20 of its controls or more, got 19"):
        intensity_levels(plate(19))


def test_of_many_images_a_thousand_are_looked_at():
    stripes = np.zeros((5000, 1, 2, 2))
    stripes[evenly_spread(5000, MOST_IMAGES)] = 1
    assert intensity_levels(stripes).min() == 1


def test_only_controls_that_are_drawn_in_training_count():
    # The pixels of a cell are its row: those of the plate without treated cells, 100 to 199, are the brighter ones.
    cells = [("A", "train", "DMSO")] * 100 + [("B", "train", "DMSO")] * 100 + [("A", "train", "taxol")] * 2
    levels = control_levels(ControlTreatedPairs(dataset_of(cells)))
    assert list(levels) == ["dna", "tubulin", "actin"]
    assert len(levels["dna"]) == LEVELS
    assert levels["dna"][0] == 0
    assert levels["dna"][-1] == pytest.approx(99 / 255, abs=1e-4)


def test_too_few_controls_give_no_levels():
    cells = [("A", "train", "DMSO")] * 19 + [("A", "train", "taxol")]
    assert control_levels(ControlTreatedPairs(dataset_of(cells))) == {}
