"""The Python of docs/rewards.md runs, and its commands are ones that are tested."""

import re
from pathlib import Path

import numpy as np

from cellfluxrl.rewards import terms
from cellfluxrl.rewards.command import COMMANDS

PAGE = Path(__file__).parents[2] / "docs/rewards.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_block_is_one_that_is_tested():
    assert [language for language, _ in BLOCKS] == ["bash", "python", "toml"]
    for line in BLOCKS[0][1].splitlines():
        assert line.split()[:2] == ["cellfluxrl", "rewards"]
        assert line.split()[2] in COMMANDS  # tests/rewards/test_command.py and tests/test_readme.py run them


def test_rewards_of_ones_own(simulated_cells, suite, monkeypatch):
    monkeypatch.setattr(terms, "_REGISTERED", dict(terms._REGISTERED))
    names = {"real_cells": simulated_cells["train"], "classifier": suite.classifier}
    exec(BLOCKS[1][1], names)
    own = names["suite"]
    scores = own(np.zeros((1, 3, 16, 16), np.uint8), moa=["DMSO"])
    assert {"moa", "in_the_middle", "dna_brightness", "combined"} < set(scores)
