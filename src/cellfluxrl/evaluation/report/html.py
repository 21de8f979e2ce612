"""What was measured, as a table for the terminal and as one HTML file to read, keep and send."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

from jinja2 import Environment, StrictUndefined
from PIL import Image

from cellfluxrl.errors import unknown_name
from cellfluxrl.evaluation.statistics.intervals import Interval

# Row name -> column name -> (value, standard error). A missing column or a value of NaN was not measured; a standard
# error of NaN is not known.
Rows: TypeAlias = Mapping[str, Mapping[str, "tuple[float, float]"]]

MISSING = "–"
MAX_DECIMALS = 4
DECIMALS_WITHOUT_ERROR = 3


def format_measurement(value: float, error: float) -> tuple[str, str]:
    """Write a value with the digits that its standard error leaves meaningful.

    The error keeps one significant digit, or two if the first is a 1, which is where one digit would round most.

    Args:
        value: The mean; NaN if it was not measured.
        error: Its standard error, at least 0; NaN if it is not known.

    Returns:
        The value and `"± error"`, which is empty if the error is not known.

    Example:
        >>> format_measurement(0.91234, 0.0041), format_measurement(951.8, 12.3), format_measurement(6.2, math.nan)
        (('0.912', '± 0.004'), ('952', '± 12'), ('6.200', ''))
    """
    if math.isnan(value):
        return MISSING, ""
    if math.isnan(error):
        return _rounded(value, DECIMALS_WITHOUT_ERROR), ""
    decimals = _decimals(error)
    return _rounded(value, decimals), f"± {_rounded(error, decimals)}"


def _decimals(error: float) -> int:
    if error == 0:
        return DECIMALS_WITHOUT_ERROR
    first_digit, exponent = f"{error:.0e}".split("e")
    decimals = -int(exponent) + (first_digit == "1")
    return min(max(decimals, 0), MAX_DECIMALS)


def _rounded(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # -0.0 + 0.0 is 0.0


def format_interval(interval: Interval) -> tuple[str, str]:
    """Write a value and its 95 % interval, with the digits that its standard error leaves meaningful.

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


def format_table(rows: Rows, columns: Sequence[str]) -> str:
    """Lay measurements out as plain text, aligned at the ± of each column.

    Args:
        rows: By row and column, a value and its standard error.
        columns: The columns to show, in order.

    Returns:
        A line of headers, a rule, and one line per row; what was not measured is an en dash.

    Raises:
        ValueError: If no row has one of the columns.

    Example:
        >>> print(format_table({"base": {"moa": (0.88, 0.02)}, "real": {"moa": (0.912, 0.004)}}, ["moa"]))
                        moa
        ----  -------------
        base   0.88 ± 0.02
        real  0.912 ± 0.004
    """
    _check_columns(rows, columns)
    blocks = [_aligned_left(["", *rows])]
    for column in columns:
        cells = [_cell(row, column) for row in rows.values()]
        blocks.append(_aligned_at_error(column, cells))
    lines = list(zip(*blocks, strict=True))
    rule = tuple("-" * len(block[0]) for block in blocks)
    return "\n".join("  ".join(line).rstrip() for line in (lines[0], rule, *lines[1:]))


