import copy
import dataclasses
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellfluxrl import MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor, to_pil, to_uint8
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.energy import energy_rewards, pairwise
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.segmentation.measurements import STATISTICS, measure


@pytest.fixture(scope="module")
def many_cells(tmp_path_factory):
    """Enough cells of each mechanism, and large enough to be segmented."""
    builder = SimulatedCells(
        cache_dir=str(tmp_path_factory.mktemp("many")), cells_per_moa=64, controls_per_plate=40, num_plates=2
    )
    builder.download_and_prepare()
    return builder.as_dataset()["train"]


@pytest.fixture(scope="module")
def own_suite(many_cells):
    return RewardSuite.fit(many_cells, MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval())


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
def test_the_other_rewards_are_deviations_from_real_cells_of_the_mechanism(own_suite, many_cells, statistic):
    images, moas = open_images(many_cells)[:], many_cells["moa"]
    measured = measure(own_suite.segment(images))
    whole = (measured["nucleus_count"] > 0) & (measured["cytoplasm_count"] > 0)
    real = torch.from_numpy(measured[statistic]).double()
    rows = list(range(0, len(moas), 25))
    scores = own_suite(images[rows], moa=[moas[i] for i in rows])[statistic]
    for i, score in zip(rows, scores.tolist(), strict=True):
        own = real[torch.tensor([name == moas[i] for name in moas]) & torch.from_numpy(whole)]
        expected = -abs(real[i] - own.mean()) / own.std()
        assert score == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_combined_is_the_weighted_sum(suite, scores):
    expected = sum(suite.weights[name] * scores[name] for name in REWARD_NAMES)
    torch.testing.assert_close(scores["combined"], expected)
    assert sum(suite.weights.values()) == pytest.approx(1)
    assert all(weight > 0 for weight in suite.weights.values())


def test_what_real_cells_score_is_kept(own_suite, many_cells, tmp_path):
    own_suite.save_pretrained(tmp_path)
    loaded = RewardSuite.from_pretrained(tmp_path)
    images, moas = open_images(many_cells), many_cells["moa"]
    rows = [i for i, moa in enumerate(moas) if moa == "DNA damage"]
    scores = own_suite(images[rows], ["DNA damage"] * len(rows))
    real = loaded.real_means(["DNA damage"])
    assert set(real) == set(scores)
    whole = scores["nucleus_count"] > -9.9
    for name, values in scores.items():
        assert real[name] == pytest.approx(float(values[whole].mean()), abs=1e-3)


def test_floats_have_one_range_whatever_the_batch(suite, treated):
    images, moas = treated
    bright = images[:6].clamp(min=0)  # no negative value in the first batch
    together = torch.cat([bright, images[6:]])
    at_once, in_parts = (suite(together, moas, batch_size=size) for size in (256, 6))
    torch.testing.assert_close(in_parts["combined"], at_once["combined"], rtol=1e-4, atol=1e-4)


