"""The commands of the README run as they are written there, with sizes that a test can afford appended."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from file_server import FileServer
from hub_server import HubServer
from synthetic_plate import published_rows, write_plate, write_tables

from cellfluxrl.commands import cli

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
SMALL = ["--cpu", "--image_size", "24", "--simulated_cells_per_moa", "12", "--max_train_steps", "2"]
SMALLER = {
    # Enough for samples of a group to differ, without which post-training refuses to begin.
    "pretrain": shlex.split(
        "--preset tiny --train_batch_size 4 --max_train_steps 60 --learning_rate 3e-3 --lr_warmup_steps 5 "
        "--ema_decay 0.9"
    ),
    "moa": ["--train_batch_size", "8"],
    "rl": ["--conditions_per_step", "1", "--controls_per_condition", "2", "--rollouts_per_control", "2"],
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]


def test_the_readme_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert named
    assert named <= targets


def test_paths_that_the_readme_links_to_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.slow
def test_the_training_commands_run_one_after_the_other(tmp_path: Path) -> None:
    launches = [shlex.split(command) for command in commands() if command.startswith("accelerate launch")]
    assert [Path(launch[2]).stem for launch in launches] == ["pretrain", "moa", "rl"]
    for launch in launches:
        script = REPOSITORY / launch[2]
        options = [str(REPOSITORY / o) if o.startswith("training/") else o for o in launch[3:]]
        command = [sys.executable, "-m", "accelerate.commands.launch", str(script), *options]
        done = subprocess.run(
            [*command, *SMALL, *SMALLER[script.stem]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/rl/model_index.json").is_file()


@pytest.mark.slow
def test_the_data_commands_run_one_after_the_other(tmp_path: Path) -> None:
    data = [shlex.split(command)[1:] for command in commands() if command.startswith("cellfluxrl data")]
    assert [command[1] for command in data] == ["build", "info", "push"]
    plates = data[0][data[0].index("--plates") + 1 : data[0].index("--output_dir")]
    rows = [published_rows(plate, seed=number) for number, plate in enumerate(plates)]
    for number, plate_rows in enumerate(rows):
        plate_rows["ImageNumber"] += 240 * number
        write_plate(tmp_path / "web", plate_rows, shape=(256, 320), cells_per_field=6)
    write_tables(tmp_path / "web", pd.concat(rows))
    with FileServer(tmp_path / "web") as web, HubServer() as hub:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "home")}
        for command, extra in zip(data, (["--base_url", web.url], [], []), strict=True):
            done = subprocess.run(
                [sys.executable, "-m", "cellfluxrl.commands.cli", *command, *extra],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=300,
                env=environment,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        assert f"datasets/{data[2][-1]}" in hub.repos
    assert (tmp_path / data[1][-1] / "contact_sheet.png").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/rewards.md"])
def test_the_rewards_commands_run_one_after_the_other(page, simulated_cells, suite, tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    (lines,) = (block.splitlines() for block in blocks if "rewards score" in block)
    assert [shlex.split(line)[2] for line in lines] == ["fit", "score"]
    monkeypatch.chdir(tmp_path)
    simulated_cells.save_to_disk("my_cells")
    suite.classifier.save_pretrained("runs/moa")
    cells = simulated_cells["test"]
    for i in range(3):
        folder = tmp_path / "generated" / cells[i]["moa"]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{i}.npy", np.asarray(cells[i]["image"], dtype=np.uint8))
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0
    assert len(pd.read_parquet("scores.parquet")) == 3
    for name in ("scores_violins.png", "scores_sheet.png"):
        assert (tmp_path / name).is_file()
