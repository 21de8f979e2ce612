"""From images to results: what is in them, and what is refused."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from fitted import as_dataset, pictures
from PIL import Image

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.evaluation.claims import FAILS, HOLDS, NOT_REFUTED, NOT_SHOWN, Claim, claims_of_pair
from cellfluxrl.evaluation.columns import CONTROL_ROW, REAL_ROW, Column, columns_of
from cellfluxrl.evaluation.evaluate import Images, evaluate
from cellfluxrl.evaluation.features.extractors import FeatureExtractor
from cellfluxrl.evaluation.measuring import Evaluators, Measurements, measure_cells
from cellfluxrl.evaluation.report.figures import draw_all
from cellfluxrl.evaluation.report.sections import findings, write_evaluation_report
from cellfluxrl.evaluation.results import results_dict, write_results
from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.evaluation.statistics.metrics import image_features, spread_within
from cellfluxrl.evaluation.statistics.paired import PairedTest
from cellfluxrl.rewards.segmentation.otsu import OtsuSegmenter
from cellfluxrl.rewards.terms import Reward

CHOSEN = ["DNA damage", "Eg5 inhibitors", "Epithelial"]
LABELS = [moa for moa in CHOSEN for _ in range(12)]
COMPOUNDS = [f"{moa} {'ab'[k % 2]}" for k, moa in enumerate(LABELS)]


@pytest.fixture(scope="module")
def evaluators():
    torch.manual_seed(0)
    names = [moa for moa in CHOSEN for _ in range(30)]
    networks = [MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval() for _ in range(2)]
    suite = RewardSuite.fit(as_dataset(simulate_cells(names, seed=77), names), networks[0])
    return Evaluators(suite, FeatureExtractor("hand-made (27)", image_features), OtsuSegmenter(), networks[1])


@pytest.fixture(scope="module")
def images():
    samples = np.stack([pictures(LABELS, seed) for seed in (5, 6)], axis=1)
    return Images(
        control=pictures([CONTROL] * len(LABELS), seed=1),
        real=pictures(LABELS, seed=2),
        reference=pictures(LABELS, seed=3),
        generated={"good": samples, "dark": samples // 2},
        moa=LABELS,
        compound=COMPOUNDS,
        reference_moa=LABELS,
        reference_compound=COMPOUNDS,
        training=pictures(LABELS, seed=4),
    )


@pytest.fixture(scope="module")
def results(images, evaluators):
    return evaluate(images, evaluators, best_of_n=[1, 2])


def test_every_row_has_every_column_with_an_interval(results):
    chosen = [f"{model}, {selection} of 2" for model in ("good", "dark") for selection in ("best", "match")]
    assert list(results.rows) == [CONTROL_ROW, "good", "dark", *chosen, REAL_ROW]
    for name, row in results.rows.items():
        assert set(results.columns) - set(row) <= {"frechet_infinity"}  # which 36 cells do not allow
        for column, interval in row.items():
            assert interval.low <= interval.value <= interval.high, (name, column)


def test_rewards_are_optimised_and_all_else_is_not(results, evaluators):
    optimised = {name for name, column in results.columns.items() if column.optimised}
    assert optimised == {*evaluators.suite.weights, "combined", "accuracy_rewards"}
    assert results.evaluators["features"] == "hand-made (27)"
    assert results.evaluators["second segmenter"] != results.evaluators["segmenter of the rewards"]


def test_features_of_the_rewards_classifier_count_as_optimised(images, evaluators):
    alone = Evaluators(evaluators.suite, evaluators.extractor, evaluators.segmenter)
    columns = columns_of(alone, with_training=False)
    assert columns["kernel"].optimised
    assert not columns["wasserstein"].optimised
    assert "judge" not in columns
    assert "copies" not in columns


def test_breakdowns_count_the_cells(results):
    for row in results.rows:
        assert {name: (g.count, g.reference) for name, g in results.by_moa[row].items()} == dict.fromkeys(
            CHOSEN, (12, 12)
        )
        assert {g.count for g in results.by_compound[row].values()} == {6}
        assert set(results.by_compound[row]) == set(COMPOUNDS)


def test_darker_cells_lose_against_good_ones_where_it_is_measured(results):
    verdicts = {c.column: c.verdict for c in results.claims if (c.model, c.against) == ("good", "dark")}
    assert verdicts["kernel"] == HOLDS
    assert verdicts["effect_error"] in (HOLDS, NOT_SHOWN)  # six compounds only
    assert FAILS in {c.verdict for c in results.claims if c.model == "dark"}


def test_best_of_n_never_lowers_what_it_chooses_by(results):
    curve = results.best_of_n["good"]["best"]
    assert curve[2]["combined"].value > curve[1]["combined"].value
    first = results.rows["good"]["combined"].value
    assert curve[1]["combined"].value == pytest.approx(first, abs=1e-6)
    assert results.best_of_n["good"]["match"][1] == curve[1]


@pytest.mark.parametrize("selection", ["best", "match"])
def test_chosen_candidates_are_a_row_of_their_own_and_compared_with_the_first(results, images, selection):
    model = f"good, {selection} of 2"
    (chosen,) = results.images.generated[model].swapaxes(0, 1)
    is_first = (chosen == images.generated["good"][:, 0]).all(axis=(1, 2, 3))
    assert ((chosen == images.generated["good"][:, 1]).all(axis=(1, 2, 3)) | is_first).all()
    assert 0 < is_first.sum() < len(LABELS)
    curve = results.best_of_n["good"][selection][2]["combined"]
    assert results.rows[model]["combined"].value == pytest.approx(curve.value, abs=1e-6)
    assert set(results.paired) == {
        *((name, CONTROL_ROW) for name in results.models),
        ("good", "dark"),
        *((f"{name}, {way} of 2", name) for name in ("good", "dark") for way in ("best", "match")),
    }
    assert results.chosen[model] == "good"
    assert model not in results.best_of_n


def test_a_model_with_one_sample_takes_no_part_in_best_of_n(images, evaluators):
    generated = {"good": images.generated["good"], "single": images.generated["dark"][:, :1]}
    found = evaluate(Images(**{**vars(images), "generated": generated, "training": None}), evaluators, best_of_n=[2])
    assert found.models == ["good", "single", "good, best of 2", "good, match of 2"]
    assert set(found.best_of_n) == {"good"}


def test_a_suite_of_other_rewards_has_its_own_columns(images, evaluators):
    brightness = Reward(
        "brightness_of_pixels",
        statistic=lambda seen: seen.images.mean((1, 2, 3)),
        description="mean intensity",
    )
    rewards = ["containment", brightness]
    suite = RewardSuite.fit(
        as_dataset(simulate_cells(LABELS, seed=7), LABELS), evaluators.suite.classifier, rewards=rewards
    )
    own = Evaluators(suite, evaluators.extractor, evaluators.segmenter, evaluators.judge)
    found = evaluate(Images(**{**vars(images), "training": None}), own)
    assert list(found.columns)[:3] == ["containment", "brightness_of_pixels", "combined"]
    assert found.columns["brightness_of_pixels"].note == "mean intensity"
    assert found.rows["dark"]["brightness_of_pixels"].high < found.rows["good"]["brightness_of_pixels"].low


def test_one_candidate_is_no_choice_and_no_row(images, evaluators):
    found = evaluate(Images(**{**vars(images), "training": None}), evaluators, best_of_n=[1])
    assert found.models == ["good", "dark"]


def test_results_are_json_without_nan_and_tables_hold_the_same(results, tmp_path):
    table = pd.DataFrame({"plate": "p", "compound": COMPOUNDS, "concentration": 1.0, "moa": LABELS})
    paths = write_results(tmp_path, results, table, {"seed": 0})
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == results_dict(results, {"seed": 0})
    assert stored["schema_version"] == 1
    assert stored["rows"]["good"]["kernel"]["value"] == results.rows["good"]["kernel"].value
    long = pd.read_csv(tmp_path / "table.csv").set_index(["row", "column"])
    assert long.loc[("good", "kernel"), "low"] == pytest.approx(results.rows["good"]["kernel"].low)
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert len(cells) == 8 * len(LABELS)
    means = cells.groupby("row")["reward_combined"].mean()
    assert means["good"] == pytest.approx(results.rows["good"]["combined"].value)
    assert all(path.is_file() for path in paths)


@pytest.mark.slow
def test_every_picture_is_drawn_and_goes_into_the_report(results, images, evaluators, tmp_path):
    ways = {"good": (torch.zeros(4, 2, 3, 48, 48), ["a", "b"])}
    drawn = draw_all(tmp_path / "plots", results, evaluators.suite, ways)
    assert set(drawn) >= {"measures", "by_moa", "by_compound", "effects", "best_of_n", "grid"}
    assert {"failures good", "failures dark", "failures good, match of 2", "trajectories good"} <= set(drawn)
    write_evaluation_report(tmp_path / "report.html", "good against dark", results, drawn, {"seed": 0})
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == len(drawn)


def test_report_is_one_file_that_says_what_holds(results, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "blank.png")
    drawn = dict.fromkeys(
        ("measures", "by_moa", "by_compound", "effects", "best_of_n", "grid"), tmp_path / "blank.png"
    )
    write_evaluation_report(tmp_path / "report.html", "good against dark", results, drawn, {"seed": 0})
    page = (tmp_path / "report.html").read_text()
    for text in ("What holds on held-out evidence", "hand-made (27)", "Gains of good over dark", "Best of N"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    sentences = findings(results)
    assert any(s.startswith("good against dark, on held-out evidence: better in") for s in sentences)


def test_measurements_are_read_back_for_the_same_cells_only(images, evaluators, tmp_path):
    measured = measure_cells(images.real, LABELS, evaluators)
    measured.save(tmp_path / "real.npz", "one")
    loaded = Measurements.load(tmp_path / "real.npz", "one")
    np.testing.assert_array_equal(loaded.morphology, measured.morphology)
    assert loaded.rewards.keys() == measured.rewards.keys()
    assert Measurements.load(tmp_path / "real.npz", "two") is None
    assert Measurements.load(tmp_path / "none.npz", "one") is None


@pytest.mark.slow
def test_cells_without_anything_in_them_are_reported_and_not_fatal(images, evaluators):
    empty = {"empty": np.zeros((len(LABELS), 1, *images.control.shape[1:]), dtype=np.uint8)}
    found = evaluate(Images(**{**vars(images), "generated": empty, "training": None}), evaluators)
    assert found.rows["empty"]["measurable"].value == 0
    assert math.isnan(found.rows["empty"]["two_sample"].value)
    assert found.memorisation == {}
    assert NOT_SHOWN in {c.verdict for c in found.claims}
    json.dumps(results_dict(found, {}), allow_nan=False)


def test_sets_that_do_not_fit_are_refused(images, evaluators):
    def changed(**values):
        return Images(**{**vars(images), **values})

    with pytest.raises(ValueError, match="real must be as many as the 36 controls, got 5"):
        evaluate(changed(real=images.real[:5]), evaluators)
    with pytest.raises(ValueError, match="needs as many samples of each control, got 2"):
        evaluate(images, evaluators, best_of_n=[4])
    with pytest.raises(ValueError, match="cannot be called 'real treated'"):
        evaluate(changed(generated={REAL_ROW: images.generated["good"]}), evaluators)
    with pytest.raises(ValueError, match="no generated cells"):
        evaluate(changed(generated={}), evaluators)


def test_spread_within_groups_ignores_differences_between_them():
    random = np.random.default_rng(0)
    values, groups = random.normal(size=(400, 2)), np.arange(400) % 4
    moved = values + 9 * groups[:, None]
    assert spread_within(moved, groups, values, groups) == pytest.approx(1)
    assert spread_within(moved * [0.5, 0.5], groups, values, groups) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "difference", "adjusted", "verdict"),
    [
        (0.4, 0.2, Interval(0.2, 0.1, 0.3, 0.05), 0.01, HOLDS),  # nearer to the real cells' 0.5 from below
        (0.9, 0.7, Interval(0.2, 0.1, 0.3, 0.05), 0.01, FAILS),  # further above it
        (0.9, 0.2, Interval(0.7, 0.6, 0.8, 0.05), 0.01, NOT_SHOWN),  # too much against too little
        (0.4, 0.2, Interval(0.2, 0.1, 0.3, 0.05), 0.20, NOT_SHOWN),  # one of many tests
        (0.2, 0.4, Interval(-0.2, -0.3, -0.1, 0.05), 0.01, FAILS),
    ],
)
def test_more_reward_than_real_cells_have_is_no_gain(ours, theirs, difference, adjusted, verdict):
    values = {"a": ours, "b": theirs, REAL_ROW: 0.5}
    rows = {name: {"moa": Interval(v, v - 0.05, v + 0.05, 0.025)} for name, v in values.items()}
    tests = {("a", "b"): {"moa": PairedTest(difference, 0.001, 99, adjusted)}}
    (claim,) = claims_of_pair("a", "b", rows, tests, {"moa": Column("", "as real", optimised=True)})
    assert claim.verdict == verdict


def test_a_claim_knows_whether_its_interval_excludes_the_null():
    claim = Claim("a", "moa", "", False, Interval(0.2, 0.1, 0.3), 0.0, HOLDS)
    assert claim.excludes_null
    assert not Claim("a", "moa", "", False, Interval(0.2, -0.1, 0.3), 0.0, NOT_REFUTED).excludes_null
