"""Tables that users bring: whatever is wrong with one is named with its line."""

import csv
import gzip
import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellfluxrl.data.tables import (
    MAX_WHOLE,
    check_filled,
    check_names,
    check_same,
    check_smiles,
    check_text,
    check_unique,
    numbers,
    read_table,
    refuse,
)

PATH = Path("plates.csv")


def table_of(**columns: list[str]) -> pd.DataFrame:
    """A table as `read_table` returns it, with one line a row below the header."""
    table = pd.DataFrame(columns, dtype=str)
    return table.set_axis(pd.RangeIndex(2, 2 + len(table), name="line"))


@pytest.fixture
def written(tmp_path):
    """Writes a table, and gives its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "plates.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# --- reading ---


def test_cells_are_text_as_it_stands_there(written):
    table = read_table(written("plate,dose\nP1,01.50\n,NA\n"), ["dose"])
    assert table.to_dict("list") == {"plate": ["P1", ""], "dose": ["01.50", "NA"]}
    assert table.index.tolist() == [2, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfplate,dose\nP1,1\nP2,2\n",
        b"plate,dose\r\nP1,1\r\nP2,2\r\n",
        b"plate,dose\rP1,1\rP2,2\r",
        b"plate,dose\nP1,1\nP2,2",
        b'"plate","dose"\n"P1","1"\n"P2","2"\n',
    ],
    ids=["byte order mark", "Windows", "old Macintosh", "no last line end", "quotes"],
)
def test_spreadsheets_ways_of_writing_are_one_table(written, content):
    table = read_table(written(content), ["plate", "dose"])
    assert table.reset_index().values.tolist() == [[2, "P1", "1"], [3, "P2", "2"]]


def test_a_compressed_table(tmp_path):
    path = tmp_path / "plates.csv.gz"
    path.write_bytes(gzip.compress(b"plate\nP1\n"))
    assert read_table(path, ["plate"])["plate"].tolist() == ["P1"]
    path.write_bytes(gzip.compress(b"plate\nP1\n")[:-4])
    with pytest.raises(ValueError, match=r"plates\.csv\.gz cannot be read as a table"):
        read_table(path, ["plate"])


def test_lines_are_those_of_the_file_with_blank_ones_and_cells_of_several(written):
    path = written('plate,note\n\nP1,"one\ntwo\nthree"\nP2,x\n\n\nP3,"a\r\nb"\nP4,y\n\n')
    table = read_table(path, ["plate"])
    assert dict(zip(table["plate"], table.index, strict=True)) == {"P1": 3, "P2": 6, "P3": 9, "P4": 11}
    with pytest.raises(ValueError, match=r"plates\.csv, line 9: note 'a\\r\\nb': no"):
        refuse(table, path, "note", table["plate"] == "P3", "no")


ROWS = st.lists(st.lists(st.text(alphabet='a",;\n\r ü', max_size=4), min_size=3, max_size=3), min_size=1, max_size=5)


@given(rows=ROWS, line_end=st.sampled_from(["\n", "\r\n"]))
@example(rows=[["", "", ""]], line_end="\n")
@settings(max_examples=40, deadline=None)
def test_what_was_written_is_read_and_each_line_is_where_its_row_begins(tmp_path_factory, rows, line_end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["one", "two", "three"])
    begins = []
    for row in rows:
        begins.append(text.tell())
        writer.writerow(row)
    path = tmp_path_factory.mktemp("table") / "plates.csv"
    path.write_bytes(text.getvalue().encode())
    table = read_table(path, ["one"])
    assert table.values.tolist() == rows
    before = [text.getvalue()[:begin] for begin in begins]
    assert table.index.tolist() == [len(io.StringIO(b, newline=None).read().split("\n")) for b in before]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"plates\.csv, line 1: the columns \['plate', 'dose'\] are missing; there are \[\]"),
        (b"plate,dose\n", r"plates\.csv has no rows below its header"),
        (b"plate,dose\n\n\n", r"no rows"),
        (b"plate\nP1\n", r"line 1: the columns \['dose'\] are missing; there are \['plate'\]"),
        (b"Plate,dose\nP1,1\n", r"\['plate'\] are missing; there are \['Plate', 'dose'\]; is 'Plate' 'plate'\?"),
        (b"plate, dose\nP1,1\n", r"is ' dose' 'dose'\?"),
        (b"plate;dose\nP1;1\n", r"line 1: the cells are separated by ';', but must be by commas"),
        (b"plate\tdose\nP1\t0,5\n", r"line 1: the cells are separated by '\\t', but must be by commas"),
        (b"plate,dose,dose\nP1,1,1\n", r"line 1: the columns \['dose'\] are there more than once"),
        (b"plate,dose\nP1,1\nP2,1,more\n", r"line 3: 3 cells instead of 2: \['P2', '1', 'more'\]"),
        (b"plate,dose\nP1,1\n\nP2\n", r"line 4: 1 cells instead of 2"),
        (b'plate,dose\nP1,"1\n', r"cannot be read as a table"),
        (b'plate,dose\nP1,"1"0\n', r"cannot be read as a table"),
        ("plate,dose\nP1,1\nP2,1 \xb5M\n".encode("latin-1"), r"UTF-8: line 3 has the byte 0xb5"),
        ("plate,dose\nP1,1\n".encode("utf-16"), r"UTF-8: line 1 has the byte 0x"),
    ],
)
def test_a_table_that_is_none_is_refused(written, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_table(written(content), ["plate", "dose"])
    assert "plates.csv" in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*plates\.csv'"):
        read_table(tmp_path / "plates.csv", [])


# --- numbers ---


@pytest.mark.parametrize("text", ["0", "0.3", ".3", "3.", "1e-3", "2.5E+1", "007"])
def test_numbers_are_read(text):
    assert numbers(table_of(dose=[text]), PATH, "dose").tolist() == [float(text)]


@pytest.mark.parametrize("text", ["1", "1.0", "1.000", "10e-1"])
def test_whole_numbers_may_be_written_as_spreadsheets_do(text):
    values = numbers(table_of(site=[text]), PATH, "site", whole=True)
    assert values.tolist() == [1]
    assert values.dtype == np.int64


@pytest.mark.parametrize(
    "text",
    ["", "nan", "inf", "-1", "-0.5", "+1", "1,5", "1_0", "0x10", "1 uM", "\u0661", "1e999", "1e39", "1e-60", "ten"],
)
def test_what_is_no_number_of_32_bits_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match=re.escape(f"plates.csv, line 3: dose {text!r}: ")):
        numbers(table_of(dose=["1", text]), PATH, "dose")


@pytest.mark.parametrize("text", ["1.5", "-1", str(MAX_WHOLE), "1e999", "nan", "s1"])
def test_what_is_no_whole_number_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match="not a whole number") as error:
        numbers(table_of(site=["1", "2", text]), PATH, "site", whole=True)
    assert f"plates.csv, line 4: site {text!r}" in str(error.value)


@given(value=st.floats(min_value=0, allow_nan=False, allow_infinity=False, width=32, allow_subnormal=False))
@settings(max_examples=50, deadline=None)
def test_any_float32_comes_back(value):
    assert numbers(table_of(dose=[repr(value)]), PATH, "dose")[0] == value


@given(text=st.text(alphabet="0123456789.eE+-_xnaif ,", max_size=6))
@settings(max_examples=100, deadline=None)
def test_no_text_becomes_another_number_than_python_reads(text):
    try:
        (value,) = numbers(table_of(dose=[text]), PATH, "dose")
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017
    else:
        assert value == float(text)
        assert math.isfinite(value)
        assert value >= 0


# --- text, names and rows ---


@pytest.mark.parametrize("text", [" taxol", "taxol ", "taxol\t", "taxol\xa0"])
def test_white_space_at_an_end_is_refused(text):
    with pytest.raises(ValueError, match=r"line 3: compound .*: has white space at an end"):
        check_text(table_of(compound=["taxol", text]), PATH)


@pytest.mark.parametrize("text", ["tax\0ol", "tax\nol", "tax\xa0ol", "tax\u200bol", "tax\x1b[31mol"])
def test_what_cannot_be_seen_is_refused(text):
    with pytest.raises(ValueError, match=r"line 2: compound .*: has a character that cannot be printed"):
        check_text(table_of(compound=[text]), PATH)


def test_any_other_text_is_taken():
    check_text(table_of(compound=["", "Cdk1/2 Inhibitor (NU6102)", "β-estradiol, 17", "../x"]), PATH)


def test_an_empty_cell_is_refused():
    check_filled(table_of(plate=["P1"], note=[""]), PATH, ["plate"])
    with pytest.raises(ValueError, match="line 3: plate '': must not be empty"):
        check_filled(table_of(plate=["P1", ""]), PATH, ["plate"])


@pytest.mark.parametrize("name", ["Week4_27821", "B02", "plate 1", "α-1.b+c", "_x", "9"])
def test_names_that_can_be_part_of_a_file_name(name):
    check_names(table_of(plate=[name]), PATH, "plate")


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a\\b", ".", "..", ".hidden", "-x", "C:x", "a\0b", "a\nb", "*", "x" * 101, "é" * 51]
)
def test_names_that_cannot_be_part_of_a_file_name(name):
    with pytest.raises(ValueError, match=r"line 2: plate .*: must be letters, digits"):
        check_names(table_of(plate=[name]), PATH, "plate")


def test_rows_that_disagree_are_named():
    table = table_of(well=["B02", "B03", "B02"], dose=["1", "2", "3"])
    check_same(table, PATH, "well", within=["dose"])
    with pytest.raises(ValueError, match=r"line 4: dose '3': but '1' in the first line with well 'B02'"):
        check_same(table, PATH, "dose", within=["well"])


def test_rows_that_repeat_are_named_with_both_lines():
    table = table_of(well=["B02", "B03", "B02", "B02"], site=["1", "1", "2", "1"])
    check_unique(table.iloc[:3], PATH, ["well", "site"])
    with pytest.raises(ValueError, match=r"line 5: well 'B02', site '1': there a second time, first in line 2"):
        check_unique(table, PATH, ["well", "site"])


def test_structures_are_those_that_rdkit_reads():
    check_smiles(table_of(smiles=["", "CS(C)=O"]), PATH, "smiles")
    # Of "CC O" RDKit would read "CC", and take "O" for its name.
    for smiles in ("CC(C", "C1CC", "nan", "CC O", "C(C)(C)(C)(C)C", "é"):
        message = rf"plates\.csv, line 3: smiles: .*{re.escape(repr(smiles))}"
        with pytest.raises(ValueError, match=message):
            check_smiles(table_of(smiles=["CCO", smiles]), PATH, "smiles")
