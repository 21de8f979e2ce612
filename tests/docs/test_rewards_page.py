"""The Python of docs/rewards.md runs, and its commands are understood."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from cellfluxrl import RewardSuite
from cellfluxrl.commands import cli
from cellfluxrl.data.image_store import open_images
from cellfluxrl.rewards import terms
from cellfluxrl.rewards.segmentation import protocol
from cellfluxrl.training.options import RLArguments, parse_script

PAGE = Path(__file__).parents[2] / "docs/rewards.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
(SCORE, CELLPOSE, PLUGINS) = ([shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
                              for language, block in BLOCKS if language == "bash")  # fmt: skip
(ADD_REWARD, CHANGE, MODULE, ADD_SEGMENTER) = (block for language, block in BLOCKS if language == "python")


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    monkeypatch.setattr(terms, "_REGISTERED", dict(terms._REGISTERED))
    monkeypatch.setattr(protocol, "SEGMENTERS", dict(protocol.SEGMENTERS))


@pytest.fixture
def names(simulated_cells, suite, monkeypatch):
    """What the snippets take for granted."""
    cells = simulated_cells["train"]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return {
        "real_cells": cells,
        "classifier": suite.classifier,
        "images": open_images(cells)[:3],
        "controls": open_images(cells)[3:6],
        "moa": cells["moa"][:3],
    }


@pytest.fixture
def in_a_folder(simulated_cells, suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulated_cells.save_to_disk("my_cells")
    suite.classifier.save_pretrained("runs/moa")
    return tmp_path


def test_every_block_is_one_that_is_tested():
    assert [language for language, _ in BLOCKS] == [
        *("bash", "bash", "python", "python", "python", "bash", "toml", "python")
    ]  # the first by test_readme.py


def test_the_cellpose_command_asks_for_weights_that_are_not_there(in_a_folder, monkeypatch, capsys):
    models = in_a_folder / "models"
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(models))
    models.mkdir()
    for name in ("nuclei", "cyto3"):  # no weights: without them Cellpose would try to download
        (models / name).write_bytes(b"no weights")
    assert cli.main(CELLPOSE[0][1:]) == 2
    assert "nuclei" in capsys.readouterr().err


def test_a_reward_is_added_to_the_seven(names):
    exec(ADD_REWARD, names)
    scores = names["suite"](np.zeros((1, 3, 16, 16), np.uint8), moa=["DMSO"])
    assert {"moa", "containment", "dna", "combined"} < set(scores)
    assert len(ADD_REWARD.strip().splitlines()) <= 5


def test_a_change_to_the_control_is_a_reward(names):
    exec(ADD_REWARD, names)
    exec(CHANGE, names)
    assert set(names["scores"]) == {"containment", "change", "combined"}


def test_a_module_is_a_plugin(in_a_folder, monkeypatch, names):
    (in_a_folder / "my_rewards.py").write_text(MODULE)
    fit, rl = PLUGINS
    assert fit[0] == rl[0] == "PYTHONPATH=."
    monkeypatch.syspath_prepend(in_a_folder)
    try:
        assert cli.main(fit[2:]) in (0, None)
        assert parse_script(RLArguments, [word for word in rl[3:] if word != "..."]).plugins == ["my_rewards"]
        assert RewardSuite.from_pretrained("runs/rewards").config.plugins == ["my_rewards"]
    finally:
        sys.modules.pop("my_rewards", None)


def test_a_segmenter_is_added(names):
    exec(ADD_REWARD, names)
    names["__name__"] = "page"
    exec(ADD_SEGMENTER, names)
    assert names["suite"].segmenter == names["Threshold"](level=0.25)
    assert names["suite"](names["images"], names["moa"])["nucleus_size"].shape == (3,)
