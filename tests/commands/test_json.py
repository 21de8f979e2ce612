"""What `--json` prints is one JSON object with the keys that docs/cli.md names, and nothing else."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from cellfluxrl.commands import cli, registry
from cellfluxrl.data.images import to_pil
from cellfluxrl.rewards.biological import REWARD_NAMES

ROWS = re.findall(
    r"^\| (`.*?) \| (.*) \|$", (Path(__file__).parents[2] / "docs/cli.md").read_text().split("## For")[1], re.MULTILINE
)
KEYS = {
    command: set(re.findall(r"`([\w.]+)`", re.sub(r"\([^)]*\)", "", keys))) - {"results.json", "metrics.json"}
    for commands, keys in ROWS
    for command in re.findall(r"`([\w ]+)`", commands)
}


@pytest.fixture
def result(simulated_cells, suite, pipeline, controls, tmp_path, monkeypatch, capfd):
    """Runs a command in a folder with what it needs; returns what its `--json` says."""
    monkeypatch.chdir(tmp_path)
    simulated_cells.save_to_disk("cells")
    suite.classifier.save_pretrained("classifier")
    suite.save_pretrained("suite")
    pipeline.save_pretrained("pipeline")
    Path("controls").mkdir()
    for i, picture in enumerate(to_pil(controls)):
        picture.save(f"controls/{i}.png")
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have chosen a precision
    capfd.readouterr()

    def run(line: str) -> dict:
        assert cli.main([*shlex.split(line), "--json"]) == 0, capfd.readouterr().err[-2000:]
        printed = json.loads(capfd.readouterr().out)
        command = next(name for name in registry.parsers() if line.startswith(name))
        assert KEYS[command] <= set(printed), command
        for path in printed.get("saved", []):
            assert Path(path).exists(), path
        return printed

    return run


def test_rewards_fit_tells_what_was_fitted(result, suite) -> None:
    fitted = result("rewards fit cells --classifier classifier --output_dir own")
    assert set(fitted["moas"]) == set(suite.moas)
    assert fitted["weights"] == suite.weights
    k = suite.moas.index("Eg5 inhibitors")
    assert fitted["moas"]["Eg5 inhibitors"]["mean"]["roundness"] == pytest.approx(suite.mean[k, 0].item())


def test_rewards_score_tells_means_and_what_was_skipped(result) -> None:
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save("controls/too_small.png")
    scored = result("rewards score controls --moa DMSO --suite suite --output scores.parquet")
    assert scored["images"] == scored["moas"]["DMSO"]["images"] == scored["all"]["images"] == 3
    assert set(scored["all"]["mean"]) == {*REWARD_NAMES, "combined"}
    assert set(scored["all"]["real"]) <= set(scored["all"]["mean"])
    (skipped,) = scored["skipped"]
    assert "too_small.png" in skipped


def test_generate_tells_the_rewards_of_each_compound(result) -> None:
    made = result("generate controls --pipeline pipeline --compounds taxol AZ138 --steps 1 --output_dir out --cpu")
    assert (made["images"], made["controls"]) == (6, 3)
    assert {compound: entry["images"] for compound, entry in made["compounds"].items()} == {"taxol": 3, "AZ138": 3}
    assert set(made["compounds"]["taxol"]["rewards"]) == {*REWARD_NAMES, "combined"}
    assert 0 <= made["compounds"]["taxol"]["within_range"] <= 1


def test_moa_tells_its_metrics(result) -> None:
    metrics = result(
        "moa --image_size 16 --simulated_cells_per_moa 6 --width 4 --max_train_steps 2 --train_batch_size 8 --cpu "
        "--output_dir moa"
    )
    assert metrics == json.loads(Path("moa/metrics.json").read_text())


@pytest.mark.slow
def test_evaluate_tells_what_results_json_holds(result) -> None:
    told = result("evaluate pipeline cells --num_inference_steps 1 --output_dir evaluation --cpu")
    saved = told.pop("saved")
    assert told == json.loads(Path("evaluation/results.json").read_text())
    assert "evaluation/report.html" in saved
