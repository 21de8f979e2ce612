"""The published tables of BBBC021: the real ones, and damaged ones that must not be read as something else."""

import csv
import gzip
import io
import random
import shutil
import uuid

import numpy as np
import pandas as pd
import pytest

from cellfluxrl.data.building.bbbc021_index import IMAGE_COLUMNS, INDEX_COLUMNS, read_index
from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds

IMAGE, MOA, COMPOUND = "BBBC021_v1_image.csv", "BBBC021_v1_moa.csv", "BBBC021_v1_compound.csv"

# Plate, replicate, what comes before the well in its file names, and its wells.
PLATES = (
    ("Week1_22123", 3, "Week1_150607_", {"B02": (CONTROL, "0"), "C03": ("taxol", "0.3")}),
    ("Week4_27481", 1, "", {"B02": (CONTROL, "0"), "C03": ("AZ-J", "10"), "C04": ("taxol", "3")}),
    ("Week7_34341", 2, "Week7_7__", {"B02": (CONTROL, "0"), "G10": ("mevinolin/lovastatin", "1.5")}),
)
LABELS = (
    (CONTROL, "0.000000", CONTROL),
    ("taxol", "0.300000", "Microtubule stabilizers"),
    ("AZ-J", "10.000000", "Epithelial"),
    ("mevinolin/lovastatin", "1.500000", "Cholesterol-lowering"),
)


def image_rows() -> list[list[str]]:
    """A small image table as published: the header, then four sites of each well."""
    rows, guids = [list(IMAGE_COLUMNS)], random.Random(0)
    for plate, replicate, prefix, wells in PLATES:
        week = plate.split("_")[0]
        image_number = 0
        for well, treatment in wells.items():
            for site in range(1, 5):
                image_number += 1
                files = []
                for wavelength in (1, 2, 4):
                    guid = str(uuid.UUID(int=guids.getrandbits(128))).upper()
                    files += [f"{prefix}{well}_s{site}_w{wavelength}{guid}.tif", f"{week}/{plate}"]
                numbers = [week.removeprefix("Week"), str(image_number)]
                rows.append([*numbers, *files, plate, well, str(replicate), *treatment])
    return rows


def to_csv(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


def moa_csv() -> bytes:
    return b'"compound",concentration,"moa"\n' + b"".join(f'"{c}",{d},"{m}"\n'.encode() for c, d, m in LABELS)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / IMAGE).write_bytes(to_csv(image_rows()))
    (tmp_path / MOA).write_bytes(moa_csv())
    return tmp_path


# --- the real tables ---


@pytest.fixture(scope="module")
def index(bbbc021_dir):
    return read_index(bbbc021_dir)


def test_the_image_set_is_as_published(index):
    assert tuple(index.columns) == INDEX_COLUMNS
    assert len(index) == 13_200
    assert index.groupby("plate").size().eq(240).all()
    assert index["plate"].nunique() == 55
    assert index["compound"].nunique() == 113  # with DMSO
    assert index["batch"].nunique() == 10
    assert not index.isna().any().any()
    assert index["field"].is_unique


def test_103_treatments_have_one_of_12_mechanisms(index, bbbc021_dir):
    labelled = index[(index["moa"] != "") & ~index["is_control"]]
    treatments = labelled[["compound", "concentration", "moa"]].drop_duplicates()
    published = pd.read_csv(bbbc021_dir / MOA).query("compound != 'DMSO'")
    columns = list(published.columns)
    assert len(treatments) == 103
    assert set(treatments["moa"]) == set(MOAS)
    assert sorted(treatments.itertuples(index=False, name=None)) == sorted(
        published[columns].itertuples(index=False, name=None)
    )


def test_controls_are_dmso_without_a_dose(index):
    assert ((index["compound"] == CONTROL) == index["is_control"]).all()
    assert (index["is_control"] == (index["concentration"] == 0)).all()
    assert ((index["moa"] == CONTROL) == index["is_control"]).all()
    assert index[index["is_control"]].groupby("plate")["well"].nunique().eq(6).all()


