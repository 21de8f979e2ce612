"""The ablation and the sweep of KL weights that benchmarks/study_figures.py draws."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellfluxrl.training.runs import find_runs

FIGURES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/study_figures.py"))
ablation, optimized_reward, read_results, sweep = (
    FIGURES[name] for name in ("ablation", "optimized_reward", "read_results", "sweep")
)

REWARDS = {"moa": 0.9, "roundness": -0.9, "combined": 0.5}


def line(step, gains=(), **more):
    share = 1 - 0.5**step
    rewards = {f"reward/{name}": value + share * dict(gains).get(name, 0.0) for name, value in REWARDS.items()}
    return {"step": step, "seconds": 2.0 * step, **rewards, **more}


def write_results(folder, rows):
    """As an evaluation does, of (value, standard error)."""
    plain = {
        label: {
            name: {"value": value, "low": None, "high": None, "error": error} for name, (value, error) in row.items()
        }
        for label, row in rows.items()
    }
    (folder / "results.json").write_text(json.dumps({"rows": plain}))


def write_run(folder, gains=(), count=20, **more):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line(i + 1, gains, **more)) + "\n" for i in range(count)))
    return folder


def draw(tmp_path, *runs, results=()):
    FIGURES["main"]([*map(str, runs), "--output_dir", str(tmp_path / "plots"), *results])
    files = sorted((tmp_path / "plots").iterdir())
    for file in files:
        assert np.asarray(Image.open(file).convert("L")).std() > 3, f"{file.name} shows nothing"
    return [file.stem for file in files]


@pytest.mark.parametrize(
    ("label", "optimized"), [("moa", "moa"), ("only_moa", "moa"), ("combined", "combined"), ("energy_kl0.1", None)]
)
def test_the_optimised_reward_is_in_the_label(label, optimized):
    assert optimized_reward(label, ("moa", "roundness", "combined")) == optimized


def test_ablation_without_results_compares_the_ends_of_the_logs(tmp_path):
    write_run(tmp_path / "moa", {"moa": 0.2, "combined": 0.1}, count=40)
    write_run(tmp_path / "roundness", {"roundness": 0.4, "moa": -0.1}, count=40)
    changes = ablation(find_runs([tmp_path]), {})
    assert list(changes) == ["moa", "roundness"]  # in the order of the logs
    # The first tenth, four lines, has an average of 1 - (1/2 + 1/4 + 1/8 + 1/16) / 4 of the gain already.
    left = (1 / 2 + 1 / 4 + 1 / 8 + 1 / 16) / 4
    assert changes["moa"]["moa"][0] == pytest.approx(0.2 * left, abs=1e-6)
    assert changes["roundness"]["moa"][0] == pytest.approx(-0.1 * left, abs=1e-6)
    assert changes["moa"]["roundness"] == pytest.approx((0, 0), abs=1e-9)
    assert "ablation" in draw(tmp_path, tmp_path)


def test_ablation_with_results_is_against_the_base_over_seeds(tmp_path):
    rows = {"base": {"moa": [0.5, 0.03], "roundness": [-1.0, 0.03]}}
    for seed, gain in enumerate((0.1, 0.2, 0.3)):
        write_run(tmp_path / "moa" / f"seed{seed}")
        rows[f"moa/seed{seed}"] = {"moa": [0.5 + gain, 0.04], "roundness": [-1.0, 0.04]}
    write_run(tmp_path / "roundness")
    rows["roundness"] = {"moa": [0.4, 0.04], "roundness": [-0.5, 0.04]}
    write_results(tmp_path, rows)
    changes = ablation(find_runs([tmp_path]), read_results([tmp_path / "results.json"]))
    assert changes["moa"]["moa"] == pytest.approx((0.2, 0.1 / 3**0.5))
    assert changes["roundness"]["roundness"] == pytest.approx((0.5, 0.05))
    assert "ablation" in draw(tmp_path, tmp_path)


@pytest.fixture
def kl_runs(tmp_path):
    columns = ("combined", "kernel", "wasserstein")
    rows = {"base": dict.fromkeys(columns, (0.5, 0.1)), "real treated": dict.fromkeys(columns, (0.6, 0.1))}
    for form in ("energy", "deviation"):
        for weight in (1, 0.1):
            for seed in (0, 1):
                label = f"{form}_kl{weight}/seed{seed}"
                write_run(tmp_path / "sweep" / label, distance_to_base=0.01 / weight, kl_weight=99.0)
                rows[label] = dict.fromkeys(columns, (0.5 + 0.1 / weight + seed, 0.1))
    write_results(tmp_path, rows)
    return tmp_path


def test_sweep_has_a_point_for_each_series_and_weight(kl_runs):
    points = sweep(find_runs([kl_runs / "sweep"]), read_results([kl_runs / "results.json"]))
    assert [(p.series, p.kl_weight) for p in points] == [
        ("deviation", 0.1),
        ("deviation", 1.0),
        ("energy", 0.1),
        ("energy", 1.0),
    ]
    assert points[0].distance == pytest.approx((0.1, 0))
    assert points[0].row["combined"] == pytest.approx((2.0, 0.5))


def test_sweep_is_drawn_from_the_results_that_are_named(kl_runs):
    assert "kl_sweep" not in draw(kl_runs, kl_runs / "sweep")
    assert "kl_sweep" in draw(kl_runs, kl_runs / "sweep", results=["--results", str(kl_runs / "results.json")])


def test_the_weight_and_the_distance_of_older_logs_come_from_the_log(tmp_path):
    for name, weight in (("weak", 0.1), ("strong", 1.0)):
        write_run(tmp_path / name, kl=0.02, kl_weight=weight)
    results = {name: {"combined": (0.5, 0.1)} for name in ("weak", "strong")}
    points = sweep(find_runs([tmp_path]), results)
    assert {(p.series, p.kl_weight, p.distance) for p in points} == {
        ("weak", 0.1, (0.02, 0.0)),
        ("strong", 1.0, (0.02, 0.0)),
    }
