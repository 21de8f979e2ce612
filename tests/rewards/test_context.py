"""Rewards that look beyond the image: at its control, its compound, the concentration and the plate."""

import numpy as np
import pandas as pd
import pytest
import torch

from cellfluxrl import Reward, RewardSuite
from cellfluxrl.data.image_files import images_of_dataset
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.rewards.context import Context, context_of_table
from cellfluxrl.rewards.partial import measure_finite, score_partly
from cellfluxrl.rewards.scoring import score_images

MOA = "DNA damage"
CHANGE = Reward("change_of_brightness", statistic=lambda seen: (seen.images - seen.control).mean(dim=(1, 2, 3)))
DOSE = Reward("log_dose", score=lambda seen: torch.log10(1 + seen.concentration))
TAXOL = Reward("is_taxol", score=lambda seen: torch.tensor([float(name == "taxol") for name in seen.compound]))
PLATE = Reward("length_of_plate", score=lambda seen: torch.tensor([float(len(name)) for name in seen.plate]))


@pytest.fixture(scope="module")
def cells(simulated_cells):
    return simulated_cells["train"]


@pytest.fixture(scope="module")
def own(cells, suite):
    return RewardSuite.fit(cells, suite.classifier, rewards=["containment", CHANGE, DOSE, TAXOL, PLATE])


@pytest.fixture(scope="module")
def images(cells):
    return images_to_tensor(open_images(cells)[:4])


@pytest.fixture
def known(images):
    return {
        "control": images.flip(0),
        "compound": ["taxol", "latrunculin B", "taxol", "ALLN"],
        "concentration": [0.0, 9.0, 99.0, 999.0],
        "plate": ["a", "bb", "ccc", "dddd"],
    }


def test_a_suite_finds_out_what_of_the_context_its_rewards_look_at(own, tmp_path):
    assert own.looks_at["change_of_brightness"] == {"control"}
    assert own.looks_at["log_dose"] == {"concentration"}
    own.save_pretrained(tmp_path)
    assert RewardSuite.from_pretrained(tmp_path).looks_at == own.looks_at


def test_all_that_is_passed_can_be_looked_at(own, images, known):
    scores = own(images, [MOA] * 4, **known)
    torch.testing.assert_close(scores["log_dose"], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert scores["is_taxol"].tolist() == [1, 0, 1, 0]
    assert scores["length_of_plate"].tolist() == [1, 2, 3, 4]
    k = own.moas.index(MOA)
    change = (images - images.flip(0)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(scores["change_of_brightness"], -((change - own.mean[k, 0]) / own.std[k, 0]).abs())


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_the_context_is_cut_into_batches_with_the_images(own, images, known, batch_size):
    torch.testing.assert_close(own(images, [MOA] * 4, batch_size=batch_size, **known), own(images, [MOA] * 4, **known))


@pytest.mark.parametrize("kind", ["uint8", "unit", "list"])
def test_a_control_is_taken_in_every_kind_that_images_are(own, cells, images, known, kind):
    pixels = open_images(cells)[:4][::-1].copy()
    control = {"uint8": pixels, "unit": torch.from_numpy(pixels) / 255, "list": list(pixels)}[kind]
    torch.testing.assert_close(
        own(images, [MOA] * 4, **(known | {"control": control})), own(images, [MOA] * 4, **known)
    )


@pytest.mark.parametrize("name", ["control", "compound", "concentration", "plate"])
def test_what_a_reward_looks_at_and_nobody_passed_is_named(own, images, known, name):
    del known[name]
    with pytest.raises(ValueError, match=rf"reward '.*' looks at the {name} of each image, .*{name}=\.\.\.\)"):
        own(images, [MOA] * 4, **known)


def test_a_reward_that_was_not_fitted_names_it_too(suite, images):
    """Such a suite has not found out before what its rewards look at."""
    own = RewardSuite(dict(suite.config.classifier_config))
    own.count += 1
    own.rewards, own.weights = (CHANGE,), {CHANGE.name: 1.0}
    with pytest.raises(ValueError, match="reward 'change_of_brightness' looks at the control of each image"):
        own(images, [MOA] * 4)


@pytest.mark.parametrize("value", [["taxol"], "taxol"])
def test_one_entry_for_each_image_is_needed(own, images, known, value):
    with pytest.raises(ValueError, match="compound must have one entry for each of the 4 images, got"):
        own(images, [MOA] * 4, **(known | {"compound": value}))


def test_nothing_of_the_context_is_needed_where_nobody_looks(suite, images, known):
    torch.testing.assert_close(suite(images, [MOA] * 4, **known), suite(images, [MOA] * 4))


# --- Real cells ---


def test_real_cells_are_compared_with_controls_of_their_plate_and_split(cells, own):
    k = own.moas.index(MOA)
    rows = [i for i, moa in enumerate(cells["moa"]) if moa == MOA]
    pixels = open_images(cells)[:].astype(np.float64).mean(axis=(1, 2, 3)) / 127.5 - 1
    control = np.flatnonzero(cells["is_control"])
    at_most = max(pixels[rows]) - min(pixels[control])
    at_least = min(pixels[rows]) - max(pixels[control])
    assert at_least < float(own.mean[k, 0]) < at_most


def test_a_control_is_compared_with_another_one():
    table = pd.DataFrame({"plate": ["a", "a", "a", "b", "b"], "is_control": [True, True, False, True, False]})
    drawn = []
    for seed in range(30):
        context = context_of_table(table, lambda rows: rows[:, None], seed)
        drawn.append(np.asarray(context.control)[:, 0].tolist())
    assert {rows[0] for rows in drawn} == {1}
    assert {rows[1] for rows in drawn} == {0}
    assert {rows[2] for rows in drawn} == {0, 1}
    assert {rows[3] for rows in drawn} == {3}, "it has no other"
    assert {rows[4] for rows in drawn} == {3}


def test_a_plate_without_controls_is_named_when_they_are_looked_at(cells, suite):
    alone = cells.filter(lambda row: not row["is_control"])
    assert RewardSuite.fit(alone, suite.classifier, rewards=["roundness"])
    with pytest.raises(ValueError, match=r"a reward looks at control cells, and plate '.*' has none in this split"):
        RewardSuite.fit(alone, suite.classifier, rewards=[CHANGE])


def test_cells_of_a_data_set_are_scored_with_their_columns(own, simulated_cells):
    cells = simulated_cells["test"]
    images, _ = images_of_dataset(cells, own.channel_names)
    table = score_images(images, own, batch_size=7)
    expected = np.log10(1 + np.array(cells["concentration"], dtype=float))
    np.testing.assert_allclose(table["reward_log_dose"], expected, rtol=1e-5)
    assert table["z_change_of_brightness"].abs().max() > 0
    pd.testing.assert_frame_equal(table, score_images(images, own, batch_size=64), check_exact=False, atol=1e-4)


# --- Parts and processes ---


def test_an_image_that_is_not_finite_takes_its_context_along(own, images, known):
    broken = images.clone()
    broken[1, 0, 0, 0] = torch.nan
    seen = measure_finite(own, broken, [MOA] * 4, Context.of(4, **known))
    scores = score_partly(own, seen, [MOA] * 4)
    rest = [0, 2, 3]
    expected = own(images[rest], [MOA] * 3, **{name: [values[i] for i in rest] for name, values in known.items()})
    assert scores["combined"][1].isnan()
    for name, values in expected.items():
        torch.testing.assert_close(scores[name][rest], values)
