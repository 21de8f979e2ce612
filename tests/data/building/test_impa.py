"""The crops of IMPA and CellFlux, in an invented folder of their layout: each row's metadata belongs to its crop."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from synthetic_plate import published_rows, write_tables

from cellfluxrl.data.building.bbbc021_index import read_index
from cellfluxrl.data.building.build import build_dataset
from cellfluxrl.data.building.sources import impa
from cellfluxrl.data.building.sources.impa import COLUMNS, ImpaCrops
from cellfluxrl.data.cells import PlateLog
from cellfluxrl.data.compounds import known_compounds

PLATES = ("Week4_27821", "Week4_27801")
CELLS_PER_IMAGE = 2
# Of `published_rows`: two wells each, four images a well, numbered from 1.
CONDITIONS = (("DMSO", 0.0), ("taxol", 0.3), ("AZ841", 1.0))
MOA = {"taxol": "Microtubule stabilizers", "AZ841": "Aurora kinase inhibitors"}


def colour_of(number: int) -> tuple[int, int, int]:
    """Constants of a crop's actin, tubulin and DNA channel, as they are stored."""
    return number % 100, 100 + number % 100, 200 + number // 100


def index_rows() -> list[dict[str, str]]:
    """Every crop of both plates, as IMPA's table has them."""
    rows = []
    smiles = known_compounds()["smiles"]
    for plate in PLATES:
        for image in range(24):
            compound, dose = CONDITIONS[image // 8]
            for cell in range(1, CELLS_PER_IMAGE + 1):
                values = (f"{plate}_4_{image + 1}_{cell}.0", plate, compound, smiles[compound], str(dose))
                values += (MOA.get(compound, "DMSO"), "control" if compound == "DMSO" else "trt")
                split = "test" if cell == 1 else "train"
                rows.append(dict(zip(COLUMNS, (*values, split), strict=True)))
    return rows


def crop_path(folder: Path, row: dict[str, str]) -> Path:
    week, plate, rest = row["SAMPLE_KEY"].split("_", 2)
    return folder / week / plate / f"{rest}.npy"


def write_index(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "index.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def crops(tmp_path) -> Path:
    """A folder in IMPA's layout, with the index in it; crop i of the index has `colour_of(i)`."""
    for number, row in enumerate(index_rows()):
        path = crop_path(tmp_path, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((96, 96, 3), colour_of(number), np.uint8))
    write_index(tmp_path, index_rows())
    return tmp_path


@pytest.fixture
def with_wells(crops) -> pd.DataFrame:
    """Put the image set's own tables beside the crops; gives their rows."""
    rows = pd.concat([published_rows(plate, CONDITIONS, seed=i) for i, plate in enumerate(PLATES)])
    rows["ImageNumber"] += np.where(rows["Image_Metadata_Plate_DAPI"] == PLATES[1], 1000, 0)
    write_tables(crops, rows)
    renumbered = []
    for row in index_rows():
        week, plate, table, image, cell = row["SAMPLE_KEY"].split("_")
        image = str(int(image) + (1000 if f"{week}_{plate}" == PLATES[1] else 0))
        new = row | {"SAMPLE_KEY": "_".join((week, plate, table, image, cell))}
        crop_path(crops, row).rename(crops / f"{new['SAMPLE_KEY']}.moved")
        renumbered.append(new)
    for row in renumbered:
        (crops / f"{row['SAMPLE_KEY']}.moved").rename(crop_path(crops, row))
    write_index(crops, renumbered)
    return rows


def open_crops(folder: Path, rows: list[dict[str, str]] | None = None, **settings) -> ImpaCrops:
    if rows is not None:
        write_index(folder, rows)
    return ImpaCrops(folder, folder / "index.csv", **settings)


def read(source: ImpaCrops, plate: str) -> tuple[np.ndarray, pd.DataFrame, PlateLog]:
    log = PlateLog()
    parts = list(source.read(plate, log, Path("unused")))
    return (
        np.concatenate([cells.images for cells in parts]),
        pd.concat([cells.rows for cells in parts], ignore_index=True),
        log,
    )


def check_rows(images: np.ndarray, rows: pd.DataFrame, plate: str) -> None:
    """Each crop shows, by its colour, the line of the index whose metadata its row has."""
    index = index_rows()
    for image, row in zip(images, rows.to_dict("records"), strict=True):
        dna, tubulin, actin = (int(np.unique(channel).item()) for channel in image)
        number = actin + 100 * (dna - 200)
        assert tubulin == 100 + actin
        published = index[number]
        week, number_of_plate, _, _, cell = published["SAMPLE_KEY"].split("_")
        assert row["plate"] == f"{week}_{number_of_plate}" == plate
        assert row["cell_id"] == float(cell)
        assert (row["compound"], row["smiles"]) == (published["CPD_NAME"], published["SMILES"])
        assert (row["concentration"], row["moa"]) == (float(published["DOSE"]), published["ANNOT"])
        assert row["is_control"] == (published["STATE"] == "control")
        assert row["split"] == published["SPLIT"]


# --- every row belongs to its crop, and every channel is what it is called ---


@pytest.mark.parametrize("cells_per_chunk", [512, 5])
def test_every_row_is_that_of_its_crop(crops, monkeypatch, cells_per_chunk):
    monkeypatch.setattr(impa, "CELLS_PER_CHUNK", cells_per_chunk)
    source = open_crops(crops, list(np.random.default_rng(0).permutation(index_rows())))
    assert source.channel_names == ("dna", "tubulin", "actin")
    for plate in PLATES:
        images, rows, log = read(source, plate)
        assert images.shape == (48, 3, 96, 96)
        assert images.dtype == np.uint8
        assert (log.fields, log.cells, log.problems) == (24, 48, [])
        check_rows(images, rows, plate)
        # Nothing is known of the well; the image's own number tells the field.
        assert set(rows["well"]) == {""}
        assert set(rows["field"]) == {f"4_{i}" for i in range(1, 25)}
        assert rows[["x", "y"]].isna().all(axis=None)


def test_stored_channels_are_actin_tubulin_dna(crops):
    images, rows, _ = read(open_crops(crops), PLATES[0])
    first = rows.index[(rows["field"] == "4_1") & (rows["cell_id"] == 1)][0]
    stored = np.load(crops / "Week4/27821/4_1_1.0.npy")
    assert stored[0, 0].tolist() == [0, 100, 200]
    assert images[first, :, 0, 0].tolist() == [200, 100, 0]


def test_a_crop_is_not_turned_or_mirrored(crops):
    rows = index_rows()
    crop = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    np.save(crop_path(crops, rows[0]), crop)
    images, _, _ = read(open_crops(crops), PLATES[0])
    np.testing.assert_array_equal(images[0], np.stack([crop[..., 2], crop[..., 1], crop[..., 0]]))


def test_arrays_in_fortran_order_are_the_same(crops):
    crop = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    np.save(crop_path(crops, index_rows()[0]), np.asfortranarray(crop))
    images, _, _ = read(open_crops(crops), PLATES[0])
    np.testing.assert_array_equal(images[0], crop[..., ::-1].transpose(2, 0, 1))


def test_a_built_data_set_is_loaded_as_it_was_read(crops, tmp_path):
    source = open_crops(crops)
    build_dataset(source, "impa", tmp_path / "out", split="published")
    built = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: set(rows["cell_id"]) for split, rows in built.items()} == {"train": {2}, "test": {1}}
    images, rows, _ = read(source, PLATES[0])
    expected = rows[rows["split"] == "train"]
    train = built["train"].filter(lambda plate: plate == PLATES[0], input_columns="plate")
    for column in ("compound", "field", "cell_id", "moa", "is_control"):
        assert train[column] == expected[column].tolist()
    pictures = np.stack([np.asarray(image)[..., ::-1].transpose(2, 0, 1) for image in train["image"]])
    np.testing.assert_array_equal(pictures, images[expected.index])


# --- the ways the index is written ---


def test_both_spellings_of_state_are_the_same(crops):
    expected = open_crops(crops).cells
    for spelling in ({"control": "0", "trt": "1"}, {"control": "0.0", "trt": "1.0"}):
        rows = [row | {"STATE": spelling[row["STATE"]]} for row in index_rows()]
        pd.testing.assert_frame_equal(open_crops(crops, rows).cells, expected)


@pytest.mark.parametrize("dose", ["", "0", "0.0", "nan"])
@pytest.mark.parametrize("smiles", ["", "nan", "CS(=O)C"])
def test_controls_are_dmso_without_a_dose_whatever_is_written_for_them(crops, dose, smiles):
    expected = open_crops(crops).cells
    rows = [
        row | ({"DOSE": dose, "SMILES": smiles, "ANNOT": ""} if row["CPD_NAME"] == "DMSO" else {})
        for row in index_rows()
    ]
    pd.testing.assert_frame_equal(open_crops(crops, rows).cells, expected)
    controls = expected[expected["is_control"]]
    assert set(zip(controls["smiles"], controls["concentration"], controls["moa"], strict=True)) == {
        ("CS(C)=O", 0.0, "DMSO")
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row | {"BATCH": row["BATCH"].split("_")[1]},
        lambda row: row | {"BATCH": row["BATCH"].split("_")[0], "PLATE": row["BATCH"].split("_")[1]},
        lambda row: {"": "7", **row, "note": " any\ttext "},
        lambda row: {key: row[key] for key in reversed(row)},
        lambda row: row | {"SMILES": ""},
    ],
    ids=["BATCH is the plate's number", "BATCH is the week", "further columns", "other order", "no structures"],
)
def test_other_ways_of_writing_the_index_are_the_same(crops, change):
    expected = open_crops(crops).cells
    pd.testing.assert_frame_equal(open_crops(crops, [change(row) for row in index_rows()]).cells, expected)


