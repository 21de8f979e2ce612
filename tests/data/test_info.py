"""Counts and contact sheets of small data sets, of any number of channels, in memory and as a folder."""

import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellfluxrl.data import contact_sheet as sheets
from cellfluxrl.data.contact_sheet import contact_sheet
from cellfluxrl.data.images import BLUE_GREEN_RED, PALETTE, composite
from cellfluxrl.data.info import (
    COUNT_COLUMNS,
    count_cells,
    count_tables,
    reported_counts,
    summarize,
)
from cellfluxrl.data.schema import cell_features

SIZE = 16
TAXOL = ("taxol", "Microtubule stabilizers")
# (split, plate, compound, MoA, concentration): cells
CELLS = {
    ("train", "plate_1", "DMSO", "DMSO", 0.0): 4,
    ("train", "plate_1", *TAXOL, 0.3): 3,
    ("train", "plate_1", *TAXOL, 1.0): 2,
    ("train", "plate_2", "new compound", "", 10.0): 1,
    ("test", "plate_3", "DMSO", "DMSO", 0.0): 2,
    ("test", "plate_3", *TAXOL, 1.0): 5,
}


def make_cells(names=("dna", "tubulin", "actin"), published=False, cells=CELLS) -> datasets.DatasetDict:
    """Each cell is of one colour in each channel: 50 for controls, 200 for treated cells."""
    features = cell_features(names, SIZE, published=published)
    rows = {"train": [], "test": []}
    for (split, plate, compound, moa, concentration), count in cells.items():
        image = np.full((len(names), SIZE, SIZE), 50 if moa == "DMSO" else 200, np.uint8)
        row = dict.fromkeys(features) | {
            "image": image.transpose(1, 2, 0) if published and len(names) == 3 else image,
            "compound": compound,
            "concentration": concentration,
            "moa": moa,
            "plate": plate,
            "is_control": moa == "DMSO",
            "split": split,
        }
        rows[split] += [row] * count
    splits = {split: datasets.Dataset.from_list(part, features=features) for split, part in rows.items() if part}
    return datasets.DatasetDict(splits)


def write_folder(folder, cells):
    for split, part in cells.items():
        (folder / "data" / split).mkdir(parents=True)
        for plate in sorted(set(part["plate"])):
            rows = part.filter(lambda row, plate=plate: row["plate"] == plate)
            rows.to_parquet(str(folder / "data" / split / f"{plate}-00000.parquet"), batch_size=2)
    return folder


@pytest.fixture(scope="module")
def cells():
    return make_cells()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), make_cells(published=True))


# --- counts ---


def test_cells_are_counted_alike_in_memory_and_in_a_folder(cells, folder):
    counts = count_cells(cells)
    assert {tuple(row[:-1]): row[-1] for row in counts[[*COUNT_COLUMNS, "cells"]].itertuples(index=False)} == {
        (split, plate, compound, np.float32(dose), moa): n for (split, plate, compound, moa, dose), n in CELLS.items()
    }
    assert count_cells(folder).equals(counts)
    assert count_cells(str(folder)).equals(counts)
    assert count_cells(cells["test"])["cells"].sum() == 7


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(["train", "test"]),
            st.sampled_from(["p1", "p2", "p3"]),
            st.sampled_from([("DMSO", "DMSO"), TAXOL, ("a", ""), ("b", "")]),
            st.sampled_from([0.0, 0.3, 1.0, 10.0]),
        ),
        st.integers(1, 10**6),
        min_size=1,
    )
)
def test_every_table_adds_up_to_all_cells(cells):
    rows = [
        {"split": s, "plate": p, "compound": c, "moa": m, "concentration": d, "cells": n}
        for (s, p, (c, m), d), n in cells.items()
    ]
    counts = reported_counts({"counts": rows})
    for title, table in count_tables(counts).items():
        numbers = table[[c for c in table.columns if c in ("train", "test", "control cells", "treated cells")]]
        assert numbers.to_numpy().sum() == sum(cells.values()), title


def test_counts_are_taken_from_each_plate_of_a_report():
    row = {"split": "train", "plate": "p", "compound": "a", "concentration": 1.0, "moa": None, "cells": 3}
    counts = reported_counts({"plates": {"p": {"counts": [row]}, "empty": {"counts": []}}})
    assert counts.to_dict("records") == [{**row, "moa": ""}]


def test_the_summary_shows_splits_plates_mechanisms_and_doses(cells):
    lines = [" ".join(line.split()) for line in summarize(cells).splitlines()]
    for line in (
        "split plates control cells treated cells",
        "train 2 4 6",
        "test 1 2 5",
        "train plate_2 0 1",
        "Microtubule stabilizers 5 5 1",
        "taxol Microtubule stabilizers 5 5 0.3, 1",
        "new compound - 1 0 10",
    ):
        assert line in lines, line
    assert lines.index("train 2 4 6") < lines.index("test 1 2 5")


