"""`cellfluxrl evaluate`, as users call it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cellfluxrl import CellFluxRLPipeline, MoAClassifier
from cellfluxrl.commands import cli
from cellfluxrl.data.calibration import LEVELS
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.evaluation import generating

SIMULATED = ["simulated", "--simulated_cells_per_moa", "40", "--image_size", "16", "--cpu"]
SMALL = ["--num", "40", "--num_inference_steps", "1"]


@pytest.fixture(scope="module")
def places(pipeline, tmp_path_factory):
    """A pipeline, another one that differs, one without rewards, and two classifiers."""
    home = tmp_path_factory.mktemp("evaluate")
    pipeline.save_pretrained(home / "rl")
    judge = MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval()
    judge.save_pretrained(home / "judge")
    pipeline.rewards.classifier.save_pretrained(home / "classifier")
    rewards = pipeline.rewards
    pipeline.register_modules(rewards=None)
    pipeline.save_pretrained(home / "base")
    pipeline.register_modules(rewards=rewards)
    return home


@pytest.fixture
def refused(places, tmp_path, monkeypatch, capsys):
    """The one line that a mistake ends with."""
    monkeypatch.chdir(places)

    def call(*options: str) -> str:
        capsys.readouterr()
        assert cli.main(["evaluate", *options, "--output_dir", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("cellfluxrl: error: ")
        return line

    return call


def evaluate(folder, *options, **changes):
    command = [sys.executable, "-m", "cellfluxrl.commands.cli", "evaluate", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_two_pipelines_from_the_command_line_and_again(places, tmp_path):
    options = ["rl", *SIMULATED, *SMALL, "--against", "base", "--judge", "judge", "--best_of_n", "1", "2"]
    first = evaluate(places, *options, "--output_dir", tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    files = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "results.json", "table.csv", "by_moa.csv", "by_compound.csv", "cells.csv"} <= files
    results = json.loads((tmp_path / "results.json").read_text())
    chosen = [f"{model}, {selection} of 2" for model in ("rl", "base") for selection in ("best", "match")]
    assert results["models"] == ["rl", "base", *chosen]
    assert set(results["rows"]) == {"copy of control", *results["models"], "real treated"}
    (pair,) = [p for p in results["paired"] if (p["ours"], p["theirs"]) == ("rl", "base")]
    # The same network, controls and noise; of each compound there are too few of 40 cells for an effect.
    assert {name for name, test in pair["tests"].items() if test["difference"]["value"] != 0} == {"effect_error"}
    assert "fewer than 5 cells" in first.stdout
    assert f"saved: {tmp_path / 'report.html'}" in first.stdout

    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("measured/*.npz")}
    generated = np.load(tmp_path / "pipeline" / "generated.npy")
    assert generated.shape[:2] == (40, 2)
    again = evaluate(places, *options, "--output_dir", tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("measured/*.npz")} == stamps
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.slow
def test_a_suite_is_fitted_and_training_cells_are_read_from_elsewhere(places, simulated_cells, tmp_path):
    simulated_cells.save_to_disk(tmp_path / "cells")
    options = [*SIMULATED, *SMALL, "--classifier", "classifier", "--training_dataset", tmp_path / "cells" / "train"]
    done = evaluate(places, "base", *options, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    treated = sum(not is_control for is_control in simulated_cells["train"]["is_control"])
    assert results["memorisation"]["base"]["training"] == treated
    assert results["columns"]["kernel"]["optimised"]  # there is no other classifier
    assert "no --judge" in done.stderr


@pytest.mark.slow
def test_calibrated_controls_are_what_pipelines_start_from(places, pipeline, tmp_path):
    levels = dict.fromkeys(pipeline.channel_names, np.linspace(0.2, 0.7, LEVELS).tolist())
    known = CellFluxRLPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder, pipeline.rewards, levels)
    known.save_pretrained(tmp_path / "known")
    for name, option in (("plain", []), ("calibrated", ["--calibrate"])):
        options = [*SIMULATED, *SMALL, *option, "--output_dir", tmp_path / name]
        done = evaluate(places, tmp_path / "known", *options)
        assert done.returncode == 0, done.stderr[-3000:]
    plain, ours = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "calibrated"))
    assert ours["rows"]["copy of control"] == plain["rows"]["copy of control"]
    assert ours["rows"]["known"] != plain["rows"]["known"]
    again = evaluate(places, tmp_path / "known", *SIMULATED, *SMALL, "--output_dir", tmp_path / "calibrated")
    assert again.returncode == 2
    assert "made otherwise (controls)" in again.stderr


def test_a_pipeline_that_cannot_calibrate_is_refused(refused):
    line = refused("rl", *SIMULATED, *SMALL, "--calibrate")
    assert "cannot be calibrated: this pipeline does not know the intensities of the controls" in line


def test_a_run_that_was_interrupted_goes_on_with_the_same_cells(pipeline, simulated_cells, tmp_path, monkeypatch):
    from cellfluxrl.data.pairs import ControlTreatedPairs
    from cellfluxrl.evaluation.cells import sample_held_out

    cells = sample_held_out(ControlTreatedPairs(simulated_cells["test"]), 40)
    settings = {"count": 2, "num_inference_steps": 1, "guidance_scale": 1.0}
    monkeypatch.setattr(generating, "CONTROLS_AT_ONCE", 16)

    def generate(name, pipe=pipeline, **changes):
        folder = tmp_path / name
        return generating.generate_candidates(
            pipe, cells.control, cells.table, folder, {"weights": "w"}, **{**settings, **changes}
        )

    whole = np.array(generate("whole"))
    calls = []

    def interrupted(*args):
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate_once(*args)

    generate_once = generating._generate
    monkeypatch.setattr(generating, "_generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate("parts")
    record = json.loads((tmp_path / "parts" / "generated.json").read_text())
    assert record["finished"] == 32
    np.testing.assert_array_equal(generate("parts"), whole)
    assert [rows.start for rows in calls] == [0, 16, 32, 32]
    with pytest.raises(FileExistsError, match="made otherwise \\(num_inference_steps\\)"):
        generate("parts", num_inference_steps=2)


def test_mistakes_end_with_one_line(refused, places):
    assert "there is no folder 'nowhere'" in refused("nowhere", *SIMULATED)
    assert "unknown dataset_name 'simulatd'; did you mean 'simulated'" in refused("rl", "simulatd")
    assert "has no rewards: give a suite (--rewards)" in refused("base", *SIMULATED)
    assert "the judge is the classifier of the rewards" in refused("rl", *SIMULATED, "--judge", "classifier")
    assert "segmenter 'watershed' is that of the rewards" in refused("rl", *SIMULATED, "--segmenter", "watershed")
    assert "unknown segmenter 'otsuu'; did you mean 'otsu'" in refused("rl", *SIMULATED, "--segmenter", "otsuu")
    assert "choose 1 to" in refused("rl", *SIMULATED, "--num", "5000")
    assert "--best_of_n must be at least 1, got 0" in refused("rl", *SIMULATED, "--best_of_n", "0")
    assert "--features judge needs a --judge" in refused("rl", *SIMULATED, "--features", "judge")
    assert "'rl' is compared with itself" in refused("rl", *SIMULATED, "--against", "rl")


def test_too_few_cells_are_refused_before_any_is_generated(refused, simulated_cells, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "cells" / "data" / split
        folder.mkdir(parents=True)
        compounds = simulated_cells[split]["compound"]
        rows = [i for i, compound in enumerate(compounds) if compound in ("DMSO", "taxol")]
        simulated_cells[split].select(rows).to_parquet(folder / "0.parquet")
    line = refused("rl", str(tmp_path / "cells"), "--num", "2", "--cpu")
    assert "needs at least 20 cells and as many real ones to compare with, got 2 and" in line
    assert not list((tmp_path / "out").rglob("generated*"))


def test_a_data_set_without_a_test_split_or_with_other_channels_is_refused(refused, places, simulated_cells, tmp_path):
    folder = tmp_path / "cells" / "data" / "train"
    folder.mkdir(parents=True)
    simulated_cells["train"].to_parquet(folder / "0.parquet")
    assert "has no test split" in refused("rl", str(tmp_path / "cells"))

    shutil.copytree(places / "rl", tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"tubulin"', '"er"'))
    line = refused(str(tmp_path / "other"), *SIMULATED)
    assert "the data set has the channels ('dna', 'tubulin', 'actin'), the pipeline 'other' ('dna', 'er'" in line