def test_chosen_plates(crops):
    assert set(open_crops(crops, plates=[PLATES[1]]).fields["plate"]) == {PLATES[1]}
    with pytest.raises(ValueError, match=r"unknown plate .*'Week4_27822'; did you mean 'Week4_27821'\?"):
        open_crops(crops, plates=["Week4_27822"])


# --- splits ---


def splits_of(folder: Path, cache: Path) -> pd.DataFrame:
    built = load_dataset(str(folder), cache_dir=str(cache))
    return pd.concat([rows.remove_columns("image").to_pandas() for rows in built.values()])


@pytest.mark.parametrize("scheme", ["plate", "cellflux", "leave_one_compound_out", "leave_one_batch_out"])
@pytest.mark.parametrize("joined", [False, True])
def test_other_splits_keep_each_field_in_one(crops, tmp_path, request, scheme, joined):
    if joined:
        request.getfixturevalue("with_wells")
    held_out = {"leave_one_compound_out": ["taxol"], "leave_one_batch_out": ["Week4"]}.get(scheme, [])
    if scheme == "leave_one_batch_out":
        with pytest.raises(ValueError, match="no treated cell is in the train split"):
            build_dataset(open_crops(crops), "impa", tmp_path / "out", scheme, held_out)
        return
    build_dataset(open_crops(crops), "impa", tmp_path / "out", scheme, held_out)
    rows = splits_of(tmp_path / "out", tmp_path / "cache")
    assert len(rows) == 96
    place = ["plate", "well", "field"] if joined else ["plate", "field"]
    assert (rows.groupby(place)["split"].nunique() == 1).all()
    if joined:
        assert (rows.groupby(["plate", "well"])["split"].nunique() == 1).all()
    treated = rows[~rows["is_control"]]
    in_test = {
        "plate": treated["plate"] == PLATES[0],
        "cellflux": treated["compound"] == "AZ841",
        "leave_one_compound_out": treated["compound"] == "taxol",
    }[scheme]
    assert ((treated["split"] == "test") == in_test).all()
    with_controls = rows[rows["is_control"]].groupby(["plate", "split"]).size()
    assert set(with_controls.index) == set(treated.groupby(["plate", "split"]).size().index)


