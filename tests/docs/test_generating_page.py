"""The examples and commands of docs/generating.md run as they are written there, one after the other."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.commands import cli
from cellfluxrl.commands import generate as generate_command
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor, to_pil, to_uint8
from cellfluxrl.pipelines.cellflux_rl import SEARCHES
from cellfluxrl.pipelines.selection import SELECTIONS
from cellfluxrl.training.demo import SHIPPED_BASE

PAGE = (Path(__file__).parents[2] / "docs/generating.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands name: a pipeline with rewards, a data set, and controls as PNG."""
    monkeypatch.chdir(tmp_path)
    builder = SimulatedCells(cache_dir="cache", image_size=48, cells_per_moa=4, controls_per_plate=3, num_plates=2)
    builder.download_and_prepare()
    cells = builder.as_dataset()
    cells.save_to_disk("my_cells")
    suite = RewardSuite.fit(cells["train"], MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval())
    base = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    CellFluxRLPipeline(base.unet, base.scheduler, base.encoder, suite).save_pretrained("runs/demo/pipeline")
    rows = np.flatnonzero(cells["test"]["is_control"])[:2]
    Path("my_controls").mkdir()
    for i, picture in enumerate(to_pil(images_to_tensor(open_images(cells["test"].select(rows))[:]))):
        picture.save(f"my_controls/{i}.png")
    return tmp_path


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(in_a_folder: Path) -> None:
    names: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/generating.md", "exec"), names)
        elif language == "csv":
            Path("compounds.csv").write_text(block, encoding="utf-8")
        else:
            for line in block.splitlines():
                assert cli.main(shlex.split(line)[1:]) == 0
    assert [len(names[name]) for name in ("pairs", "one_cell", "mixed", "frames")] == [3, 2, 3, 6]
    assert names["out"].trajectory.shape == (13, 3, 3, 48, 48)
    assert names["fast"].unet.dtype == torch.bfloat16
    for name, count in (("taxol_to_AZ138.gif", 6), ("taxol.webp", 13)):
        with Image.open(in_a_folder / name) as animation:
            assert animation.n_frames == count
    assert names["chosen"].num_function_evaluations == 4 * names["pipe"].evaluations_of(2)
    assert len(pd.read_parquet("scores.parquet")) == 3 * 2 * 2
    written = tifffile.imread(Path("generated", names["row"].file)).astype(int)
    np.testing.assert_allclose(to_uint8(names["again"])[0], written, atol=1)  # alone it is rounded otherwise


def test_every_argument_of_a_call_is_on_the_page() -> None:
    arguments = set(inspect.signature(CellFluxPipeline.__call__).parameters) - {"self", "return_dict"}
    missing = {name for name in arguments if name not in PAGE and name not in ("control_images", "generator")}
    assert not missing - {"callback_on_step_end_tensor_inputs"}


def test_every_block_is_one_that_is_tested() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "bash", "csv"}


def test_every_choice_and_search_is_on_the_page() -> None:
    for name in (*SELECTIONS, *SEARCHES, "within_range", "num_function_evaluations", "selection_reward"):
        assert f"`{name}`" in PAGE or f'`"{name}"`' in PAGE, name


def test_the_page_names_only_options_that_exist() -> None:
    named = set(re.findall(r"--(\w+)", PAGE.split("## From the command line")[1]))
    own = {action.dest for action in generate_command.parser()._actions}
    assert named - {"suite", "output"} <= own
