"""What is read from logs and results, and which figures it becomes."""

import json

import numpy as np
import pytest
from PIL import Image

from cellfluxrl.training import plots as rl_plots
from cellfluxrl.training.runs import find_runs, read_results
from cellfluxrl.training.sweeps import ablation, optimized_reward, sweep

REWARDS = {"moa": 0.9, "roundness": -0.9, "combined": 0.5}


def line(step, gains=(), **more):
    share = 1 - 0.5**step
    rewards = {f"reward/{name}": value + share * dict(gains).get(name, 0.0) for name, value in REWARDS.items()}
    return {"step": step, "seconds": 2.0 * step, **rewards, **more}


FULL = {
    "reward_std/moa": 0.1,
    "reward_std/combined": 0.2,
    "excess/moa": 0.05,
    "diversity": 0.98,
    "dead_groups": 0.0,
    "r/histogram": [0.1] * 10,
    "distance_to_base": 0.01,
    "kl_weight": 0.1,
    "learning_rate": 1e-4,
    "seconds/sampling": 1.0,
    "seconds/rewards": 0.1,
    "seconds/update": 0.9,
}


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


def draw(tmp_path, *runs, results=None):
    rl_plots.main([*map(str, runs), "--output_dir", str(tmp_path / "plots"), *(results or ())])
    files = sorted((tmp_path / "plots").iterdir())
    for file in files:
        picture = np.asarray(Image.open(file).convert("L"))
        assert picture.std() > 3, f"{file.name} shows nothing"
    return [file.stem for file in files]


def test_a_run_that_logs_everything_gets_every_figure_of_a_run(tmp_path, capsys):
    run = write_run(tmp_path / "rl", **FULL)
    assert draw(tmp_path, run) == ["monitor", "r_histogram", "rewards", "seconds", "training"]
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "plots" / f"{name}.png")
        for name in ("rewards", "monitor", "training", "r_histogram", "seconds")
    ]


def test_a_log_of_rewards_alone_gets_their_curves(tmp_path):
    assert draw(tmp_path, write_run(tmp_path / "rl")) == ["rewards"]


def test_a_step_that_was_skipped_and_a_line_that_was_cut_off_are_passed_over(tmp_path):
    run = write_run(tmp_path / "rl", **FULL)
    with open(run / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": 21, "reward/moa": float("nan"), "kl": None}) + "\n")
        file.write('{"step": 22, "reward/mo')
    (found,) = find_runs([run])
    assert len(found.log) == 21
    assert found.curve("reward/moa")[0].tolist() == list(range(1, 21))
    assert len(found.curve("kl")[0]) == 0


def test_the_real_cells_level_is_drawn(tmp_path):
    run = write_run(tmp_path / "rl")
    draw(tmp_path, run)
    without = (tmp_path / "plots" / "rewards.png").read_bytes()
    (run / "real_rewards.json").write_text(json.dumps({"moa": [0.85, 0.01]}))
    draw(tmp_path, run)
    assert (tmp_path / "plots" / "rewards.png").read_bytes() != without


def test_a_sweep_is_the_runs_below_a_folder_without_the_logs_of_other_scripts(tmp_path):
    for label in ("energy_kl0.1/seed0", "energy_kl0.1/seed1", "rl"):
        write_run(tmp_path / label)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    runs = find_runs([tmp_path])
    assert [run.label for run in runs] == ["energy_kl0.1/seed0", "energy_kl0.1/seed1", "rl"]
    assert [run.group for run in runs] == ["energy_kl0.1", "energy_kl0.1", "rl"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no run in '{tmp_path}'"):
        find_runs([tmp_path])


def test_two_runs_of_one_name_are_refused(tmp_path):
    runs = [write_run(tmp_path / name / "rl") for name in "ab"]
    with pytest.raises(ValueError, match="two runs are called 'rl'"):
        find_runs(runs)


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
