"""Rewards as plug-ins: users' own, beside the seven or instead of them."""

import json
import sys
import uuid

import pytest
import torch

from cellfluxrl import MoAClassifier, Reward, RewardSuite
from cellfluxrl.data.image_store import open_images
from cellfluxrl.rewards import REWARDS, register_reward
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.terms import find_reward

NUCLEUS_IN_THE_MIDDLE = Reward(
    "nucleus_in_the_middle",
    score=lambda seen: torch.from_numpy(seen.masks.nuclei[:, 8, 8] > 0).float(),
)
DNA_BRIGHTNESS = Reward("dna_brightness", statistic=lambda seen: seen.images[:, 0].mean(dim=(1, 2)))


@pytest.fixture(scope="module")
def cells(simulated_cells):
    return simulated_cells["train"]


@pytest.fixture(scope="module")
def fit(cells, suite):
    return lambda *rewards: RewardSuite.fit(cells, suite.classifier, rewards=rewards or None)


def test_own_rewards_stand_beside_the_seven(fit, cells, suite):
    images, moas = open_images(cells)[:20], cells["moa"][:20]
    own = fit(*REWARD_NAMES, NUCLEUS_IN_THE_MIDDLE, DNA_BRIGHTNESS)
    scores, seven = own(images, moas), suite(images, moas)
    assert set(scores) == {*REWARD_NAMES, "nucleus_in_the_middle", "dna_brightness", "combined"}
    for name in REWARD_NAMES:
        torch.testing.assert_close(scores[name], seven[name])
    assert set(scores["nucleus_in_the_middle"].tolist()) <= {0.0, 1.0}
    assert (scores["dna_brightness"] <= 0).all()
    assert own.weights["dna_brightness"] > 0
    expected = sum(own.weights[name] * scores[name] for name in own.weights)
    torch.testing.assert_close(scores["combined"], expected)


def test_a_statistic_of_ones_own_has_both_forms(fit, cells):
    own = fit(DNA_BRIGHTNESS)
    images, moas = open_images(cells)[:], cells["moa"]
    same = [i for i, moa in enumerate(moas) if moa == "DMSO"]
    deviation, energy = (own(images[same], [moas[i] for i in same], form) for form in ("deviation", "energy"))
    average = int(deviation["dna_brightness"].argmax())
    assert energy["dna_brightness"][average] < energy["dna_brightness"].max()
    assert torch.equal(energy["combined"], energy["dna_brightness"])


def test_only_what_a_reward_looks_at_is_computed(fit, cells, monkeypatch):
    own = fit(DNA_BRIGHTNESS)
    monkeypatch.setattr(own, "segmenter", lambda images: pytest.fail("segmented for nothing"))
    monkeypatch.setattr(MoAClassifier, "forward", lambda *_: pytest.fail("classified for nothing"))
    own(open_images(cells)[:4], cells["moa"][:4])


def test_all_rewards_share_one_segmentation(fit, cells, monkeypatch):
    own = fit(*REWARD_NAMES, NUCLEUS_IN_THE_MIDDLE)
    calls, segment = [], own.segmenter
    monkeypatch.setattr(own, "segmenter", lambda images: calls.append(len(images)) or segment(images))
    own(open_images(cells)[:8], cells["moa"][:8])
    assert calls == [8]


def test_a_saved_suite_finds_the_rewards_by_name(fit, cells, tmp_path):
    own = fit("moa", DNA_BRIGHTNESS)
    own.save_pretrained(tmp_path)
    again = RewardSuite.from_pretrained(tmp_path)
    images, moas = open_images(cells)[:6], cells["moa"][:6]
    for name, values in own(images, moas).items():
        assert torch.equal(again(images, moas)[name], values)


def test_an_installed_package_brings_its_rewards(tmp_path, monkeypatch):
    name = f"brought_{uuid.uuid4().hex}"
    (tmp_path / "brings_rewards.py").write_text(
        f"from cellfluxrl import Reward\nmine = Reward({name!r}, score=lambda seen: seen.images.mean(dim=(1, 2, 3)))\n"
    )
    info = tmp_path / "brings_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brings-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cellfluxrl.rewards]\n{name} = brings_rewards:mine\n")
    with pytest.raises(ValueError, match=f"unknown reward '{name}'"):
        find_reward(name)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_reward(name).name == name
    assert "brings_rewards" in sys.modules


