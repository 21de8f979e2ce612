"""Anybody's plates: each row's metadata belongs to its picture, and whatever is wrong with a table is named."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from datasets import load_dataset
from PIL import Image

from cellfluxrl import BBBC021
from cellfluxrl.data.building.build import BuildError, build_dataset
from cellfluxrl.data.building.sources.folder import PlateFolder
from cellfluxrl.data.cells import PlateLog
from cellfluxrl.data.compounds import known_compounds
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.data.splits import resplit

SHAPE = (120, 150)
RADIUS, DIAMETER, CROP = 6, 12, 32
CHANNELS = ("dna", "er", "rna")
WELLS = {"B02": ("DMSO", "0"), "B03": ("taxol", "0.3"), "B04": ("emetine", "3"), "B05": ("DMSO", "0")}
HEADER = ["plate", "well", "site", "compound", "concentration", *(f"image_{name}" for name in CHANNELS)]


def places_of(number: int) -> np.ndarray:
    """Where the nuclei of a field are, (row, column): a grid shifted by the field's number."""
    shift = np.array([number % 4, number % 7])
    return np.array([(30, 30), (30, 75), (75, 30), (75, 75), (75, 118)]) + shift


def marker_of(number: int) -> int:
    """Brightness of a field's other channels, by which its crops are told apart."""
    return 2000 + 500 * number


