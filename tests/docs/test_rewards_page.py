"""The Python of docs/rewards.md runs, and its command for Cellpose is understood."""

import re
import shlex
from pathlib import Path

import numpy as np

from cellfluxrl.commands import cli
from cellfluxrl.rewards import terms

PAGE = Path(__file__).parents[2] / "docs/rewards.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_block_is_one_that_is_tested():
    assert [language for language, _ in BLOCKS] == ["bash", "bash", "python", "toml"]  # the first by test_readme.py


def test_the_cellpose_command_asks_for_weights_that_are_not_there(
    simulated_cells, suite, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "models"))
    simulated_cells.save_to_disk("my_cells")
    suite.classifier.save_pretrained("runs/moa")
    (tmp_path / "models").mkdir()
    for name in ("nuclei", "cyto3"):  # no weights: without them Cellpose would try to download
        (tmp_path / "models" / name).write_bytes(b"no weights")
    assert cli.main(shlex.split(BLOCKS[1][1].replace("\\\n", " "))[1:]) == 2
    assert "nuclei" in capsys.readouterr().err


def test_rewards_of_ones_own(simulated_cells, suite, monkeypatch):
    monkeypatch.setattr(terms, "_REGISTERED", dict(terms._REGISTERED))
    names = {"real_cells": simulated_cells["train"], "classifier": suite.classifier}
    exec(BLOCKS[2][1], names)
    own = names["suite"]
    scores = own(np.zeros((1, 3, 16, 16), np.uint8), moa=["DMSO"])
    assert {"moa", "in_the_middle", "dna_brightness", "combined"} < set(scores)
