import logging

import pytest
import torch

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import to_pil, to_uint8
from cellfluxrl.data.pairs import images_to_tensor
from cellfluxrl.rewards.energy import energy_rewards
from cellfluxrl.rewards.measurements import STATISTICS, measure
from cellfluxrl.rewards.suite import VECTOR
from cellfluxrl.rewards.terms import REWARD_NAMES


@pytest.fixture(scope="module")
def treated(simulated_cells):
    """Twelve cells of the test plate, four of each of three mechanisms, and their mechanisms."""
    cells = simulated_cells["test"]
    names = cells["moa"]
    moas = [CONTROL, "DNA damage", "Protein synthesis"]
    rows = [i for moa in moas for i in [i for i, name in enumerate(names) if name == moa][:4]]
    return images_to_tensor(open_images(cells.select(rows))[:]), [moa for moa in moas for _ in range(4)]


@pytest.fixture(scope="module")
def scores(suite, treated):
    return suite(*treated)


def test_there_are_seven_rewards_and_their_combination(scores):
    assert set(scores) == {*REWARD_NAMES, "combined"}
    assert len(REWARD_NAMES) == 7
    for values in scores.values():
        assert values.shape == (12,)
        assert torch.isfinite(values).all()


def test_probabilities_and_shares_lie_between_0_and_1(scores):
    for name in ("moa", "containment"):
        assert ((scores[name] >= 0) & (scores[name] <= 1)).all()


