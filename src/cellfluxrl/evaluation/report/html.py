"""A report as one HTML file to read, keep and send, and how its numbers are written."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.files import write_whole

MISSING = "–"
MAX_DECIMALS = 4
DECIMALS_WITHOUT_ERROR = 3


def format_interval(interval: Interval) -> tuple[str, str]:
    """Write a value and its 95 % interval, with the digits that its standard error leaves meaningful.

    That is one significant digit of the error, or two if the first is a 1, which is where one digit would round most.

    Returns:
        The value and `"[low, high]"`, which is empty if the interval is not known.

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
    """A table of a [`Section`].

    Args:
        caption: What it shows.
        columns: Headers, without that of the rows' names.
        rows: By the row's name, a value and what stands below it, for each column.
        reference: The row that is marked as what to compare with.
    """

    caption: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[tuple[str, str]]]
    reference: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: The heading.
        paragraphs: Text.
        findings: Sentences in a list; what stands before `" | "` is set in bold.
        tables: Tables.
        notes: Terms and what they mean.
        pictures: Caption and PNG file of each picture; the caption is also what a screen reader says in place of it.
        folded: Whether readers open it themselves.
    """

    title: str
    paragraphs: Sequence[str] = ()
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[tuple[str, Path]] = ()
    folded: bool = False


@dataclass(frozen=True)
class _Picture:
    caption: str
    data_uri: str
    width: int  # px
    height: int


def write_report(
    path: str | Path,
    title: str,
    findings: Sequence[str],
    sections: Sequence[Section],
    settings: Mapping[str, object],
) -> None:
    """Write findings, sections and settings as one HTML file that needs nothing else.

    Pictures and styles are inside the file, and its content security policy forbids the browser to load anything. It
    is readable on a phone, on paper and in dark mode. No value is highlighted as the best one, because the highest
    reward is not: tables mark the row to compare with instead.

    Args:
        path: Of the HTML file.
        title: The heading.
        findings: What came out, in plain sentences.
        sections: The parts, in order.
        settings: What is needed to run it again.

    Raises:
        ValueError: If a row of a table has another number of cells than there are columns.
        PIL.UnidentifiedImageError: If a picture is not a PNG file.

    Example:
        >>> table = Table("95 % intervals", ["moa"], {"real": [("0.912", "[0.904, 0.920]")]}, reference="real")
        >>> write_report("report.html", "Mine", ["RL helps."], [Section("Rewards", tables=[table])], {"seed": 0})
        ... # doctest: +SKIP
    """
    for table in (table for section in sections for table in section.tables):
        for name, row in table.rows.items():
            if len(row) != len(table.columns):
                raise ValueError(
                    f"row {name!r} of the table {table.caption!r} has {len(row)} cells, not {len(table.columns)}"
                )
    shown = [
        {
            **vars(section),
            "findings": [finding.rpartition(" | ")[::2] for finding in section.findings],
            "pictures": [_embed(caption, picture) for caption, picture in section.pictures],
        }
        for section in sections
    ]
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(template).render(title=title, findings=findings, sections=shown, settings=settings)
    write_whole(path, lambda partial: partial.write_text(html, encoding="utf-8"))


def _embed(caption: str, path: Path) -> _Picture:
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
    encoded = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return _Picture(caption, f"data:image/png;base64,{encoded}", width, height)
