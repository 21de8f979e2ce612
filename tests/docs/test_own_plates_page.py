"""Every command and snippet of docs/own_plates.md runs, in order, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from cellfluxrl.data.building.sources.folder import OPTIONAL, REQUIRED, PlateFolder
from cellfluxrl.data.info import count_cells
from cellfluxrl.data.schema import channel_names_of

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/own_plates.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
SMALL = ["--cpu", "--preset", "tiny", "--train_batch_size", "4", "--max_train_steps", "2"]


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def worked_through(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder in which everything but the training was done, and what was printed."""
    folder = tmp_path_factory.mktemp("own_plates")
    printed = []
    for language, block in BLOCKS:
        if language == "python":
            printed.append(run([sys.executable, "-c", block], folder))
        elif block.startswith("cellfluxrl "):
            command = shlex.split(block)[1:]
            one_process = ["--num_proc", "1"] if "build" in command else []
            printed.append(run([sys.executable, "-m", "cellfluxrl.commands.cli", *command, *one_process], folder))
    return folder, printed


def test_every_block_is_one_that_is_tested():
    assert [language for language, _ in BLOCKS] == [
        *("csv", "python", "bash", "bash", "python", "python", "bash"),
    ]
    assert [shlex.split(block)[:2] for language, block in BLOCKS if language == "bash"] == [
        ["cellfluxrl", "data"],
        ["cellfluxrl", "data"],
        ["accelerate", "launch"],
    ]


def test_the_table_that_the_page_shows_can_be_used(tmp_path):
    (tmp_path / "plates.csv").write_text(BLOCKS[0][1])
    source = PlateFolder(tmp_path / "plates.csv", nucleus_diameter=24)
    assert source.channel_names == ("dna", "er", "rna", "agp", "mito")
    assert source.fields["images"][1][2].page == 2
    assert len(source.fields) == 3


def test_the_page_explains_every_column():
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE))))
    assert explained == {*REQUIRED, *OPTIONAL, "image_CHANNEL"}


def test_paths_that_the_page_links_to_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path


def test_the_page_can_be_worked_through(worked_through):
    folder, printed = worked_through
    built, info, loaded, problems = printed[1:]
    assert "taxol" in built
    assert "taxol" in info
    assert "('dna', 'er', 'rna', 'agp', 'mito')" in loaded
    assert "(5, 48, 48)" in loaded
    assert len(re.findall(r"8 fields, \d+ cells, problems: \[\]", problems)) == 2
    with Image.open(folder / "my_cells/contact_sheet.png") as sheet:
        assert sheet.width > 300
    counts = count_cells(folder / "my_cells")
    per_field = counts.groupby(["compound", "plate"])["cells"].sum() / 4
    assert per_field["DMSO"].tolist() == [20, 20]
    assert per_field["taxol"].between(18, 32).all(), per_field  # it breaks nuclei up
    cells = load_dataset(str(folder / "my_cells"), cache_dir=str(folder / "cache"))
    assert {split: set(rows["plate"]) for split, rows in cells.items()} == {"train": {"day1_0"}, "test": {"day1_1"}}
    assert channel_names_of(cells["test"]) == ("dna", "er", "rna", "agp", "mito")


@pytest.mark.slow
def test_the_training_command_runs(worked_through):
    folder, _ = worked_through
    (block,) = [block for _, block in BLOCKS if block.startswith("accelerate launch")]
    _, _, script, *options = shlex.split(block)
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(REPOSITORY / script)]
    run([*launch, *options, *SMALL], folder)
    assert (folder / "runs/my_base/model_index.json").is_file()
