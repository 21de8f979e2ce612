"""The whole chain as a user runs it, on settings small enough for a test, then the README's five lines of Python."""

import json
import os
import re
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
demo: {eval_controls: 20}
"""
ROWS = {
    "copy of control",
    "real treated",
    "base",
    "RL",
    "RL, shuffled rewards",
    "base + best of 4",
    "RL + best of 4",
    "base + match of 4",
    "RL + match of 4",
}

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
    return folder


def test_demo_ends_with_table_pictures_report_and_pipeline(demo: Path) -> None:
    results = json.loads((demo / "runs/demo/results.json").read_text())
    assert set(results["rows"]) == ROWS
    for row in results["rows"].values():
        assert {"moa", "containment", "combined", "judge", "frechet", "spread"} <= set(row)
        assert all(len(cell) == 2 and cell[1] >= 0 for cell in row.values())
    for name in ("grid.png", "grid_outlines.png", "best_of_n.png", "training.png"):
        with Image.open(demo / "runs/demo" / name) as picture:
            assert min(picture.size) > 200
    html = (demo / "runs/demo/report.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "real treated" in html
    distances = {name: results["rows"][name]["wasserstein"][0] for name in ("RL", "base")}
    assert f"Wasserstein distance {distances['RL'] / distances['base']:.2f} times" in html
    assert (demo / "runs/demo/pipeline/model_index.json").is_file()


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