# --- joined with the image set's own tables ---


def test_wells_come_from_the_image_set_s_tables(crops, with_wells):
    published = with_wells.set_index("ImageNumber")
    for plate, offset in ((PLATES[0], 0), (PLATES[1], 1000)):
        images, rows, log = read(open_crops(crops), plate)
        check_rows(images, rows, plate)
        assert log.problems == []
        for image, row in zip(images, rows.to_dict("records"), strict=True):
            number = int(image[2, 0, 0]) + 100 * (int(image[0, 0, 0]) - 200)
            truth = published.loc[offset + (number % 48) // CELLS_PER_IMAGE + 1]
            assert row["field"] == Path(truth["Image_FileName_DAPI"]).stem
            assert row["well"] == truth["Image_Metadata_Well_DAPI"]
            assert f"_s{row['site']}_" in truth["Image_FileName_DAPI"]
            assert row["replicate"] == truth["Replicate"]


def test_crops_that_contradict_the_image_set_are_refused(crops, with_wells):
    with (crops / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    changes = {
        r"line 18: key 'Week4_27821_4_999_1.0': BBBC021_v1_image\.csv has no such": {
            "SAMPLE_KEY": "Week4_27821_4_999_1.0"
        },
        r"line 18: concentration '0\.2': BBBC021_v1_image\.csv has .*0\.3": {"DOSE": "0.2"},
        r"line 18: compound 'emetine': BBBC021_v1_image\.csv has 'taxol'": {"CPD_NAME": "emetine", "SMILES": ""},
        r"line 18: plate 'Week4_27801': BBBC021_v1_image\.csv has 'Week4_27821'": {
            "SAMPLE_KEY": "Week4_27801_4_9_1.0",
            "BATCH": "Week4_27801",
        },
    }
    for message, change in changes.items():
        both = [i for i, row in enumerate(rows) if row["SAMPLE_KEY"].startswith("Week4_27821_4_9_")]
        assert both == [16, 17]
        changed = [row | change if i == 16 else row for i, row in enumerate(rows) if i != 17]
        with pytest.raises(ValueError, match=message):
            open_crops(crops, changed)


def test_the_real_tables_give_each_crop_its_well(bbbc021_dir, tmp_path):
    for name in ("BBBC021_v1_image.csv.gz", "BBBC021_v1_moa.csv"):
        (tmp_path / name).symlink_to((bbbc021_dir / name).resolve())
    index = read_index(bbbc021_dir)
    chosen = index[index["compound"].isin(["DMSO", "taxol", "nocodazole"])].sample(200, random_state=0)
    chosen = pd.concat([chosen, index[index["plate"] == "Week10_40111"].head(3)]).drop_duplicates("field")
    rows = []
    for field in chosen.to_dict("records"):
        key = f"{field['plate']}_{field['table_number']}_{field['image_number']}_3.0"
        state = "0" if field["is_control"] else "1"
        values = (key, field["plate"], field["compound"], field["smiles"], str(field["concentration"]), field["moa"])
        rows.append(dict(zip(COLUMNS, (*values, state, "train"), strict=True)))
    cells = open_crops(tmp_path, rows).cells.set_index("field")
    truth = chosen.set_index("field").loc[cells.index]
    for column in ("plate", "batch", "well", "site", "replicate", "compound", "concentration", "is_control"):
        assert cells[column].tolist() == truth[column].tolist(), column


# --- crops that cannot be used ---


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**45, 96, 3)})
        file.write(b"\0" * 100)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((96, 96, 3), np.uint8))


