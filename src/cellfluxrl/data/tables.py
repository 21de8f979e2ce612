"""Tables that users bring: read as text, then checked, so that errors name the line and the value."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cellfluxrl.data.compounds import read_molecule
from cellfluxrl.errors import unknown_name

_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_NAME = re.compile(r"\w[\w +.-]*")
MAX_NAME_BYTES = 100  # a file name has at most 255
MAX_WHOLE = 10**9  # fits into the schema's int32


def read_table(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file as text: an empty cell is `""`, and the index, named `line`, says where each row begins.

    pandas would fill up rows that are too short, take some texts for missing values, and not report the lines.

    Args:
        path: The file: comma-separated, UTF-8, with any line ends; compressed if its name ends in `.gz`.
        required: Columns that must be there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        lines = list(_parse(_decode(path)))
    except (ValueError, EOFError, OSError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table of comma-separated text in UTF-8: {error}") from error
    header = lines[0][1] if lines else []
    _check_header(header, required, path)
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} cells instead of {len(header)}: {row}")
    if len(lines) < 2:
        raise ValueError(f"{path} has no rows below its header")
    index = pd.Index([line for line, _ in lines[1:]], name="line")
    return pd.DataFrame([row for _, row in lines[1:]], index=index, columns=header, dtype=str)


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} has the byte {raw[error.start]:#04x}, which is not UTF-8") from None


def _parse(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines where they begin: a cell in quotes may span several."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    for row in reader:
        if row:
            yield line, row
        line = reader.line_num + 1


def _check_header(header: list[str], required: Sequence[str], path: Path) -> None:
    if len(header) == 1 and (separator := re.search(r"[;\t|]", header[0])):
        raise ValueError(f"{path}, line 1: the cells are separated by {separator.group()!r}, but must be by commas")
    missing = [column for column in required if column not in header]
    if missing:
        others = {name.strip().lower(): name for name in header if name not in required}
        nearest = [difflib.get_close_matches(column.lower(), others, n=1) for column in missing]
        hints = [f"is {others[n[0]]!r} {column!r}?" for column, n in zip(missing, nearest, strict=True) if n]
        raise ValueError("; ".join([f"{path}, line 1: the columns {missing} are missing; there are {header}", *hints]))
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: the columns {repeated} are there more than once")


def refuse(table: pd.DataFrame, path: Path, column: str, bad: pd.Series | np.ndarray, why: str) -> None:
    """Raise a `ValueError` with file, line and value of the first row that is `bad`, if any, and `why` it is."""
    if np.any(bad):
        row = int(np.argmax(np.asarray(bad)))
        raise ValueError(f"{path}, line {table.index[row]}: {column} {str(table[column].iloc[row])!r}: {why}")


def check_text(table: pd.DataFrame, path: Path) -> None:
    """Refuse what a reader would not see: white space at the ends of a cell, and characters that are not printed."""
    for column in table.columns:
        refuse(table, path, column, table[column] != table[column].str.strip(), "has white space at an end")
        hidden = ~table[column].map(str.isprintable).astype(bool)
        refuse(table, path, column, hidden, "has a character that cannot be printed")


def check_filled(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> None:
    """Refuse empty cells."""
    for column in columns:
        refuse(table, path, column, table[column] == "", "must not be empty")


def check_known(table: pd.DataFrame, path: Path, column: str, known: Collection[str]) -> None:
    """Refuse values that are not known."""
    for line, value in table[column].drop_duplicates().items():
        if value not in known:
            raise unknown_name(f"{column} in {path}, line {line}:", value, known)


def check_names(table: pd.DataFrame, path: Path, column: str) -> None:
    """Refuse names of plates and wells that would be no good as part of a file name."""
    good = table[column].map(lambda name: bool(_NAME.fullmatch(name)) and len(name.encode()) <= MAX_NAME_BYTES)
    why = (
        "must be letters, digits, spaces, '_', '-', '+' or '.', begin with a letter, digit or '_', and have at most "
        f"{MAX_NAME_BYTES} bytes"
    )
    refuse(table, path, column, ~good.astype(bool), why)


def check_same(table: pd.DataFrame, path: Path, column: str, within: Sequence[str]) -> None:
    """Refuse rows that agree in the columns `within` but not in `column`."""
    first = table.groupby(list(within))[column].transform("first")
    differs = (table[column] != first).to_numpy()
    if differs.any():
        row = int(np.argmax(differs))
        place = ", ".join(f"{name} {str(table[name].iloc[row])!r}" for name in within)
        refuse(table, path, column, differs, f"but {str(first.iloc[row])!r} in the first line with {place}")


def check_unique(table: pd.DataFrame, path: Path, columns: Sequence[str]) -> None:
    """Refuse rows that agree in all of `columns`."""
    repeated = table.duplicated(list(columns)).to_numpy()
    if repeated.any():
        second = table[list(columns)].iloc[int(np.argmax(repeated))]
        first = table.index[(table[list(columns)] == second).all(axis=1)][0]
        values = ", ".join(f"{column} {str(value)!r}" for column, value in second.items())
        raise ValueError(f"{path}, line {second.name}: {values}: there a second time, first in line {first}")


def numbers(table: pd.DataFrame, path: Path, column: str, *, whole: bool = False) -> np.ndarray:
    """Convert a column of text to numbers that are not negative and that float32 can hold.

    With `whole` to whole numbers below `MAX_WHOLE`; spreadsheets write 1 as 1.0.
    """
    kind = "a whole number" if whole else "a number"
    refuse(table, path, column, ~table[column].str.fullmatch(_NUMBER).astype(bool), f"not {kind} that is at least 0")
    values = table[column].to_numpy().astype(float)
    if whole:
        other = (values != np.floor(values)) | (values >= MAX_WHOLE)
        refuse(table, path, column, other, f"not a whole number below {MAX_WHOLE}")
        return values.astype(int)
    with np.errstate(over="ignore", under="ignore"):
        stored = values.astype(np.float32)
    unlike = ~np.isfinite(stored) | ((stored == 0) != (values == 0))
    refuse(table, path, column, unlike, "too large or too small for a 32-bit number")
    return values


def check_smiles(table: pd.DataFrame, path: Path, column: str) -> None:
    """Refuse structures that RDKit cannot read; an empty cell has none."""
    for line, smiles in table.loc[table[column] != "", column].drop_duplicates().items():
        try:
            read_molecule(smiles)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {column}: {error}") from None