def test_weights_can_be_chosen(suite, treated):
    own = RewardSuite(dict(suite.config.classifier_config), reward_weights={"moa": 0.0, "containment": 3.0})
    assert own.weights == {**dict.fromkeys(REWARD_NAMES, 1.0), "moa": 0.0, "containment": 3.0}


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_an_image_is_scored_the_same_whatever_its_kind(suite, treated, form):
    images, moas = treated
    expected = suite(images, moa=moas, form=form)["combined"]
    for kind in (to_uint8(images), to_pil(images), (images + 1) / 2):
        torch.testing.assert_close(suite(kind, moa=moas, form=form)["combined"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [to_uint8, to_pil, lambda images: images.numpy()])
def test_one_image_needs_no_batch_axis(suite, treated, kind):
    images, moas = treated
    alone = suite(kind(images[:1])[0], moa=moas[:1])
    torch.testing.assert_close(alone["combined"], suite(images[:1], moas[:1])["combined"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_scores_do_not_depend_on_the_batch_size(suite, treated, form):
    for images in (treated[0], to_uint8(treated[0])):
        at_once, in_parts = (suite(images, treated[1], form, batch_size=size) for size in (256, 5))
        for name, values in at_once.items():
            torch.testing.assert_close(in_parts[name], values, rtol=1e-4, atol=1e-4)


def test_what_was_measured_can_be_scored_later_and_in_any_form(suite, treated):
    images, moas = treated
    parts = [suite.measure(images[i : i + 4], moas[i : i + 4]) for i in (0, 4, 8)]
    for form in ("deviation", "energy"):
        scores = suite.score(Measured.cat(parts), moas, form)
        for name, values in suite(images, moas, form).items():
            torch.testing.assert_close(scores[name], values, rtol=1e-4, atol=1e-4)


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


def test_a_suite_that_lacks_statistics_is_refused(suite, tmp_path):
    suite.save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["feature_reference"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no feature_reference: an earlier version saved it"):
        RewardSuite.from_pretrained(tmp_path)


def test_fitting_twice_gives_one_suite(suite, simulated_cells):
    again = RewardSuite.fit(simulated_cells["train"], suite.classifier)
    other_seed = RewardSuite.fit(simulated_cells["train"], suite.classifier, seed=1)
    assert again.weights == suite.weights
    assert torch.equal(again.reference, suite.reference)
    assert torch.equal(other_seed.mean, suite.mean)
    assert not torch.equal(other_seed.reference, suite.reference)


def test_statistics_of_the_fitted_cells_are_standardised(own_suite, many_cells):
    index = own_suite.classifier.class_indices(many_cells["moa"])
    vectors = own_suite.statistics(open_images(many_cells)[:], moa=many_cells["moa"])
    assert vectors.shape == (len(many_cells), len(own_suite.statistic_names))
    whole = (vectors > -9.9).all(dim=1)
    assert whole.float().mean() > 0.99
    for k in range(len(own_suite.moas)):
        own = vectors[whole & (index == k)]
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(own.shape[1]), rtol=0, atol=1e-3)
        assert (own.std(dim=0) < 1.001).all()  # less where nearly all cells have one value


# --- the energy form ---


# --- what is matched ---


def test_real_cells_appear_in_the_units_of_the_statistics(own_suite, many_cells):
    moas = many_cells["moa"]
    seen = own_suite.appearance(own_suite.measure(open_images(many_cells)[:], moa=moas), moas)
    count = len(own_suite.statistic_names)
    whole = (seen[:, :count] > -9.9).all(dim=1)
    index = own_suite.classifier.class_indices(moas)
    for k, moa in enumerate(own_suite.moas):
        features, reference = seen[whole & (index == k), count:], own_suite.real_appearance(moa)
        assert reference.shape == (400, seen.shape[1])
        assert torch.equal(reference[:, :count], own_suite.reference[k])
        torch.testing.assert_close(features.mean(dim=0), torch.zeros(features.shape[1]), rtol=0, atol=1e-3)
        # All features together vary as much as all statistics, one each, do; less where some hardly vary at all.
        assert 0.7 * count < float(features.var(dim=0).sum()) < 1.01 * count
        # The reference is of these very cells.
        assert float(pairwise(reference[:, count:], features).min(dim=1).values.max()) < 1e-3


def test_the_same_shapes_in_another_brightness_do_not_match(own_suite, many_cells):
    """What the statistics cannot see: cells of half the contrast, segmented as before."""
    rows = [i for i, moa in enumerate(many_cells["moa"]) if moa == "DNA damage"]
    moas = ["DNA damage"] * len(rows)
    real, dark = (
        own_suite.measure(images, moa=moas)
        for images in (open_images(many_cells)[rows], open_images(many_cells)[rows] // 2)
    )
    reference = own_suite.real_appearance("DNA damage")

    def energy(measured):
        vectors = own_suite.appearance(measured, moas)
        within = (pairwise(vectors, vectors).mean() + pairwise(reference, reference).mean()) / 2
        return float(pairwise(vectors, reference).mean() - within)

    assert energy(dataclasses.replace(real, features=dark.features)) > 3 * energy(real)


def test_without_a_classifier_the_statistics_are_all_that_is_matched(many_cells):
    suite = RewardSuite.fit(many_cells, MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval(), rewards=["roundness"])
    moas = many_cells["moa"][:20]
    measured = suite.measure(open_images(many_cells)[:20], moa=moas)
    assert measured.features is None
    assert torch.equal(suite.appearance(measured, moas), suite.standardise(measured, moas))
    assert suite.real_appearance("DNA damage").shape == (400, 1)


@pytest.fixture(scope="module")
def rollouts(many_cells):
    """Four cells of each of three mechanisms, none without nucleus or cell."""
    names = many_cells["moa"]
    moas = [CONTROL, "DNA damage", "Protein synthesis"]
    rows = [i for moa in moas for i in [i for i, name in enumerate(names) if name == moa][:4]]
    return images_to_tensor(open_images(many_cells)[rows]), [moa for moa in moas for _ in range(4)]


def test_the_energy_form_compares_the_rollouts_of_a_mechanism(own_suite, rollouts):
    images, moas = rollouts
    energy = own_suite(images, moa=moas, form="energy")
    vectors = own_suite.statistics(images, moa=moas)
    assert (vectors > -9.9).all()
    for k in range(3):
        rows, group = slice(4 * k, 4 * k + 4), torch.zeros(4, dtype=torch.long)
        reference = own_suite.reference[own_suite.moas.index(moas[4 * k])][None]
        for column, name in enumerate(own_suite.statistic_names):
            own = slice(column, column + 1)
            single = energy_rewards(vectors[rows, own], reference[..., own], group)
            torch.testing.assert_close(energy[name][rows], single)
        expected = energy_rewards(vectors[rows], reference, group) + energy["containment"][rows]
        torch.testing.assert_close(energy["combined"][rows], expected)
    assert set(energy) == {*REWARD_NAMES, "combined"}


def rows_of(measured, rows):
    """What was measured in some of the images; measured again, in a smaller batch, they would differ in rounding."""
    scores, measurements = (
        {name: values[rows] for name, values in part.items()} for part in (measured.scores, measured.measurements)
    )
    return Measured(measured.values[rows], scores, measurements)


def test_groups_split_the_rollouts_of_a_mechanism(own_suite, rollouts):
    images, moas = rollouts
    measured = own_suite.measure(images[:4], moas[:4])
    together = own_suite.score(measured, moas[:4], form="energy", groups=torch.tensor([7, 7, 3, 3]))
    for rows in (slice(0, 2), slice(2, 4)):
        alone = own_suite.score(rows_of(measured, rows), moas[rows], form="energy")
        for name, values in together.items():
            torch.testing.assert_close(values[rows], alone[name])


def test_what_was_measured_can_be_scored_again(own_suite, rollouts):
    images, moas = rollouts
    measured = own_suite.measure(images, moas)
    first = own_suite.score(measured, moas)
    own_suite.score(measured, moas, form="energy")
    for name, values in own_suite.score(measured, moas).items():
        assert torch.equal(values, first[name]), name


def test_an_image_without_others_gets_the_deviation_form(own_suite, rollouts):
    images, moas = rollouts
    deviation = own_suite(images[:5], moa=moas[:5])
    energy = own_suite(images[:5], moa=moas[:5], form="energy")
    for name in deviation:
        assert energy[name][4] == deviation[name][4]
        if name != "containment":
            assert not torch.isclose(energy[name][:4], deviation[name][:4]).any()


def test_rollouts_of_several_mechanisms_are_no_group(own_suite, rollouts):
    with pytest.raises(ValueError, match="rollouts of one group must have one MoA"):
        own_suite(*rollouts, form="energy", groups=torch.zeros(12, dtype=torch.long))


def energy_score(vectors, reference):
    """J(p) = -E|s - S| + 1/2 E|s - s'|, without the pairs of a sample with itself."""
    count = len(vectors)
    pairs = torch.cdist(vectors, vectors).sum() / (count * (count - 1))
    return float(-torch.cdist(vectors, reference).mean() + pairs / 2)


def test_the_energy_form_prefers_the_real_distribution_to_the_average_cell_and_the_deviation_form_does_not(
    own_suite, tmp_path
):
    builder = SimulatedCells(cache_dir=str(tmp_path), cells_per_moa=240, controls_per_plate=60, num_plates=2, seed=9)
    builder.download_and_prepare()
    cells = builder.as_dataset()["train"]  # other cells than those that were fitted
    images, names = open_images(cells), cells["moa"]
    for moa in ("DNA damage", "Protein synthesis"):
        own = images[[i for i, name in enumerate(names) if name == moa]]
        vectors = own_suite.statistics(own, moa=[moa] * len(own))
        controls = images[[i for i, name in enumerate(names) if name == CONTROL]]
        deviation = own_suite(own, moa=[moa] * len(own))["combined"]
        average = vectors[deviation.argmax()].expand(len(own), -1)
        assert deviation.max() > deviation.mean() + deviation.std()
        reference = own_suite.reference[own_suite.moas.index(moa)]
        real = energy_score(vectors, reference)
        assert energy_score(average, reference) < real - 0.3
        assert energy_score(own_suite.statistics(controls, moa=[moa] * len(controls)), reference) < real - 0.05
        for column, name in enumerate(own_suite.statistic_names):  # the classifier's logit among them
            part = slice(column, column + 1)
            assert energy_score(average[:, part], reference[:, part]) < energy_score(
                vectors[:, part], reference[:, part]
            ), name


def test_a_reward_of_weight_zero_has_no_say_in_either_form(own_suite, rollouts):
    images, moas = rollouts
    quiet = copy.deepcopy(own_suite)
    quiet.weights = own_suite.weights | {"cytoplasm_count": 0.0, "containment": 0.0}
    louder = copy.deepcopy(quiet)
    column = own_suite.statistic_names.index("cytoplasm_count")
    louder.mean[:, column] += 100
    for form in ("deviation", "energy"):
        assert torch.equal(louder(images, moas, form)["combined"], quiet(images, moas, form)["combined"])
        assert not torch.equal(own_suite(images, moas, form)["combined"], quiet(images, moas, form)["combined"])


# --- images in which there is nothing to measure ---


@pytest.mark.parametrize("form", ["deviation", "energy"])
@pytest.mark.parametrize("kind", ["black", "grey", "white", "no nucleus", "no cell"])
def test_an_image_without_nucleus_or_cell_is_never_rewarded(own_suite, rollouts, kind, form):
    images, moas = rollouts[0].clone(), rollouts[1]
    images[0] = {"black": -1.0, "grey": 0.0, "white": 1.0}.get(kind, images[0])
    if kind == "no nucleus":
        images[0, 0] = -1
    if kind == "no cell":
        images[0, 1:] = -1
    scores = own_suite(images, moas, form)
    assert all(values.isfinite().all() for values in scores.values())
    assert scores["combined"][0] < scores["combined"][1:4].min()
    assert scores["containment"][0] == 0
    assert scores["cytoplasm_count" if kind == "no cell" else "nucleus_count"][0] < -5
    if kind != "no cell":
        assert scores["roundness"][0] < -5
        assert scores["moa"][0] <= 0


def test_rollouts_are_not_rewarded_for_being_unlike_an_empty_one(own_suite, rollouts):
    images, moas = rollouts[0][:4].clone(), rollouts[1][:4]
    images[0] = -1
    measured = own_suite.measure(images, moas)
    with_empty = own_suite.score(measured, moas, "energy")["combined"][1:]
    without = own_suite.score(rows_of(measured, slice(1, None)), moas[1:], "energy")["combined"]
    torch.testing.assert_close(with_empty, without)


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


def test_a_mechanism_without_real_images_cannot_be_scored(many_cells, own_suite, caplog):
    rows = [i for i, name in enumerate(many_cells["moa"]) if name != "Epithelial"]
    with caplog.at_level(logging.WARNING, logger="cellfluxrl"):
        suite = RewardSuite.fit(many_cells.select(rows), own_suite.classifier)
    assert "nothing can be scored against MoAs without real images: Epithelial" in caplog.text
    with pytest.raises(ValueError, match="no statistics of MoA 'Epithelial', only of"):
        suite(torch.zeros(1, 3, 48, 48), moa=["Epithelial"])


def test_images_of_another_size_are_refused(own_suite):
    with pytest.raises(
        ValueError, match=r"the images are \(64, 64\) pixels, the suite's statistics are of \(48, 48\)"
    ):
        own_suite(torch.zeros(1, 3, 64, 64), moa=["DMSO"])


def test_images_of_another_pixel_size_are_refused(own_suite, tmp_path):
    own_suite.register_to_config(pixel_size=0.5)
    own_suite.save_pretrained(tmp_path)
    own_suite.register_to_config(pixel_size=None)
    suite = RewardSuite.from_pretrained(tmp_path)
    images = torch.zeros(1, 3, 48, 48)
    with pytest.raises(ValueError, match=r"0\.65 um wide, .* fitted on 0\.5 um: resize the images by 1\.3 "):
        suite(images, moa=["DMSO"], pixel_size=0.65)
    assert set(suite(images, moa=["DMSO"], pixel_size=0.502)) == set(suite(images, moa=["DMSO"]))


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
    assert "fewer than 30 real images are shrunk towards the others: DMSO (" in caplog.text