DAMAGES = {
    "missing": (Path.unlink, "No such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:9000]), ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "text": (lambda path: path.write_text("x" * 500), ""),
    "channels first": (lambda path: np.save(path, np.zeros((3, 96, 96), np.uint8)), r"shape (3, 96, 96)"),
    "another size": (lambda path: np.save(path, np.zeros((64, 64, 3), np.uint8)), r"shape (64, 64, 3)"),
    "two channels": (lambda path: np.save(path, np.zeros((96, 96, 2), np.uint8)), r"shape (96, 96, 2)"),
    "float": (lambda path: np.save(path, np.zeros((96, 96, 3), np.float32)), "float32"),
    "signed": (lambda path: np.save(path, np.zeros((96, 96, 3), np.int8)), "int8"),
    "claims to be huge": (_huge, ""),
    "archive": (_archive, "several arrays"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_crop_is_skipped_counted_and_named(crops, tmp_path, damage):
    spoil, reason = DAMAGES[damage]
    bad = index_rows()[20]
    spoil(crop_path(crops, bad))
    report = build_dataset(open_crops(crops), "impa", tmp_path / "out")
    assert report == json.loads((tmp_path / "out/build_report.json").read_text())
    entry = report["plates"][PLATES[0]]
    (problem,) = entry["problems"]
    assert problem["field"] == bad["SAMPLE_KEY"]
    assert reason in problem["reason"]
    assert "Week4/27821/4_11_1.0.npy" in problem["reason"]
    assert entry["cells"] == 47
    source = open_crops(crops)
    images, rows, _ = read(source, PLATES[0])
    check_rows(images, rows, PLATES[0])


def test_pickles_are_not_loaded(crops, tmp_path):
    trap = tmp_path / "sprung"
    np.save(crop_path(crops, index_rows()[0]), np.array(Trap(trap), dtype=object), allow_pickle=True)
    crop_path(crops, index_rows()[1]).write_bytes(b"\x80\x04" + b"N." * 50)
    *_, log = read(open_crops(crops), PLATES[0])
    assert [problem["field"] for problem in log.problems] == [row["SAMPLE_KEY"] for row in index_rows()[:2]]
    assert not trap.exists()


def test_damaged_crops_never_stop_a_build(crops):
    """Whatever bytes a file has, it is the crop that was saved, or is skipped and named."""
    random = np.random.default_rng(0)
    path = crop_path(crops, index_rows()[0])
    right = path.read_bytes()
    source = open_crops(crops)
    source.cells = source.cells[source.cells["key"] == index_rows()[0]["SAMPLE_KEY"]]
    named = 0
    for _ in range(200):
        raw = bytearray(right)
        for _ in range(random.integers(1, 4)):
            raw[random.integers(128)] = random.integers(256)  # the header
        path.write_bytes(bytes(raw[: random.integers(len(raw) - 100, len(raw) + 100)]))
        log = PlateLog()
        kept = list(source.read(PLATES[0], log, Path("unused")))
        assert len(kept) + len(log.problems) == 1
        for cells in kept:
            assert cells.images[0, :, 0, 0].tolist() == [200, 100, 0]
        named += len(log.problems)
    assert named > 50


# --- indexes that cannot be used ---


def put(**changes: str):
    """Change cells of the first taxol crop, in line 18."""
    return lambda rows: [row | changes if i == 16 else row for i, row in enumerate(rows)]


INDEXES = [
    (lambda rows: [{k: v for k, v in row.items() if k != "SPLIT"} for row in rows], r"\['SPLIT'\] are missing"),
    (put(SAMPLE_KEY="Week4_27821_4_9"), r"line 18: SAMPLE_KEY 'Week4_27821_4_9': not like"),
    (put(SAMPLE_KEY="../27821_4_9_1.0"), r"line 18: SAMPLE_KEY '\.\./27821_4_9_1\.0': not like"),
    (put(SAMPLE_KEY="Week4_.._4_9_1.0"), "line 18: SAMPLE_KEY .*: not like"),
    (put(SAMPLE_KEY="Week4_27821_4_9_1/../../x.0"), "line 18: SAMPLE_KEY .*: not like"),
    (put(SAMPLE_KEY="/etc_27821_4_9_1.0"), "line 18: SAMPLE_KEY .*: not like"),
    (put(SAMPLE_KEY="Week4_27821_4_9_1.5"), "line 18: SAMPLE_KEY .*: not like"),
    (put(SAMPLE_KEY="Week4_27821_4_9_1.0\n"), "line 18: SAMPLE_KEY .*: has white space"),
    (put(SAMPLE_KEY="Week4_27821_4_9_\u0661.0"), "line 18: SAMPLE_KEY .*: not like"),
    (put(SAMPLE_KEY="Week4_27821_4_9_2.0"), r"line 19: plate 'Week4_27821', .*cell_id '2': .*second time.* line 18"),
    (put(SAMPLE_KEY="Week4_27821_4_9_2"), "line 19: .* there a second time, first in line 18"),
    (put(SAMPLE_KEY="Week4_27801_4_9_7.0"), r"line 18: BATCH 'Week4_27821': not the plate of the SAMPLE_KEY"),
    (put(BATCH="Week5_27821"), "line 18: BATCH 'Week5_27821': not the plate"),
    (put(STATE="treated"), r"unknown STATE in .*line 18: 'treated'; did you mean 'trt'\?"),
    (put(STATE="2"), "unknown STATE in .*line 18: '2'"),
    (put(STATE=""), "unknown STATE in .*line 18: ''"),
    (put(STATE="control"), "line 18: STATE 'control': contradicts CPD_NAME"),
    (put(STATE="0"), "line 18: STATE '0': contradicts CPD_NAME"),
    (put(CPD_NAME="DMSO"), "line 18: STATE 'trt': contradicts CPD_NAME"),
    (put(CPD_NAME=""), "line 18: CPD_NAME '': must not be empty"),
    (put(CPD_NAME="emetine", SMILES=""), r"line 19: compound 'taxol': but 'emetine' in the first line with plate"),
    (put(SMILES="nan"), "line 18: SMILES: .*'nan'"),
    (put(SMILES="CCO"), r"line 19: SMILES '.*': but 'CCO' in the first line with CPD_NAME 'taxol'"),
    (put(DOSE=""), "line 18: DOSE '': not a number"),
    (put(DOSE="-1"), "line 18: DOSE '-1': not a number"),
    (put(DOSE="3"), r"line 19: concentration '0\.3': but '3\.0' in the first line"),
    (put(ANNOT="DMSO"), "line 18: ANNOT 'DMSO': the mechanism of controls"),
    (put(ANNOT="Epithelial"), "line 19: moa 'Microtubule stabilizers': but 'Epithelial' in the first line"),
    (put(SPLIT="training"), "unknown SPLIT in .*line 18: 'training'; .*train"),
]


@pytest.mark.parametrize(("change", "message"), INDEXES)
def test_an_index_that_cannot_be_used_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        open_crops(tmp_path, change(index_rows()))
    assert "index.csv" in str(error.value)


def test_a_missing_folder_or_index_is_named(crops, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir '.*nowhere' is not a folder"):
        ImpaCrops(tmp_path / "nowhere", crops / "index.csv")
    with pytest.raises(FileNotFoundError, match=r"no file '.*other\.csv'"):
        ImpaCrops(crops, crops / "other.csv")


def test_any_damaged_cell_is_refused_or_changes_nothing_else(tmp_path):
    header, *body = [list(COLUMNS), *(list(row.values()) for row in index_rows())]
    right = open_crops(tmp_path, index_rows()).cells.set_index("key")
    random = np.random.default_rng(0)
    values = [
        "",
        "nan",
        "-1",
        "DMSO",
        "taxol",
        "control",
        "trt",
        "0",
        "1",
        "../x",
        "a\nb",
        "Week4_27821_4_9_1.0",
        "\0",
    ]
    refused = 0
    for _ in range(60):
        row, column = random.integers(len(body)), random.integers(len(header))
        changed = [list(cells) for cells in body]
        changed[row][column] = values[random.integers(len(values))]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *changed])
        (tmp_path / "index.csv").write_text(text.getvalue(), newline="")
        try:
            cells = open_crops(tmp_path).cells.set_index("key")
        except ValueError as error:
            assert "index.csv" in str(error)  # noqa: PT017
            refused += 1
            continue
        # What is left are other ways of writing the same.
        pd.testing.assert_frame_equal(cells, right)
    assert refused > 30