def test_a_suite_whose_reward_is_not_installed_says_which(fit, cells, tmp_path):
    fit(DNA_BRIGHTNESS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rewards"] = ["dna_brightnes"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown reward 'dna_brightnes'; did you mean 'dna_brightness'\?"):
        RewardSuite.from_pretrained(tmp_path)


def test_code_that_still_names_its_needs_works(fit, cells):
    """As it was written when a suite computed only what a reward asked for."""
    own = fit(Reward("dna_of_before", ["images"], statistic=lambda seen: seen.images[:, 0].mean(dim=(1, 2))))
    assert set(own(open_images(cells)[:2], cells["moa"][:2])) == {"dna_of_before", "combined"}


def test_a_suite_knows_what_its_rewards_look_at(fit):
    own = fit("moa", "roundness", DNA_BRIGHTNESS)
    assert own.looks_at == {"moa": {"classifier", "masks"}, "roundness": {"masks"}, "dna_brightness": set()}


def test_a_custom_reward_that_looks_at_the_classifier_has_it_matched(fit, cells):
    def spread(seen):
        return seen.features.std(dim=1)

    own = fit(Reward("spread_of_features", statistic=spread))
    images, moas = open_images(cells)[:4], cells["moa"][:4]
    seen = own.appearance(own.measure(images, moas), moas)
    assert seen.shape == (4, 1 + own.classifier.head.in_features)
    assert own.real_appearance(moas[0]).shape[1] == seen.shape[1]


def test_a_reward_that_looks_now_and_then_is_asked_batch_by_batch(fit, cells):
    """Whatever it looks at in one batch and not in another, the batches are put together."""

    def moody(seen):
        is_first = seen.images[0].equal(first)
        return (seen.measurements["nucleus_size"] if is_first else seen.logit) * 0 + 1

    images, moas = torch.from_numpy(open_images(cells)[:6]).float() / 127.5 - 1, cells["moa"][:6]
    first = images[0]
    own = fit(Reward("moody", statistic=moody), DNA_BRIGHTNESS)
    measured = own.measure_batches(images, moas, batch_size=2)
    assert measured.values[:, 0].tolist() == [1.0] * 6
    assert measured.features is None
    assert measured.measurements["nucleus_size"].shape == (6,)


def test_a_reward_says_what_it_is_in_words():
    named = Reward("mean_dna", score=len, title="DNA", unit="levels", description="how bright")
    assert (named.title, named.unit, named.description) == ("DNA", "levels", "how bright")
    plain = Reward("mean_dna", score=len)
    assert (plain.title, plain.unit, plain.description) == ("Mean dna", "", "a custom score")
    assert all(reward.title and reward.description for reward in REWARDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "reward 'mine' needs a score or a statistic"),
        ({"name": "combined", "score": len}, "'combined' is the name of the weighted mean"),
    ],
)
def test_what_is_no_reward_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Reward(**{"name": "mine", **arguments})


def test_two_rewards_cannot_have_one_name():
    with pytest.raises(ValueError, match="there is another reward 'containment' already"):
        register_reward(Reward("containment", score=len))


def test_the_cell_of_a_notebook_may_run_twice():
    code = "reward = Reward('of_a_notebook', statistic=lambda seen: seen.images[:, 0].mean((1, 2)) * 2)"
    cell = {"Reward": Reward, "__name__": "notebook"}
    for _ in range(2):
        exec(code, cell)
        assert register_reward(cell["reward"]) is find_reward("of_a_notebook")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda seen: seen.images.mean(), r"must give a tensor of shape \(3,\), got \(\)"),
        (lambda seen: [0.0] * 3, r"must give a tensor of shape \(3,\), got list"),
        (lambda seen: torch.tensor([0.0, torch.nan, 1.0]), r"a score that is not finite for images \[1\]"),
    ],
)
def test_a_reward_that_misbehaves_is_named(suite, cells, score, message):
    own = RewardSuite(dict(suite.config.classifier_config))
    own.count += 1
    own.rewards = (Reward("faulty", score=score),)
    own.weights = {"faulty": 1.0}
    with pytest.raises(ValueError, match=f"reward 'faulty' .*{message}"):
        own(open_images(cells)[:3], cells["moa"][:3])