def test_structures_are_those_of_the_known_compounds(index):
    known = known_compounds()["smiles"]
    found = index.drop_duplicates("compound").set_index("compound")["smiles"]
    assert found[known.index].to_dict() == known.to_dict()
    assert (found.drop(known.index) == "").all()


def test_every_row_says_what_the_published_one_says(index, bbbc021_dir):
    published = pd.read_csv(bbbc021_dir / f"{IMAGE}.gz", dtype={"Image_Metadata_Concentration": str})
    for theirs, ours in IMAGE_COLUMNS.items():
        if ours in ("plate", "well", "compound", "replicate", "dna", "tubulin", "actin", "image_number"):
            assert index[ours].tolist() == published[theirs].tolist(), ours
    assert index["concentration"].tolist() == published["Image_Metadata_Concentration"].astype(float).tolist()
    in_name = published["Image_FileName_Actin"].str.extract(r"_s(\d)_w4")[0].astype(int)
    assert index["site"].tolist() == in_name.tolist()


def test_real_crops_join_the_index(index, bbbc021_dir):
    with np.load(bbbc021_dir / "Week4_27821.npz", allow_pickle=False) as crops:
        fields = index.set_index("field").loc[crops["fov"]]
        for column in ("well", "site", "compound", "replicate"):
            assert (fields[column].to_numpy() == crops[column]).all(), column
        np.testing.assert_allclose(fields["concentration"], crops["concentration"], rtol=1e-6)
    assert set(fields["plate"]) == {"Week4_27821"}


# --- which files ---


def test_a_small_table_is_read(folder):
    index = read_index(folder)
    assert len(index) == 28
    assert sorted(index["plate"].unique()) == [plate for plate, *_ in PLATES]
    row = index[(index["plate"] == "Week7_34341") & (index["well"] == "G10") & (index["site"] == 3)].iloc[0]
    assert (row["batch"], row["replicate"], row["concentration"]) == ("Week7", 2, 1.5)
    assert (row["moa"], row["image_number"], row["table_number"]) == ("Cholesterol-lowering", 7, 7)
    assert row["field"] == row["dna"].removesuffix(".tif")
    assert set(index[(index["compound"] == "taxol") & (index["concentration"] == 3)]["moa"]) == {""}


@pytest.mark.parametrize("name", [IMAGE, MOA])
def test_tables_may_be_gzipped(folder, name):
    plain = read_index(folder)
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / name).unlink()
    pd.testing.assert_frame_equal(read_index(folder), plain)


def test_line_ends_quotes_a_mark_and_further_columns_make_no_difference(folder):
    plain = read_index(folder)
    rows = [[*row, "more"] for row in image_rows()]
    text = to_csv(rows, csv.QUOTE_ALL).replace(b"\r\n", b"\n")
    (folder / IMAGE).write_bytes(b"\xef\xbb\xbf" + text.rstrip(b"\n"))
    pd.testing.assert_frame_equal(read_index(str(folder)), plain)


def test_published_structures_are_used_where_they_are_there(folder):
    (folder / COMPOUND).write_text("compound,smiles\nAZ-J,CCO\ntaxol,\n")
    smiles = read_index(folder).drop_duplicates("compound").set_index("compound")["smiles"]
    known = known_compounds()["smiles"]
    assert smiles.to_dict() == {"AZ-J": "CCO", **known[[CONTROL, "taxol", "mevinolin/lovastatin"]].to_dict()}
    (folder / COMPOUND).write_text("compound,smiles\nAZ-J,CCO\nAZ-J,CC\n")
    with pytest.raises(ValueError, match=f"{COMPOUND}, line 3: compound 'AZ-J': there a second time"):
        read_index(folder)


@pytest.mark.parametrize("name", [IMAGE, MOA])
def test_a_missing_table_is_named_with_its_address(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} .*https://data.broadinstitute.org/bbbc/BBBC021/{name}"):
        read_index(folder)


