"""What commands print: tables that fit the terminal, or JSON for programs."""

from __future__ import annotations

import json
import math
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

UNLIMITED = 100_000  # of a file or a pipe, where a row stays one line
NUMBER = re.compile(r"[-+±–<>\d]")
GAP, NARROWEST = "  ", 16
MOST_LINES = 10


def text_table(table: pd.DataFrame, width: int | None = None) -> str:
    """Write a table, without its index, as text: text to the left, numbers to the right.

    No line is longer than `width`, by default that of the terminal and unlimited in a file or a pipe. Columns that do
    not fit go below the others, with the first column repeated; a text that is longer than a line is wrapped.

    Example:
        >>> import pandas as pd
        >>> print(text_table(pd.DataFrame({"plate": ["A", "B"], "cells": [12, 1400]})))
          plate  cells
          A         12
          B      1,400
    """
    width = (width or shutil.get_terminal_size(fallback=(UNLIMITED, 24)).columns) - len(GAP)
    first, *others = [_column(name, table[name], width) for name in table.columns]
    blocks, room = [[first]], width - _width(first)
    for column in others:
        if _width(column) + len(GAP) > room and len(blocks[-1]) > 1:
            blocks.append([first])
            room = width - _width(first)
        fits = _width(column) + len(GAP) <= room
        blocks[-1].append(column if fits else _wrapped(column, max(room - len(GAP), NARROWEST)))
        room -= _width(blocks[-1][-1]) + len(GAP)
    return "\n\n".join("\n".join(_lines(block)) for block in blocks)


def _column(name: str, values: pd.Series, width: int) -> list[list[str]]:
    """The cells of a column, each as its lines, the name first; padded to one width."""
    is_number = values.dtype.kind in "iuf"
    texts = [f"{v:,}" if is_number else (str(v) or "-") for v in values]
    widest = max(map(len, [str(name), *texts]))
    to_the_right = is_number or all(NUMBER.match(text) for text in texts)
    cells = [[text.rjust(widest) if to_the_right else text.ljust(widest)] for text in [str(name), *texts]]
    return _wrapped(cells, width) if widest > width else cells


def _wrapped(cells: list[list[str]], width: int) -> list[list[str]]:
    wrapped = [textwrap.wrap(" ".join(cell).strip(), width) or [""] for cell in cells]
    widest = max(len(line) for cell in wrapped for line in cell)
    return [[line.ljust(widest) for line in cell] for cell in wrapped]


def _width(cells: list[list[str]]) -> int:
    return len(cells[0][0])


def _lines(block: list[list[list[str]]]) -> list[str]:
    lines = []
    for row in zip(*block, strict=True):
        for k in range(max(map(len, row))):
            parts = [cell[k] if k < len(cell) else " " * len(cell[0]) for cell in row]
            lines.append((GAP + GAP.join(parts)).rstrip())
    return lines


def first_lines(lines: Sequence[str]) -> str:
    """The first lines of many, indented, and how many more there are."""
    more = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join(f"  {line}" for line in [*lines[:MOST_LINES], *more])


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result as one JSON object; what is not a finite number is `null`.

    Example:
        >>> print_json({"accuracy": 0.5, "saved": [Path("runs/moa")], "error": float("nan")})
        {
          "accuracy": 0.5,
          "saved": [
            "runs/moa"
          ],
          "error": null
        }
    """
    print(json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
