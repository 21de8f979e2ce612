"""Tables for the terminal, and JSON for programs."""

import json
import math
import os

import numpy as np
import pandas as pd
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.terminal import NARROWEST, print_json, text_table

words = st.text("abcdefgh_", min_size=1, max_size=12)
columns = st.lists(words, min_size=1, max_size=6, unique=True)


@settings(max_examples=50, deadline=None)
@given(columns, st.integers(1, 4), st.integers(40, 200), st.data())
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_lost(names, rows, width, data) -> None:
    table = pd.DataFrame({name: data.draw(st.lists(words, min_size=rows, max_size=rows)) for name in names})
    printed = text_table(table, width)
    assert max(map(len, printed.splitlines())) <= width
    for name in names:
        assert name in printed
        for value in table[name]:
            assert value in printed


def test_columns_that_do_not_fit_go_below_with_the_first_one_repeated() -> None:
    table = pd.DataFrame({"plate": ["A", "B"], "roundness": [0.5, 0.25], "nucleus_size": [10, 1200]})
    assert text_table(table, 22).splitlines() == [
        "  plate  roundness",
        "  A            0.5",
        "  B           0.25",
        "",
        "  plate  nucleus_size",
        "  A                10",
        "  B             1,200",
    ]


def test_a_long_text_is_wrapped_within_its_column() -> None:
    reason = "the image has three channels, and one is needed: nobody could tell which"
    printed = text_table(pd.DataFrame({"field": ["A01_1"], "reason": [reason]}), 40)
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(line[len("  field  ") :].strip() for line in lines[1:]) == reason
    assert NARROWEST < 40


def test_the_width_is_the_terminals(monkeypatch) -> None:
    table = pd.DataFrame({"name": ["a"], **{f"column_{i}": [i] for i in range(12)}})
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, text_table(table).splitlines())) <= 50
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size(fallback))  # as in a pipe
    assert len(text_table(table).splitlines()) == 2


def test_json_holds_numbers_of_numpy_and_torch_and_no_nan(capsys) -> None:
    print_json({"a": np.float32(0.5), "b": torch.tensor(2), "c": [math.nan, math.inf, (1, None)], "µ": "±"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": 0.5, "b": 2, "c": [None, None, [1, None]], "µ": "±"}
    assert "±" in printed