# --- tables that contradict themselves ---

LINE_7 = dict(zip(IMAGE_COLUMNS.values(), image_rows()[6], strict=True))
GUID_OF_DNA = LINE_7["dna"].partition("_w1")[2]

# What line 7 (site 2 of the taxol well of Week1_22123) says instead, and what is said about it.
CHANGES = [
    ("dna", f"Week1_150607_C03_w1{GUID_OF_DNA}", r"not a file name like"),
    ("dna", f"../C03_s2_w1{GUID_OF_DNA}", r"not a file name like"),
    ("dna", f"Week1/C03_s2_w1{GUID_OF_DNA}", r"not a file name like"),
    ("dna", f"Week1\\C03_s2_w1{GUID_OF_DNA}", r"not a file name like"),
    ("dna", f"Week1_150607_C03_s2_w2{GUID_OF_DNA}", r"not wavelength w1 of dna"),
    ("dna", f"Week1_150607_C04_s2_w1{GUID_OF_DNA}", r"not the well of its row"),
    ("dna", f"Week2_150607_C03_s2_w1{GUID_OF_DNA}", r"not the week of its row's plate"),
    ("tubulin", LINE_7["tubulin"].replace("_s2_", "_s3_"), r"not the site of the row's DNA file"),
    ("actin", LINE_7["actin"].replace("150607_", "150608_"), r"not the prefix of the row's DNA file"),
    ("actin_path", "Week1/Week1_22124", r"not the folder of the row's plate"),
    ("plate", "Week1/22123", r"not a plate like"),
    ("well", "C25", r"not a well like"),
    ("well", "c03", r"not a well like"),
    ("replicate", "4", r"not 1, 2 or 3"),
    ("replicate", "1", r"but '3' in the first line with plate"),
    ("replicate", "1.0", r"not a whole number"),
    ("table_number", "2", r"not the last digit of the plate's week"),
    ("image_number", "50", r"does not continue"),
    ("compound", "", r"no compound"),
    ("compound", "taxol ", r"white space"),
    ("compound", "Taxol", r"but 'taxol' in the first line with plate 'Week1_22123', well 'C03'"),
    ("concentration", "nan", r"not a number that is at least 0"),
    ("concentration", "inf", r"not a number that is at least 0"),
    ("concentration", "-0.3", r"not a number that is at least 0"),
    ("concentration", "1_0", r"not a number that is at least 0"),
    ("concentration", "1e999", r"too large"),
    ("concentration", "3.0", r"but '0.3' in the first line with plate 'Week1_22123', well 'C03'"),
]


@pytest.mark.parametrize(("column", "value", "message"), CHANGES)
def test_a_changed_cell_is_named_with_its_file_and_line(folder, column, value, message):
    rows = image_rows()
    rows[6][list(IMAGE_COLUMNS.values()).index(column)] = value
    (folder / IMAGE).write_bytes(to_csv(rows))
    with pytest.raises(ValueError, match=message) as error:
        read_index(folder)
    assert f"{IMAGE}, line 7: {column} {value!r}: " in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:1], "has no rows below its header"),
        (lambda rows: [], r"line 1: the columns \['TableNumber', .* are missing"),
        (lambda rows: [row[:-1] for row in rows], r"columns \['Image_Metadata_Concentration'\] are missing"),
        (lambda rows: [[*row, row[0]] for row in rows], r"columns \['TableNumber'\] are there more than once"),
        (lambda rows: [*rows[:4], rows[4][:-1], *rows[5:]], "line 5: 12 cells instead of 13"),
        (lambda rows: [*rows[:3], rows[2], *rows[3:]], r"line 4: file '.*': there a second time, first in line 3"),
        (lambda rows: [*rows[:2], *rows[3:]], "line 2: dna .*: its well has not all of its 4 sites"),
        (
            lambda rows: [*rows, [*rows[1][:1], "99", *image_rows_of_site_1_again(rows), *rows[1][8:]]],
            "site '1': there a second time, first in line 2",
        ),
        (lambda rows: [row if row[9] != "C03" else [*row[:-1], "0"] for row in rows], "0 is for DMSO alone"),
    ],
)
def test_a_changed_table_is_refused(folder, change, message):
    (folder / IMAGE).write_bytes(to_csv(change(image_rows())))
    with pytest.raises(ValueError, match=message) as error:
        read_index(folder)
    assert str(folder / IMAGE) in str(error.value)