def test_moa_is_the_classifiers_probability_of_the_true_mechanism(suite, treated, scores):
    images, moas = treated
    probabilities = suite.classifier(images).logits.softmax(dim=1)
    expected = probabilities[torch.arange(12), suite.classifier.class_indices(moas)]
    torch.testing.assert_close(scores["moa"], expected)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_other_rewards_are_deviations_from_real_cells_of_the_mechanism(
    suite, simulated_cells, treated, scores, statistic
):
    cells = simulated_cells["train"]
    real = torch.from_numpy(measure(suite.segment(open_images(cells)[:]))[statistic]).double()
    measured = torch.from_numpy(measure(suite.segment(treated[0]))[statistic]).double()
    names = cells["moa"]
    for i, moa in enumerate(treated[1]):
        own = real[[name == moa for name in names]]
        expected = -abs(measured[i] - own.mean()) / own.std().clamp(min=1e-3)
        assert float(scores[statistic][i]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_combined_is_the_weighted_sum(suite, scores):
    expected = sum(suite.weights[name] * scores[name] for name in REWARD_NAMES)
    torch.testing.assert_close(scores["combined"], expected)
    assert sum(suite.weights.values()) == pytest.approx(1)
    assert all(weight > 0 for weight in suite.weights.values())


def test_weights_can_be_chosen(suite, treated):
    own = RewardSuite(dict(suite.config.classifier_config), reward_weights={"moa": 0.0, "containment": 3.0})
    assert own.weights == {**dict.fromkeys(REWARD_NAMES, 1.0), "moa": 0.0, "containment": 3.0}


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_an_image_is_scored_the_same_whatever_its_kind(suite, treated, form):
    images, moas = treated
    expected = suite(images, moa=moas, form=form)["combined"]
    for kind in (to_uint8(images), to_pil(images), (images + 1) / 2):
        torch.testing.assert_close(suite(kind, moa=moas, form=form)["combined"], expected, rtol=1e-3, atol=1e-3)


def test_an_image_is_scored_the_same_in_every_batch(suite, treated, scores):
    images, moas = treated
    alone = suite(images[5:6], moa=moas[5:6])
    for name, values in scores.items():
        torch.testing.assert_close(alone[name], values[5:6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_a_saved_suite_gives_identical_scores(suite, treated, tmp_path, form):
    suite.save_pretrained(tmp_path)
    loaded = RewardSuite.from_pretrained(tmp_path)
    assert loaded.weights == suite.weights
    assert loaded.moas == suite.moas
    assert loaded.segmenter == suite.segmenter
    ours, theirs = suite(*treated, form=form), loaded(*treated, form=form)
    for name, values in ours.items():
        assert torch.equal(theirs[name], values), name


def test_fitting_twice_gives_one_suite(suite, simulated_cells):
    again = RewardSuite.fit(simulated_cells["train"], suite.classifier)
    other_seed = RewardSuite.fit(simulated_cells["train"], suite.classifier, seed=1)
    assert again.weights == suite.weights
    assert torch.equal(again.reference, suite.reference)
    assert torch.equal(other_seed.mean, suite.mean)
    assert not torch.equal(other_seed.reference, suite.reference)


def test_statistics_of_the_fitted_cells_are_standardised(suite, simulated_cells):
    cells = simulated_cells["train"]
    index = suite.classifier.class_indices(cells["moa"])
    vectors = suite.statistics(open_images(cells)[:], moa=cells["moa"])
    assert vectors.shape == (len(cells), len(VECTOR))
    for k in range(len(suite.moas)):
        own = vectors[index == k]
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(len(VECTOR)), rtol=0, atol=1e-3)
        varied = suite.std[k] > 1e-3
        torch.testing.assert_close(own.std(dim=0)[varied], torch.ones(int(varied.sum())), rtol=0, atol=1e-3)


# --- the energy form ---


def test_the_energy_form_compares_the_rollouts_of_a_mechanism(suite, treated):
    images, moas = treated
    energy = suite(images, moa=moas, form="energy")
    vectors = suite.statistics(images, moa=moas)
    for k in range(3):
        rows = slice(4 * k, 4 * k + 4)
        reference = suite.reference[suite.moas.index(moas[4 * k])][None]
        expected = energy_rewards(vectors[rows], reference, torch.zeros(4, dtype=torch.long))
        torch.testing.assert_close(energy["combined"][rows], expected)
        single = energy_rewards(vectors[rows, :1], reference[..., :1], torch.zeros(4, dtype=torch.long))
        torch.testing.assert_close(energy[VECTOR[0]][rows], single)
    assert set(energy) == {*REWARD_NAMES, "combined"}


def test_groups_split_the_rollouts_of_a_mechanism(suite, treated):
    images, moas = treated
    groups = torch.tensor([7, 7, 3, 3])
    together = suite(images[:4], moa=moas[:4], form="energy", groups=groups)["combined"]
    for rows in (slice(0, 2), slice(2, 4)):
        alone = suite(images[rows], moa=moas[rows], form="energy")["combined"]
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-4)


def test_the_energy_form_needs_two_rollouts_of_a_group(suite, treated):
    images, moas = treated
    with pytest.raises(ValueError, match="give at least two of each"):
        suite(images[:5], moa=moas[:5], form="energy")


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"moa": ["DNA damages"] * 12}, r"unknown MoA 'DNA damages'; did you mean 'DNA damage'\?"),
        ({"moa": ["DMSO"] * 11}, "one MoA for each of the 12 images"),
        ({"moa": "DMSO"}, "one MoA for each of the 12 images, got 'DMSO'"),
        ({"moa": ["DMSO"] * 12, "form": "energi"}, r"unknown reward form 'energi'; did you mean 'energy'\?"),
        ({"images": torch.zeros(1, 2, 16, 16), "moa": ["DMSO"]}, r"must have shape \(N, 3, H, W\)"),
        ({"images": torch.full((1, 3, 16, 16), torch.nan), "moa": ["DMSO"]}, "not finite"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(suite, treated, arguments, message):
    with pytest.raises(ValueError, match=message):
        suite(**{"images": treated[0], **arguments})


def test_an_unknown_weight_is_refused(suite):
    with pytest.raises(ValueError, match=r"unknown reward 'roundnes'; did you mean 'roundness'\?"):
        RewardSuite(dict(suite.config.classifier_config), reward_weights={"roundnes": 1.0})


@pytest.mark.parametrize("count", [0, 1])
def test_every_mechanism_needs_two_real_images(suite, simulated_cells, count):
    cells = simulated_cells["train"]
    names = cells["moa"]
    own = [i for i, name in enumerate(names) if name == "Epithelial"][:count]
    rows = [i for i, name in enumerate(names) if name != "Epithelial"] + own
    with pytest.raises(ValueError, match=f"MoA 'Epithelial' has {count} real images; at least two are needed"):
        RewardSuite.fit(cells.select(rows), suite.classifier)


def test_a_mechanism_that_the_classifier_does_not_know_is_refused(simulated_cells):
    classifier = MoAClassifier(moas=[CONTROL, *MOAS[1:]], width=4).eval()
    with pytest.raises(ValueError, match=f"unknown MoA {MOAS[0]!r}"):
        RewardSuite.fit(simulated_cells["train"], classifier)


def test_the_channels_have_to_be_the_classifiers(simulated_cells):
    classifier = MoAClassifier(moas=[CONTROL, *MOAS], channel_names=["actin", "tubulin", "dna"], width=4)
    with pytest.raises(ValueError, match=r"has channels \('dna', .*, the classifier \('actin', 'tubulin', 'dna'\)"):
        RewardSuite.fit(simulated_cells["train"], classifier)


def test_few_real_images_are_a_warning(suite, simulated_cells, caplog):
    with caplog.at_level(logging.WARNING, logger="cellfluxrl"):
        RewardSuite.fit(simulated_cells["train"], suite.classifier)
    assert "has only 8 real images: its statistics are rough" in caplog.text
