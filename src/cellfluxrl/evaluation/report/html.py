"""A report as one HTML file to read, keep and send, and how its numbers are written."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, StrictUndefined
from PIL import Image

from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.files import write_whole

MISSING = "–"
MAX_DECIMALS = 4
DECIMALS_WITHOUT_ERROR = 3
Cell: TypeAlias = Interval | float | tuple[str, str]


def format_interval(interval: Interval) -> tuple[str, str]:
    """Write a value and `"[low, high]"`, with the digits that the standard error leaves meaningful.

    That is one significant digit of the error, or two if the first is a 1, which is where one digit would round most.

    Example:
        >>> format_interval(Interval(0.91234, 0.9043, 0.9203, 0.0041))
        ('0.912', '[0.904, 0.920]')
    """
    if math.isnan(interval.value):
        return MISSING, ""
    if math.isnan(interval.low):
        return _rounded(interval.value, DECIMALS_WITHOUT_ERROR), ""
    decimals = _decimals(interval.error)
    low, high = (_rounded(end, decimals) for end in (interval.low, interval.high))
    return _rounded(interval.value, decimals), f"[{low}, {high}]"


def _decimals(error: float) -> int:
    if error == 0:
        return DECIMALS_WITHOUT_ERROR
    first_digit, exponent = f"{error:.0e}".split("e")
    decimals = -int(exponent) + (first_digit == "1")
    return min(max(decimals, 0), MAX_DECIMALS)


def _rounded(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # -0.0 + 0.0 is 0.0


@dataclass(frozen=True)
class Table:
    """A table of a [`Section`]: by the row's name, a cell for each column.

    A cell is an [`Interval`], a number, or a text and what stands below it.
    """

    caption: str
    columns: Sequence[str]  # headers, without that of the rows' names
    rows: Mapping[str, Sequence[Cell]]
    reference: str = ""  # the row that is marked as what to compare with


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    paragraphs: Sequence[str] = ()
    findings: Sequence[str] = ()  # sentences in a list; what stands before " | " is set in bold
    tables: Sequence[Table] = ()
    notes: Mapping[str, str] = field(default_factory=dict)  # terms and what they mean
    pictures: Sequence[tuple[str, Path]] = ()  # captions, which screen readers say too, and PNG files
    folded: bool = False  # whether readers open it themselves


def write_report(
    path: str | Path,
    title: str,
    findings: Sequence[str],
    sections: Sequence[Section],
    settings: Mapping[str, object],
) -> None:
    """Write findings, sections and the settings of the run as one HTML file that needs nothing else.

    Pictures and styles are inside the file, and its content security policy forbids the browser to load anything. It
    is readable on a phone, on paper and in dark mode. No value is highlighted as the best one, because the highest
    reward is not: tables mark the row to compare with instead.
    """
    shown = [
        {
            **vars(section),
            "findings": [finding.rpartition(" | ")[::2] for finding in section.findings],
            "tables": [{**vars(table), "rows": _texts(table)} for table in section.tables],
            "pictures": [_embed(caption, picture) for caption, picture in section.pictures],
        }
        for section in sections
    ]
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(template).render(title=title, findings=findings, sections=shown, settings=settings)
    write_whole(path, lambda partial: partial.write_text(html, encoding="utf-8"))


def _texts(table: Table) -> dict[str, list[tuple[str, str]]]:
    """The rows of a table as texts."""
    for name, row in table.rows.items():
        if len(row) != len(table.columns):
            raise ValueError(
                f"row {name!r} of the table {table.caption!r} has {len(row)} cells, not {len(table.columns)}"
            )
    return {name: [_text(cell) for cell in row] for name, row in table.rows.items()}


def _text(cell: Cell) -> tuple[str, str]:
    if isinstance(cell, Interval):
        return format_interval(cell)
    if isinstance(cell, tuple):
        return cell
    if isinstance(cell, int):
        return str(cell), ""
    return (MISSING if math.isnan(cell) else f"{cell:.2g}"), ""


def _embed(caption: str, path: Path) -> dict[str, Any]:
    """A picture as the template takes it, sizes in px."""
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
    encoded = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return {"caption": caption, "data_uri": f"data:image/png;base64,{encoded}", "width": width, "height": height}
