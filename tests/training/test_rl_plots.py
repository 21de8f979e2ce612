"""What is read from logs and results, and which figures it becomes."""

import json

import numpy as np
import pytest
from PIL import Image

from cellfluxrl.training import plots as rl_plots
from cellfluxrl.training.runs import find_runs

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


def write_run(folder, gains=(), count=20, **more):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line(i + 1, gains, **more)) + "\n" for i in range(count)))
    return folder


def draw(tmp_path, *runs):
    rl_plots.main([*map(str, runs), "--output_dir", str(tmp_path / "plots")])
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