def image_rows_of_site_1_again(rows: list[list[str]]) -> list[str]:
    """The files and paths of the first field, with other GUIDs."""
    return [cell[:-5] + "0.tif" if cell.endswith(".tif") else cell for cell in rows[1][2:8]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'"taxol",0.300000,"Microtubule stabilisers"', r"line 6: .*'Microtubule stabilisers'; did you mean 'Micro"),
        (
            b'"taxol",0.3,"Microtubule stabilizers"',
            "line 6: compound 'taxol', concentration '0.3': there a second time, first in line 3",
        ),
        (b'"taxo",0.3,"Microtubule stabilizers"', "line 6: label 'taxo at 0.3 uM': in no row of the image table"),
        (
            b'"taxol",3.0,"Epithelial"',
            "line 6: moa 'Epithelial': but 'Microtubule stabilizers' in the first line with compound 'taxol'",
        ),
        (b'"taxol",low,"Microtubule stabilizers"', "line 6: concentration 'low': not a number"),
        (b'"taxol",3.0', "line 6: 2 cells instead of 3"),
        (b'"taxol",3.0,"Micro', "cannot be read as a table"),
    ],
)
def test_a_label_that_cannot_be_is_refused(folder, line, message):
    (folder / MOA).write_bytes(moa_csv() + line)
    with pytest.raises(ValueError, match=message) as error:
        read_index(folder)
    assert str(folder / MOA) in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: gzip.compress(raw)[:-20],
        lambda raw: gzip.compress(raw)[:200] + bytes(50) + gzip.compress(raw)[250:],
        lambda raw: raw,
        lambda raw: b"",
    ],
    ids=["cut off", "overwritten", "not gzip", "empty"],
)
def test_a_broken_gzip_file_is_named(folder, damage):
    raw = (folder / IMAGE).read_bytes()
    (folder / IMAGE).unlink()
    (folder / f"{IMAGE}.gz").write_bytes(damage(raw))
    with pytest.raises(ValueError, match=f"{IMAGE}.gz"):
        read_index(folder)


# --- any damage ---


def _cells(random_: random.Random, rows: list[list[str]]) -> tuple[int, int]:
    row = random_.randrange(len(rows))
    return row, random_.randrange(len(rows[row]))


def _delete_cell(r, rows):
    row, column = _cells(r, rows)
    del rows[row][column]


def _blank_cell(r, rows):
    row, column = _cells(r, rows)
    rows[row][column] = ""


def _repeat_cell(r, rows):
    row, column = _cells(r, rows)
    rows[row].insert(column, rows[row][column])


def _swap_cells(r, rows):
    (a, b), (c, d) = _cells(r, rows), _cells(r, rows)
    rows[a][b], rows[c][d] = rows[c][d], rows[a][b]


def _swap_in_column(r, rows):
    (a, b), (c, _) = _cells(r, rows), _cells(r, rows)
    rows[a][b], rows[c][b] = rows[c][b], rows[a][b]


def _swap_headings(r, rows):
    a, b = r.sample(range(len(rows[0])), 2)
    rows[0][a], rows[0][b] = rows[0][b], rows[0][a]


def _swap_columns(r, rows):
    a, b = r.sample(range(len(rows[0])), 2)
    for row in rows:
        row[a], row[b] = row[b], row[a]


def _delete_column(r, rows):
    column = r.randrange(len(rows[0]))
    for row in rows:
        del row[column]


def _delete_row(r, rows):
    del rows[r.randrange(len(rows))]


