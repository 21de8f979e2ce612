"""The whole chain as a user runs it, on settings small enough for a test, then the README's five lines of Python."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
TINY = """
dataset_name: simulated
simulated_cells_per_moa: 40
mixed_precision: bf16
moa: {max_train_steps: 20}
rl:
  conditions_per_step: 1
  controls_per_condition: 2
  rollouts_per_control: 4
  max_train_steps: 2
  checkpointing_steps: 1
demo: {eval_controls: 40}
"""
CHOSEN = {f"{model}, {way} of 4" for model in ("CellFluxRL", "base") for way in ("best", "match")}
ROWS = {"copy of control", "real treated", "base", "CellFluxRL", "shuffled rewards", *CHOSEN}

pytestmark = pytest.mark.slow


def cellfluxrl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cellfluxrl.commands.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tiny.yaml").write_text(TINY)
    done = cellfluxrl("demo", "--config", "tiny.yaml", "--output_dir", "runs/demo", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_demo_ends_with_table_pictures_report_and_pipeline(demo: Path) -> None:
    results = json.loads((demo / "runs/demo/results.json").read_text())
    assert set(results["rows"]) == ROWS
    for row in results["rows"].values():
        assert {"moa", "containment", "combined", "judge", "frechet", "spread"} <= set(row)
        assert all(value is None or math.isfinite(value) for cell in row.values() for value in cell.values())
    assert results["models"][:3] == ["CellFluxRL", "base", "shuffled rewards"]
    assert {"classifier", "judge"} == set(results["classifiers"])
    assert results["seconds"]["total"] >= results["seconds"]["evaluation"] > 0
    pictures = [*(demo / "runs/demo/evaluation").glob("*/*.png")]
    assert {"cells.png", "grid.png", "best_of_n.png", "training.png"} <= {path.name for path in pictures}
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    html = (demo / "runs/demo/report.html").read_text()
    for text in ("real treated", "What holds on held-out evidence", "Post-training", "What to try next", "simulated"):
        assert text in html, text
    assert (demo / "runs/demo/pipeline/model_index.json").is_file()


def test_demo_prints_every_row_with_intervals_and_what_became_of_the_claims(demo: Path) -> None:
    printed = (demo / "printed.txt").read_text()
    lines = {name: [line for line in printed.splitlines() if line.startswith(f"  {name} ")] for name in ROWS}
    assert all(re.search(r"\d \[.*\d, .*\d\]", own[0]) for own in lines.values())
    assert any(re.search(r"not refuted|holds|not shown", line) for line in lines["CellFluxRL"])
    assert "CellFluxRL against base, on held-out evidence" in printed


def test_evaluate_gives_the_same_numbers_as_the_demo(demo: Path) -> None:
    printed = (demo / "printed.txt").read_text()
    (command,) = re.findall(r"^  (cellfluxrl evaluate .*)$", printed, re.MULTILINE)
    done = cellfluxrl(*shlex.split(command)[1:], cwd=demo)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((demo / "runs/demo/results.json").read_text())["rows"]
    ours = json.loads((demo / "runs/evaluation/results.json").read_text())["rows"]
    assert len(ours) == 5
    for name, row in ours.items():
        assert row == theirs[name.replace("pipeline", "CellFluxRL")], name


def test_the_readmes_five_lines_run_in_a_new_process(demo: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)[1]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(demo / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=demo, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(48, 48)" in done.stdout


def test_a_second_run_goes_on_from_finished_stages(demo: Path) -> None:
    before = json.loads((demo / "runs/demo/results.json").read_text())
    done = cellfluxrl("demo", "--config", "tiny.yaml", "--output_dir", "runs/demo", cwd=demo)
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads((demo / "runs/demo/results.json").read_text())
    assert after["rows"] == before["rows"]
    assert "resumed from" in done.stdout


def test_a_demo_with_other_settings_is_not_mixed_in(demo: Path) -> None:
    done = cellfluxrl("demo", "--config", "tiny.yaml", "--output_dir", "runs/demo", "--seed", "1", cwd=demo)
    assert done.returncode == 2
    assert "other settings" in done.stderr
    assert "Traceback" not in done.stderr