def render(number: int, channels: int = 3) -> list[np.ndarray]:
    """A field of view: discs in the first channel, constants in the others."""
    rows, columns = np.indices(SHAPE)
    dna = np.full(SHAPE, 100, np.uint16)
    for row, column in places_of(number):
        dna[(rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2] = 3000
    return [dna, *(np.full(SHAPE, c * marker_of(number), np.uint16) for c in range(1, channels))]


def table_rows(plates: tuple[str, ...] = ("P_1", "P_2"), sites: int = 2) -> list[dict[str, str]]:
    rows = []
    for plate in plates:
        for well, (compound, concentration) in WELLS.items():
            for site in range(1, sites + 1):
                row = dict(zip(HEADER, (plate, well, str(site), compound, concentration), strict=False))
                rows.append(row | {f"image_{c}": f"images/{plate}_{well}_s{site}_{c}.tif" for c in CHANNELS})
    return rows


def write_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "plates.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def plates(tmp_path) -> Path:
    """Two plates on disk, one number a field in the order of the table; gives the folder of the table."""
    (tmp_path / "images").mkdir()
    for number, row in enumerate(table_rows()):
        for name, image in zip(CHANNELS, render(number), strict=True):
            tifffile.imwrite(tmp_path / row[f"image_{name}"], image)
    write_table(tmp_path, table_rows())
    return tmp_path


def open_folder(folder: Path, rows: list[dict[str, str]] | None = None, **settings) -> PlateFolder:
    if rows is not None:
        write_table(folder, rows)
    return PlateFolder(folder / "plates.csv", **{"nucleus_diameter": DIAMETER, "crop_size": CROP, **settings})


def cut(source: PlateFolder, plate: str, scratch: Path) -> tuple[np.ndarray, pd.DataFrame, PlateLog]:
    log = PlateLog()
    scratch.mkdir()
    parts = list(source.read(plate, log, scratch))
    images = np.concatenate([cells.images for cells in parts])
    return images, pd.concat([cells.rows for cells in parts], ignore_index=True), log


# --- every row belongs to its picture ---


def test_every_row_is_that_of_its_picture(plates, tmp_path):
    number_of = {(r["plate"], r["well"], r["site"]): i for i, r in enumerate(table_rows())}
    rows_in_other_order = list(np.random.default_rng(0).permutation(table_rows()))
    source = open_folder(plates, rows_in_other_order)
    assert source.channel_names == CHANNELS
    for plate in ("P_1", "P_2"):
        images, rows, log = cut(source, plate, tmp_path / plate)
        assert (log.fields, log.cells, log.problems) == (8, 40, [])
        assert len(rows) == len(images) == 40
        brightness = {}
        for image, row in zip(images, rows.to_dict("records"), strict=True):
            assert (row["compound"], str(row["concentration"]).removesuffix(".0")) == WELLS[row["well"]]
            assert row["is_control"] == (row["compound"] == "DMSO")
            assert row["plate"] == plate
            number = number_of[plate, row["well"], str(row["site"])]
            assert row["field"] == f"{row['well']}_s{row['site']}"
            distance = np.linalg.norm(places_of(number) - (row["y"], row["x"]), axis=1)
            assert distance.min() < 1
            assert image[0, CROP // 2, CROP // 2] == 255
            assert image[0, 0, 0] == 0
            (brightness[number],) = np.unique(image[1])
            assert np.unique(image[2]).size == 1
        # The fields keep the order of their markers through the stretch of the plate, so none was taken for another.
        levels = [brightness[number] for number in sorted(brightness)]
        assert len(levels) == 8
        assert (np.diff(np.array(levels, int)) > 0).all()
        assert rows.groupby("field")["cell_id"].apply(list).map(sorted).map(lambda ids: ids == [0, 1, 2, 3, 4]).all()


def test_a_built_data_set_is_loaded_as_it_was_cut(plates, tmp_path):
    source = open_folder(plates)
    report = build_dataset(source, "folder", tmp_path / "out")
    assert report["complete"]
    built = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: set(rows["plate"]) for split, rows in built.items()} == {"train": {"P_1"}, "test": {"P_2"}}
    assert channel_names_of(built["train"]) == CHANNELS
    images, rows, _ = cut(source, "P_1", tmp_path / "scratch")
    for column in rows.columns:
        expected = rows[column].astype(np.float32) if column in ("x", "y", "concentration") else rows[column]
        assert built["train"][column] == expected.tolist()
    pictures = np.stack([np.asarray(image)[..., ::-1].transpose(2, 0, 1) for image in built["train"]["image"]])
    np.testing.assert_array_equal(pictures, images)


@pytest.mark.slow
def test_processes_and_the_builder_give_the_same(plates, tmp_path):
    source = open_folder(plates)
    one, two = (build_dataset(source, "folder", tmp_path / str(n), num_proc=n) for n in (1, 2))
    assert one == two
    tables = [pd.read_parquet(tmp_path / str(n) / "data/train/P_1-00000.parquet") for n in (1, 2)]
    pd.testing.assert_frame_equal(*tables)
    builder = BBBC021(
        config_name="folder",
        table=str(plates / "plates.csv"),
        settings={"nucleus_diameter": DIAMETER, "crop_size": CROP},
        cache_dir=str(tmp_path / "cache"),
    )
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert rows["well"] == tables[0]["well"].tolist()
    assert rows["compound"] == tables[0]["compound"].tolist()


def test_a_table_that_changed_does_not_go_on_with_the_old_build(plates, tmp_path):
    build_dataset(open_folder(plates), "folder", tmp_path / "out")
    rows = table_rows()
    for row in rows:
        row["concentration"] = row["concentration"].replace("0.3", "0.6")
    with pytest.raises(ValueError, match="was built with settings"):
        build_dataset(open_folder(plates, rows), "folder", tmp_path / "out")


@pytest.mark.parametrize("count", [2, 5, 8])
def test_two_to_eight_channels_of_one_file_with_pages(tmp_path, count):
    names = ["dna", *(f"channel-{c}" for c in range(1, count))]
    rows = []
    for number, (well, (compound, concentration)) in enumerate(WELLS.items()):
        stack = np.stack(render(number, count))
        tifffile.imwrite(tmp_path / f"{well}.ome.tif", stack, metadata={"axes": "CYX"})
        row = dict(zip(HEADER, ("P1", well, "1", compound, concentration), strict=False))
        # The last channel comes first in the table, and stays there.
        rows.append(row | {f"image_{names[c]}": f"{well}.ome.tif#{c}" for c in reversed(range(count))})
    source = open_folder(tmp_path, rows)
    assert source.channel_names == tuple(reversed(names))
    images, _, log = cut(source, "P1", tmp_path / "scratch")
    assert images.shape == (20, count, CROP, CROP)
    assert (log.fields, log.problems) == (4, [])
    assert (images[:, -1, CROP // 2, CROP // 2] == 255).all()  # the nucleus is in the last one now
    build_dataset(source, "folder", tmp_path / "out")
    built = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert channel_names_of(built) == source.channel_names
    kept = built.with_format("numpy")["image"]
    kept = kept[:] if count != 3 else [np.asarray(i)[..., ::-1].transpose(2, 0, 1) for i in kept]
    np.testing.assert_array_equal(np.asarray(kept), images)


def save_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path, "png")


@pytest.mark.parametrize(
    ("save", "suffix", "depth"),
    [
        (tifffile.imwrite, ".tif", np.uint8),
        (tifffile.imwrite, ".ome.tiff", np.uint16),
        (save_png, ".png", np.uint8),
        (save_png, ".png", np.uint16),
    ],
)
def test_every_kind_of_file_gives_the_same_crops(plates, tmp_path, save, suffix, depth):
    rows = [row for row in table_rows() if row["plate"] == "P_1"]
    expected, *_ = cut(open_folder(plates, rows), "P_1", tmp_path / "expected")
    for number, row in enumerate(rows):
        for name, image in zip(CHANNELS, render(number), strict=True):
            row[f"image_{name}"] = f"{number}_{name}{suffix}"
            image = image if depth == np.uint16 else (image // 64).astype(np.uint8)
            save(tmp_path / row[f"image_{name}"], image)
    images, table, log = cut(open_folder(plates, rows), "P_1", tmp_path / "scratch")
    assert log.problems == []
    tolerance = 0 if depth == np.uint16 else 12  # 255 levels of which few are used
    assert np.abs(images.astype(int) - expected).max() <= tolerance
    assert len(table) == 40


def test_paths_may_be_absolute_or_lead_up(plates, tmp_path):
    (plates / "tables").mkdir()
    rows = table_rows()
    for row in rows:
        row["image_dna"] = str(plates / row["image_dna"])
        row["image_er"], row["image_rna"] = f"../{row['image_er']}", f"../tables/../{row['image_rna']}"
    *_, log = cut(open_folder(plates / "tables", rows), "P_1", tmp_path / "scratch")
    assert (log.fields, log.problems) == (8, [])


# --- what may be left out, and what is filled in ---


def test_what_the_table_leaves_out(plates):
    fields = open_folder(plates).fields
    assert set(fields["batch"]) == {"P"}
    assert set(fields["replicate"]) == {1}
    known = known_compounds()["smiles"]
    assert fields.set_index("compound")["smiles"].to_dict() == known[["DMSO", "taxol", "emetine"]].to_dict()
    # The mechanism depends on the dose, and is not guessed from the name.
    assert set(zip(fields["compound"], fields["moa"], strict=True)) == {
        ("DMSO", "DMSO"),
        ("taxol", ""),
        ("emetine", ""),
    }


def test_what_the_table_says_is_kept(plates):
    rows = table_rows()
    for row in rows:
        control = row["compound"] == "DMSO"
        row |= {"compound": "water" if control else row["compound"], "concentration": "" if control else "2"}
        row |= {"smiles": "O" if control else "CCO", "moa": "" if control else "sleep"}
        row |= {"replicate": "1.0" if row["plate"] == "P_1" else "2", "batch": "all", "site": f"{row['site']}.0"}
    fields = open_folder(plates, rows, control="water").fields
    assert set(zip(fields["compound"], fields["smiles"], fields["moa"], fields["concentration"], strict=True)) == {
        ("water", "O", "DMSO", 0),
        ("taxol", "CCO", "sleep", 2),
        ("emetine", "CCO", "sleep", 2),
    }
    assert fields["is_control"].tolist() == (fields["compound"] == "water").tolist()
    assert fields.groupby("plate")["replicate"].unique().map(list).to_dict() == {"P_1": [1], "P_2": [2]}
    assert set(fields["batch"]) == {"all"}
    assert set(fields["site"]) == {1, 2}


def test_the_table_s_own_split_is_used_when_asked_for(plates, tmp_path):
    rows = table_rows()
    for row in rows:
        row["split"] = "val" if row["well"] in ("B04", "B05") else "train"
    build_dataset(open_folder(plates, rows), "folder", tmp_path / "out", split="published")
    built = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    wells = {split: set(rows["well"]) for split, rows in built.items()}
    assert wells == {"train": {"B02", "B03"}, "test": {"B04", "B05"}}
    # The same wells are parted anew without the images being cut again.
    anew = resplit(built, "leave_one_compound_out", ["taxol"])
    assert set(anew["test"]["compound"]) == {"taxol", "DMSO"}


def test_chosen_plates(plates):
    assert set(open_folder(plates, plates=["P_2"]).fields["plate"]) == {"P_2"}
    with pytest.raises(ValueError, match=r"unknown plate .*'P_3'; did you mean 'P_[12]'\?"):
        open_folder(plates, plates=["P_3"])


# --- fields that cannot be used ---


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


DAMAGES = {
    "missing": (Path.unlink, "No such file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "directory"),
    "truncated": (_cut_short, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "neither TIFF nor PNG"),
    "text": (lambda path: path.write_text("Hello"), "neither TIFF nor PNG"),
    "another size": (lambda path: tifffile.imwrite(path, render(0)[0][:-1]), "differ in size"),
    "another depth": (lambda path: tifffile.imwrite(path, render(0)[0].astype(np.uint8)), "differ in size or depth"),
    "float": (lambda path: tifffile.imwrite(path, render(0)[0].astype(np.float32)), "float32"),
    "RGB": (lambda path: save_png(path, np.zeros((*SHAPE, 3), np.uint8)), "RGB"),
    "pages": (lambda path: tifffile.imwrite(path, np.stack(render(0)), photometric="minisblack"), "3 pages"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_image_costs_its_field_alone_and_is_named(plates, tmp_path, damage):
    spoil, reason = DAMAGES[damage]
    bad = next(row for row in table_rows() if (row["plate"], row["well"], row["site"]) == ("P_1", "B03", "2"))
    spoil(plates / bad["image_er"])
    report = build_dataset(open_folder(plates), "folder", tmp_path / "out")
    assert report == json.loads((tmp_path / "out/build_report.json").read_text())
    entry = report["plates"]["P_1"]
    (problem,) = entry["problems"]
    assert problem["field"] == "B03_s2"
    assert reason in problem["reason"]
    if "differ" not in reason:
        assert "P_1_B03_s2_er.tif" in problem["reason"]
    assert (entry["fields"], entry["cells"]) == (7, 35)
    assert (report["plates"]["P_2"]["fields"], report["plates"]["P_2"]["problems"]) == (8, [])
    built = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert "B03_s2" not in built["field"]
    assert len(built) == 35


def test_a_page_that_does_not_exist_is_named(plates, tmp_path):
    rows = table_rows()
    rows[3]["image_rna"] += "#7"
    *_, log = cut(open_folder(plates, rows), "P_1", tmp_path / "scratch")
    (problem,) = log.problems
    assert problem["field"] == "B03_s2"
    assert "page 7 does not exist" in problem["reason"]


def test_no_usable_field_at_all_is_an_error(plates, tmp_path):
    for path in (plates / "images").iterdir():
        path.unlink()
    with pytest.raises(BuildError, match=r"no cell was found on P_1, P_2; see .*build_report\.json"):
        build_dataset(open_folder(plates), "folder", tmp_path / "out")
    assert len(json.loads((tmp_path / "out/build_report.json").read_text())["plates"]["P_1"]["problems"]) == 8


# --- tables that cannot be used ---


def rename(old: str, new: str):
    return lambda rows: [{(new if key == old else key): value for key, value in row.items()} for row in rows]


def drop(*columns: str):
    return lambda rows: [{key: value for key, value in row.items() if key not in columns} for row in rows]


def put(column: str, value: str, row: int = 2):
    """Change one cell; row 2 is site 1 of the taxol well of the first plate, in line 4."""
    return lambda rows: [{**r, column: value} if i == row else r for i, r in enumerate(rows)]


def add(column: str, value: str, others: str = ""):
    return lambda rows: [{**r, column: value if i == 2 else others} for i, r in enumerate(rows)]


TABLES = [
    (drop("well", "site"), r"line 1: the columns \['well', 'site'\] are missing; there are \['plate', 'compound'"),
    (rename("concentration", "concentation"), r"\['concentration'\] are missing.*is 'concentation' 'concentration'\?"),
    (add("smile", "C"), r"unknown column in .*'smile'; did you mean 'smiles'\?"),
    (drop("image_er", "image_rna"), r"line 1: 2 to 8 columns image_CHANNEL are needed, got 1"),
    (lambda rows: [r | {f"image_{i}": f"{n}_{i}" for i in range(6)} for n, r in enumerate(rows)], "got 9"),
    (rename("image_dna", "image_DNA"), r"unknown nucleus channel 'dna'; did you mean 'DNA'\?"),
    (rename("image_er", "image_"), r"line 1: 'image_': a channel's name must be letters"),
    (rename("image_er", "image_er,1"), r"line 1: 'image_er,1': a channel's name must be letters"),
    (lambda rows: [r | {"compound": "dmso"} if r["compound"] == "DMSO" else r for r in rows],
     r"unknown control .*'DMSO'; did you mean 'dmso'\?"),
    (lambda rows: [r | {"compound": "x"} if r["plate"] == "P_2" else r for r in rows],
     "plate 'P_2' has no well with the control 'DMSO'"),
    (lambda rows: [r | {"compound": "taxol", "concentration": "0.3"} if r["well"] in ("B02", "B05") and
                   r["plate"] == "P_2" else r for r in rows],
     "plate 'P_2' has no well with the control 'DMSO'"),
    (put("site", "2"), r"line 5: plate 'P_1', well 'B03', site '2': there a second time, first in line 4"),
    (put("image_er", "images/P_1_B02_s1_er.tif"), r"line 4: image '.*P_1_B02_s1_er\.tif': .* first in line 2"),
    (put("image_er", "images/../images/P_1_B02_s1_er.tif#0"), r"line 4: image .* there a second time"),
    (put("image_er", "./images/P_1_B03_s1_dna.tif"), r"line 4: image .* there a second time, first in line 4"),
    (put("image_er", ""), r"line 4: image_er '': must not be empty"),
    (put("compound", "taxotere"), r"line 5: compound 'taxol': but 'taxotere' in the first line with plate 'P_1'"),
    (put("compound", ""), r"line 4: compound '': must not be empty"),
    (put("compound", "taxol "), r"line 4: compound 'taxol ': has white space"),
    (put("concentration", "0.5"), r"line 5: concentration '0.3': but '0.5' in the first line"),
    (put("concentration", "nan"), r"line 4: concentration 'nan': not a number"),
    (put("concentration", "-1"), r"line 4: concentration '-1': not a number"),
    (put("concentration", "3 uM"), r"line 4: concentration '3 uM': not a number"),
    (put("concentration", "0,3"), r"line 4: concentration '0,3': not a number"),
    (put("concentration", ""), r"line 4: concentration '': not a number"),
    (put("site", "1.5"), r"line 4: site '1.5': not a whole number"),
    (put("site", "s1"), r"line 4: site 's1': not a whole number"),
    (put("plate", "../x"), r"line 4: plate '../x': must be letters"),
    (put("plate", "a/b"), r"line 4: plate 'a/b': must be letters"),
    (put("plate", "p_1", row=15), r"line 17: plate 'p_1': but 'P_1' in the first line"),
    (put("well", "B/02"), r"line 4: well 'B/02': must be letters"),
    (add("replicate", "second", "1"), r"line 4: replicate 'second': not a whole number"),
    (add("batch", "other", "one"), r"line 5: batch 'one': but 'other' in the first line with plate 'P_1', well"),
    (add("batch", "", "one"), r"line 4: batch '': must not be empty"),
    (add("split", "training", "train"), r"unknown split in .*line 4: 'training'; .*train"),
    (add("split", "test", "train"), r"line 5: split 'train': but 'test' in the first line with plate 'P_1', well"),
    (add("moa", "DMSO"), r"line 4: moa 'DMSO': is the mechanism of controls"),
    (add("moa", "Eg5 inhibitors"), r"line 5: moa '': but 'Eg5 inhibitors' in the first line"),
    (add("smiles", "CC(C"), r"line 4: smiles: .*'CC\(C'"),
    (add("smiles", "CCO"), r"line 5: smiles '.*': but 'CCO' in the first line with compound 'taxol'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TABLES)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        open_folder(tmp_path, change(table_rows()))
    if "nucleus channel" not in message:
        assert "plates.csv" in str(error.value)


def test_the_way_a_spreadsheet_writes_makes_no_difference(plates):
    expected = open_folder(plates).fields
    text = (plates / "plates.csv").read_text()
    (plates / "plates.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    pd.testing.assert_frame_equal(open_folder(plates).fields, expected)
    (plates / "plates.csv").write_text(text.replace(",", ";"))
    with pytest.raises(ValueError, match="separated by ';', but must be by commas"):
        open_folder(plates)


def test_any_damaged_cell_is_refused_or_changes_that_cell_only(tmp_path):
    """What is wrong with a table is said with its name; what is not said leaves every other field as it was."""
    header, *body = [list(table_rows()[0]), *(list(row.values()) for row in table_rows())]
    right = open_folder(tmp_path, table_rows()).fields.set_index(["plate", "field"]).drop(columns="images")
    random = np.random.default_rng(0)
    values = ["", "P_1", "B02", "1", "DMSO", "taxol", "nan", "-1", "1e9", "../x", "a\nb", ";", "\0", "é", "x" * 300]
    refused = 0
    for _ in range(80):
        row, column = random.integers(len(body)), random.integers(len(header))
        changed = [list(cells) for cells in body]
        changed[row][column] = values[random.integers(len(values))]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *changed])
        (tmp_path / "plates.csv").write_text(text.getvalue(), newline="")
        try:
            fields = open_folder(tmp_path).fields.set_index(["plate", "field"]).drop(columns="images")
        except ValueError as error:
            assert "plates.csv" in str(error)  # noqa: PT017
            refused += 1
            continue
        same = fields.loc[fields.index.isin(right.index)]
        columns = [c for c in right.columns if c != header[column]]
        differing = (same[columns] != right.loc[same.index, columns]).any(axis=1).sum()
        assert differing <= 1
        assert len(fields) == len(right)
    assert refused > 40


# --- a real field ---


def test_a_real_field_of_another_screen(real_fields_dir, tmp_path):
    """One Cell Painting field (BBBC022, U2OS, three channels) as a plate with a control well and a treated one."""
    stack = tifffile.imread(real_fields_dir / "bbbc022_IXMtest_A02_s9.tif")
    tifffile.imwrite(tmp_path / "A02.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "A03.tif", stack[:, ::-1], photometric="minisblack")
    rows = [
        dict(zip(HEADER, ("20585", well, "9", compound, "0"), strict=False))
        | {f"image_{name}": f"{well}.tif#{page}" for page, name in enumerate(CHANNELS)}
        for well, compound in (("A02", "DMSO"), ("A03", "upside down"))
    ]
    source = open_folder(tmp_path, rows, nucleus_diameter=28, crop_size=64)
    images, table, log = cut(source, "20585", tmp_path / "scratch")
    assert (log.fields, log.problems) == (2, [])
    counts = table["well"].value_counts()
    assert counts.min() >= 20
    middle, border = images[:, 0, 24:40, 24:40], np.concatenate([images[:, 0, :4], images[:, 0, -4:]], axis=1)
    assert (np.median(middle, axis=(1, 2)) > np.median(border, axis=(1, 2))).mean() > 0.95
    assert images.max() == 255
    for channel in range(3):
        assert images[:, channel].std() > 15


@pytest.mark.parametrize("settings", [{"image_size": 0}, {"crop_size": 0}, {"nucleus_diameter": 0}])
def test_sizes_of_nothing_are_refused_before_any_image_is_read(plates, settings):
    with pytest.raises(ValueError, match=rf"{next(iter(settings))} .*got 0"):
        open_folder(plates, **settings)
