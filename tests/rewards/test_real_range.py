"""The range of real cells, which rejection keeps to."""

import pytest
import torch

from cellfluxrl import MoAClassifier, Reward, RewardSuite
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.real_range import MINIMUM_SPREAD, REAL_RANGE

MOA = "DNA damage"


@pytest.fixture(scope="module")
def real(simulated_cells):
    cells = simulated_cells["train"]
    return open_images(cells)[:], cells["moa"]


@pytest.fixture(scope="module")
def measured(suite, real):
    return suite.measure(*real)


@pytest.fixture
def outside(suite):
    """Distance to the range for images with the given scaled statistics and containment."""

    def distance(scaled, containment=1.0):
        k = suite.moas.index(MOA)
        values = torch.as_tensor(scaled) * suite.std[k] + suite.mean[k]
        scores = {"containment": torch.full((len(values),), containment)}
        return suite.outside_real_range(Measured(values, scores, {}), [MOA] * len(values))

    return distance


def test_most_real_cells_are_within_the_range(suite, real, measured):
    """Six statistics with 5 % outside each, and a containment with 2.5 %: all but 27 %, if they were independent."""
    inside = suite.outside_real_range(measured, real[1]) == 0
    assert 0.6 < float(inside[measured.values.isfinite().all(dim=1)].double().mean()) < 0.95


def test_noise_and_empty_images_are_outside(suite):
    images = torch.cat([torch.rand(3, 3, 16, 16) * 2 - 1, -torch.ones(3, 3, 16, 16)])
    assert (suite.outside_real_range(suite.measure(images, [MOA] * 6), [MOA] * 6) > 0).all()


def test_the_range_is_that_of_the_reference_cells(suite, outside):
    low, high = suite.reference[suite.moas.index(MOA)].quantile(torch.tensor(REAL_RANGE), dim=0)
    middle = (low + high) / 2
    torch.testing.assert_close(outside(torch.stack([middle, low + 1e-4, high - 1e-4])), torch.zeros(3))
    for column in range(len(middle)):
        beyond = torch.stack([middle, middle])
        beyond[0, column], beyond[1, column] = high[column] + 0.7, low[column] - 1.3
        torch.testing.assert_close(outside(beyond), torch.tensor([0.7, 1.3]), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_measured_is_outside(suite, outside):
    middle = suite.reference[suite.moas.index(MOA)].median(dim=0).values
    for column in range(len(middle)):
        lacking = middle.clone()
        lacking[column] = torch.nan
        assert float(outside(lacking[None])) > 1


def test_containment_counts_below_that_of_real_cells_only(suite, outside):
    k = suite.moas.index(MOA)
    middle = suite.reference[k].median(dim=0).values[None]
    floor = float(suite.score_floor[k, suite.score_names.index("containment")])
    assert 0.3 < floor <= 1
    assert float(outside(middle, containment=1.0)) == 0
    assert float(outside(middle, containment=floor)) == 0
    assert float(outside(middle, containment=floor - 0.2)) == pytest.approx(0.2 / MINIMUM_SPREAD, rel=1e-3)


def test_the_range_is_saved_with_the_suite(suite, real, measured, tmp_path):
    suite.save_pretrained(tmp_path)
    loaded = RewardSuite.from_pretrained(tmp_path)
    ours, theirs = (s.outside_real_range(measured, real[1]) for s in (suite, loaded))
    assert torch.equal(ours, theirs)


def test_without_statistics_the_range_is_that_of_the_scores(simulated_cells):
    brightness = Reward("brightness_in_a_range", score=lambda seen: seen.images.mean(dim=(1, 2, 3)))
    classifier = MoAClassifier(moas=[CONTROL, *MOAS], width=4)
    few = RewardSuite.fit(simulated_cells["train"], classifier, rewards=[brightness])
    assert (few.score_floor == few.score_floor[0]).all()  # 8 to 12 cells each: that of all together
    images = torch.from_numpy(simulate_cells([MOA] * 20, image_size=16).image)
    seen = few.measure(images, [MOA] * 20)
    inside = few.outside_real_range(seen, [MOA] * 20) == 0
    assert torch.equal(inside, seen.scores["brightness_in_a_range"] >= few.score_floor[0, 0])