def _repeat_row(r, rows):
    rows.insert(r.randrange(len(rows)), list(rows[r.randrange(len(rows))]))


def _shuffle_rows(r, rows):
    body = rows[1:]
    r.shuffle(body)
    rows[1:] = body


def _cut(r, raw):
    return raw[: r.randrange(len(raw))]


def _drop_byte(r, raw):
    at = r.randrange(len(raw))
    return raw[:at] + raw[at + 1 :]


def _drop_stretch(r, raw):
    a, b = sorted(r.sample(range(len(raw)), 2))
    return raw[:a] + raw[b:]


def _stray_byte(r, raw):
    at = r.randrange(len(raw))
    return raw[:at] + r.choice([b"\xff", b"\x00", b'"', b",", b"\n", b"\xe9", b";"]) + raw[at:]


def _other_encoding(r, raw):
    return raw.decode().encode(r.choice(["utf-16", "utf-32", "cp037"]))


ROW_DAMAGES = [
    _delete_cell,
    _blank_cell,
    _repeat_cell,
    _swap_cells,
    _swap_in_column,
    _swap_headings,
    _swap_columns,
    _delete_column,
    _delete_row,
    _repeat_row,
    _shuffle_rows,
]
BYTE_DAMAGES = [_cut, _drop_byte, _drop_stretch, _stray_byte, _other_encoding]


def _read_or_refuse(folder, name: str) -> pd.DataFrame | None:
    try:
        return read_index(folder)
    except (ValueError, OSError) as error:
        assert name in str(error), error  # noqa: PT017
        return None


@pytest.mark.parametrize("damage", [*ROW_DAMAGES, *BYTE_DAMAGES], ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_image_table_is_refused_or_read_right(folder, damage):
    right = read_index(folder).set_index("dna")
    for seed in range(13):
        random_ = random.Random(seed)
        if damage in ROW_DAMAGES:
            rows = image_rows()
            damage(random_, rows)
            raw = to_csv(rows)
        else:
            raw = damage(random_, to_csv(image_rows()))
        (folder / IMAGE).write_bytes(raw)
        index = _read_or_refuse(folder, "BBBC021_v1_")
        if index is not None:
            index = index.set_index("dna")
            assert index.index.is_unique
            pd.testing.assert_frame_equal(index, right.loc[index.index])


# No reader can tell that labels traded their doses.
UNSEEN_IN_LABELS = (_swap_cells, _swap_in_column)


@pytest.mark.parametrize(
    "damage",
    [damage for damage in [*ROW_DAMAGES, *BYTE_DAMAGES] if damage not in UNSEEN_IN_LABELS],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_a_damaged_moa_table_is_refused_or_labels_nothing_wrong(folder, damage):
    right = read_index(folder)
    for seed in range(4):
        random_ = random.Random(seed)
        if damage in ROW_DAMAGES:
            rows = [["compound", "concentration", "moa"], *map(list, LABELS)]
            damage(random_, rows)
            raw = to_csv(rows, csv.QUOTE_ALL)
        else:
            raw = damage(random_, moa_csv())
        (folder / MOA).write_bytes(raw)
        index = _read_or_refuse(folder, MOA)
        if index is not None:
            pd.testing.assert_frame_equal(index.drop(columns="moa"), right.drop(columns="moa"))
            assert ((index["moa"] == right["moa"]) | (index["moa"] == "")).all()


def test_a_real_table_that_is_cut_off_is_refused_or_read_right(bbbc021_dir, tmp_path, index):
    raw = gzip.decompress((bbbc021_dir / f"{IMAGE}.gz").read_bytes())
    shutil.copy(bbbc021_dir / MOA, tmp_path)
    for fraction in (0.3, 0.999):
        (tmp_path / IMAGE).write_bytes(raw[: int(fraction * len(raw))])
        with pytest.raises(ValueError, match="BBBC021_v1_"):
            read_index(tmp_path)
    (tmp_path / IMAGE).write_bytes(raw)
    pd.testing.assert_frame_equal(read_index(tmp_path), index)