def _aligned_left(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def _aligned_at_error(header: str, cells: Sequence[tuple[str, str]]) -> list[str]:
    value_width = max(len(value) for value, _ in cells)
    error_width = max(len(error) for _, error in cells)
    texts = [f"{value:>{value_width}} {error:<{error_width}}" for value, error in cells]
    width = max(map(len, [header, *texts]))
    return [text.rjust(width) for text in (header, *texts)]


def _cell(row: Mapping[str, tuple[float, float]], column: str) -> tuple[str, str]:
    return format_measurement(*row.get(column, (math.nan, math.nan)))


def _check_columns(rows: Rows, columns: Sequence[str]) -> None:
    measured = {column for row in rows.values() for column in row}
    for column in columns:
        if column not in measured:
            raise unknown_name("column", column, measured)


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
        pictures: Caption and PNG file of each picture.
    """

    title: str
    paragraphs: Sequence[str] = ()
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[tuple[str, Path]] = ()


@dataclass(frozen=True)
class _Picture:
    caption: str
    data_uri: str
    width: int  # px
    height: int


def write_report(
    path: str | Path,
    title: str,
    rows: Rows,
    columns: Sequence[str],
    column_notes: Mapping[str, str],
    pictures: Sequence[tuple[str, Path]],
    findings: Sequence[str],
    settings: Mapping[str, object],
    reference: str = "real",
) -> None:
    """Write findings, table, pictures and settings as one HTML file that needs nothing else.

    Pictures and styles are inside the file, and its content security policy forbids the browser to load anything. It
    is readable on a phone, on paper and in dark mode. No value is highlighted as the best one, because the highest
    reward is not: the report tells readers to compare with the reference row instead.

    Args:
        path: Of the HTML file.
        title: The heading.
        rows: By row and column, a value and its standard error.
        columns: The columns to show, in order.
        column_notes: What columns mean, and whether more or less is better, in a sentence each.
        pictures: Caption and PNG file of each picture; the caption is also what a screen reader says in place of the
            picture.
        findings: What came out, in plain sentences.
        settings: What is needed to run it again.
        reference: The row of real cells, which is marked as what to compare with.

    Raises:
        ValueError: If there is no reference row, no row has one of the columns, or a note is about no column.
        PIL.UnidentifiedImageError: If a picture is not a PNG file.

    Example:
        >>> rows = {"base": {"moa": (0.88, 0.02)}, "real": {"moa": (0.912, 0.004)}}
        >>> write_report(                                                             # doctest: +SKIP
        ...     "report.html", "Demo", rows, ["moa"], {"moa": "Probability of the true mechanism; higher is better."},
        ...     [("Controls and what the model made of them.", Path("grid.png"))], ["RL helps."], {"seed": 0},
        ... )
    """
    _check_columns(rows, columns)
    if reference not in rows:
        raise unknown_name("reference row", reference, rows)
    for column in column_notes:
        if column not in columns:
            raise unknown_name("column", column, columns)
    html = _render(
        title=title,
        table={name: [_cell(row, column) for column in columns] for name, row in rows.items()},
        columns=columns,
        column_notes={column: column_notes[column] for column in columns if column in column_notes},
        pictures=[_embed(caption, picture) for caption, picture in pictures],
        findings=findings,
        settings=settings,
        reference=reference,
        sections=[],
    )
    Path(path).write_text(html, encoding="utf-8")


def write_sections(
    path: str | Path,
    title: str,
    findings: Sequence[str],
    sections: Sequence[Section],
    settings: Mapping[str, object],
) -> None:
    """Write a report of several sections, as one HTML file like that of [`write_report`].

    Args:
        path: Of the HTML file.
        title: The heading.
        findings: What came out, in plain sentences.
        sections: The parts, in order.
        settings: What is needed to run it again.

    Raises:
        ValueError: If a row of a table has another number of cells than there are columns.
        PIL.UnidentifiedImageError: If a picture is not a PNG file.
    """
    for section in sections:
        for table in section.tables:
            for name, row in table.rows.items():
                if len(row) != len(table.columns):
                    raise ValueError(
                        f"row {name!r} of the table {table.caption!r} has {len(row)} cells for {len(table.columns)} "
                        "columns"
                    )
    shown = [
        {
            "title": section.title,
            "paragraphs": section.paragraphs,
            "findings": [finding.rpartition(" | ")[::2] for finding in section.findings],
            "tables": section.tables,
            "notes": section.notes,
            "pictures": [_embed(caption, picture) for caption, picture in section.pictures],
        }
        for section in sections
    ]
    html = _render(
        title=title,
        table={},
        columns=[],
        column_notes={},
        pictures=[],
        findings=findings,
        settings=settings,
        reference="",
        sections=shown,
    )
    Path(path).write_text(html, encoding="utf-8")


def _render(**values: object) -> str:
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**values)


def _embed(caption: str, path: Path) -> _Picture:
    with Image.open(path, formats=["PNG"]) as image:
        width, height = image.size
    encoded = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return _Picture(caption, f"data:image/png;base64,{encoded}", width, height)