def test_the_summary_of_a_folder_names_what_went_wrong(folder, tmp_path):
    assert "problems" not in summarize(folder)
    spoilt = write_folder(tmp_path, make_cells(published=True))
    problem = {"field": "G10_s2", "reason": "the file is cut off"}
    report = {"complete": False, "plates": {"plate_1": {"problems": [problem]}, "plate_2": {}}}
    (spoilt / "build_report.json").write_text(json.dumps(report))
    text = " ".join(summarize(spoilt).split())
    assert "plate_1 G10_s2 the file is cut off" in text
    assert "the build did not finish" in text


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="it is not a data set that was built"):
        summarize(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the columns \['split', 'plate'"):
        summarize(datasets.Dataset.from_dict({"label": [1]}))


# --- contact sheet ---


def sheet_of(source, tmp_path, **options) -> np.ndarray:
    contact_sheet(source, tmp_path / "sheet.png", **options)
    return np.asarray(Image.open(tmp_path / "sheet.png"))


def crops_in(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((sheet == color).all(axis=-1).sum()) // sheets.CROP_PIXELS**2


def test_each_condition_has_a_row_with_as_many_cells_as_fit(cells, tmp_path):
    sheet = sheet_of(cells, tmp_path, cells_per_row=4)
    assert crops_in(sheet, (50, 50, 50)) == 4  # of 6 controls
    assert crops_in(sheet, (200, 200, 200)) == 3 + 4 + 1  # two doses of taxol and another compound
    step = sheets.CROP_PIXELS + sheets.GAP
    assert sheet.shape[0] == 4 * step + 4 * sheets.MARGIN


def test_a_folder_gives_the_same_sheet_as_its_cells(cells, folder, tmp_path):
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    in_order = datasets.DatasetDict({"test": loaded["test"], "train": loaded["train"]})  # as file names are sorted
    assert np.array_equal(sheet_of(folder, tmp_path), sheet_of(in_order, tmp_path))


def test_the_seed_decides_which_cells_are_shown(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 3, SIZE, SIZE)).astype(np.uint8)
    cells = make_cells(cells={("train", "p", "DMSO", "DMSO", 0.0): 40})["train"]
    cells = cells.map(lambda row, i: {"image": images[i]}, with_indices=True, features=cells.features)
    first = sheet_of(cells, tmp_path, seed=1)
    assert np.array_equal(first, sheet_of(cells, tmp_path, seed=1))
    assert not np.array_equal(first, sheet_of(cells, tmp_path, seed=2))


def test_of_many_conditions_the_highest_dose_of_each_compound_is_shown(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "MAX_ROWS", 3)
    sheet = sheet_of(cells, tmp_path)
    assert crops_in(sheet, (200, 200, 200)) == 7 + 1
    assert sheet.shape[0] == 3 * (sheets.CROP_PIXELS + sheets.GAP) + 4 * sheets.MARGIN


@pytest.mark.parametrize("count", range(2, 9))
def test_two_to_eight_channels_are_shown(tmp_path, count):
    cells = make_cells(tuple("abcdefgh"[:count]))
    sheet = sheet_of(cells, tmp_path)
    colors = BLUE_GREEN_RED if count == 3 else PALETTE[:count]
    for color in colors:  # the legend
        assert (sheet == color).all(axis=-1).sum() >= sheets.MARGIN**2


@pytest.mark.parametrize("count", [1, 9])
def test_other_numbers_of_channels_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f"shows 2 to 8 channels, got {count}"):
        contact_sheet(make_cells(tuple("abcdefghi"[:count])), tmp_path / "sheet.png")


def test_an_empty_data_set_and_no_columns_are_refused(cells, tmp_path):
    with pytest.raises(ValueError, match="the data set is empty"):
        contact_sheet(cells["train"].select([]), tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="cells_per_row must be at least 1, got 0"):
        contact_sheet(cells, tmp_path / "sheet.png", cells_per_row=0)


def test_only_the_cells_that_are_shown_are_decoded(folder, tmp_path, monkeypatch):
    read = []
    original = sheets._read_crops
    monkeypatch.setattr(sheets, "_read_crops", lambda cells: read.append(len(cells)) or original(cells))
    contact_sheet(folder, tmp_path / "sheet.png", cells_per_row=2)
    assert read == [2, 1, 2, 2]


def test_three_channels_are_blue_green_and_red():
    crop = np.random.default_rng(0).integers(0, 256, (3, 5, 5)).astype(np.uint8)
    np.testing.assert_array_equal(composite(crop, BLUE_GREEN_RED), crop[::-1].transpose(1, 2, 0))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_more_light_is_never_darker(count, seed):
    random = np.random.default_rng(seed)
    dim = random.integers(0, 200, (count, 3, 3)).astype(np.uint8)
    bright = dim + random.integers(0, 56, dim.shape).astype(np.uint8)
    assert (composite(bright, PALETTE[:count]) >= composite(dim, PALETTE[:count])).all()


def test_real_cells_have_a_sheet(bbbc021_dir, tmp_path):
    with np.load(bbbc021_dir / "Week4_27481.npz", allow_pickle=False) as archive:
        images = np.ascontiguousarray((archive["image"][:8] // 16).astype(np.uint8).transpose(0, 3, 1, 2))
    cells = make_cells(cells={("train", "p", "DMSO", "DMSO", 0.0): 8})["train"].remove_columns("image")
    features = cell_features(("dna", "tubulin", "actin"), images.shape[-1])
    cells = datasets.Dataset.from_dict({**cells.to_dict(), "image": list(images)}, features=features)
    sheet = sheet_of(cells, tmp_path)
    assert sheet[..., 2].max() > 60  # nuclei are blue
