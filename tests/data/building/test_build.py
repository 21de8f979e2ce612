"""`cellfluxrl data build --source bbbc021` as a user meets it, from a web server to `load_dataset`."""

import errno
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from datasets import load_dataset
from file_server import FileServer
from filelock import FileLock
from scipy.spatial import cKDTree
from synthetic_plate import CHANNEL_COLUMNS, published_rows, write_plate, write_tables
from tiny_plates import CROP, OPTIONS, SETTINGS, archive_path, rewrite, tiff, write_tiny_plates

from cellfluxrl import BBBC021
from cellfluxrl.commands.cli import main
from cellfluxrl.data import parquet
from cellfluxrl.data.building import build, downloads
from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.data.building.sources import make_source
from cellfluxrl.data.cells import Cells
from cellfluxrl.data.compounds import known_compounds
from cellfluxrl.data.parquet import ShardWriter, encode_cells, row_groups
from cellfluxrl.data.schema import cell_features

PLATES = ("Week4_100", "Week5_200")
RADIUS = 16  # of the nuclei
TINY = ["Week4_1", "Week5_2"]


def run(output_dir: Path, *options: object) -> int:
    options = list(map(str, options))
    if "--num_proc" not in options:
        options += ["--num_proc", "1"]
    return main(["data", "build", "--output_dir", str(output_dir), *options])


def report_of(folder: Path) -> dict:
    return json.loads((folder / "build_report.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every shard's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("data/*/*.parquet"))}


def rows_of(folder: Path) -> pd.DataFrame:
    """All rows, with the decoded pictures as `pixels` (H, W, 3)."""
    table = pd.concat([pd.read_parquet(p) for p in sorted(folder.glob("data/*/*.parquet"))], ignore_index=True)
    return table.set_index(["plate", "field", "cell_id"], drop=False)


# --- from a web server to load_dataset ---


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Two plates as published: (folder, rows of the image table, true nuclei)."""
    folder = tmp_path_factory.mktemp("web")
    tables, truth = [], []
    for week, plate in zip((4, 5), PLATES, strict=True):
        # The last compound has no mechanism of action.
        compounds = (("DMSO", 0.0), ("taxol", 0.3), ("nocodazole", 1.0), ("unlabelled", 2.0))
        rows = published_rows(plate, compounds, wells_per_compound=1, seed=week)
        rows["TableNumber"] = week
        truth.append(write_plate(folder, rows, (256, 320), cells_per_field=10, seed=week).truth)
        tables.append(rows)
    rows = pd.concat(tables, ignore_index=True)
    write_tables(folder, rows)
    return folder, rows, pd.concat(truth)


@pytest.fixture(scope="module")
def built(web, tmp_path_factory):
    """The plates downloaded and built with the command line: (folder, rows, requests to the server)."""
    folder = tmp_path_factory.mktemp("built") / "out"
    with FileServer(web[0]) as server:
        assert run(folder, "--base_url", server.url, "--crop_size", 48, "--image_size", 48) == 0
        requests = [request.path for request in server.requests]
    return folder, load_dataset(str(folder), cache_dir=str(folder.parent / "cache")), requests


def test_every_file_is_downloaded_once(built):
    tables = [f"/BBBC021_v1_{name}.csv" for name in ("image", "moa", "compound")]
    assert sorted(built[2]) == sorted([*tables, *(f"/BBBC021_v1_images_{plate}.zip" for plate in PLATES)])


def test_the_published_rows_have_the_schema_and_their_splits(built):
    folder, splits, _ = built
    features = cell_features(("dna", "tubulin", "actin"), 48, published=True)
    assert {name: set(rows["plate"]) for name, rows in splits.items()} == {"train": {PLATES[0]}, "test": {PLATES[1]}}
    for name, rows in splits.items():
        assert rows.features == features
        assert rows.features["image"].id == "dna,tubulin,actin"
        assert set(rows["split"]) == {name}
    report = report_of(folder)
    assert report["complete"]
    assert sum(count["cells"] for count in report["counts"]) == sum(map(len, splits.values()))
    assert {plate: entry["cells"] for plate, entry in report["plates"].items()} == {
        plate: len(splits[name]) for plate, name in zip(PLATES, ("train", "test"), strict=True)
    }


def test_each_row_is_that_of_the_published_tables(web, built):
    _, rows, _ = web
    index = rows.set_index(rows["Image_FileName_DAPI"].str.removesuffix(".tif"))
    known = known_compounds()
    for split in built[1].values():
        cells = split.remove_columns("image").to_pandas()
        joined = index.loc[cells["field"]].reset_index(drop=True)
        for own, theirs in {"plate": "Plate_DAPI", "well": "Well_DAPI", "compound": "Compound"}.items():
            assert (cells[own] == joined[f"Image_Metadata_{theirs}"]).all()
        np.testing.assert_allclose(cells["concentration"], joined["Image_Metadata_Concentration"], rtol=1e-6)
        assert (cells["replicate"] == joined["Replicate"]).all()
        assert (cells["site"].astype(str) == joined["Image_FileName_DAPI"].str.extract(r"_s(\d)_")[0]).all()
        assert (cells["is_control"] == (cells["compound"] == "DMSO")).all()
        assert (cells["moa"] == cells["compound"].map(known["moa"]).fillna("")).all()
        assert (cells["smiles"] == cells["compound"].map(known["smiles"]).fillna("")).all()
        assert not cells[["plate", "field", "cell_id"]].duplicated().any()


def test_crops_sit_on_true_nuclei(web, built):
    truth = dict(list(web[2].groupby("field")))
    found = expected = correct = 0
    for split in built[1].values():
        for field, cells in split.remove_columns("image").to_pandas().groupby("field"):
            nuclei = truth[field][["row", "column"]].to_numpy()
            places = cells[["y", "x"]].to_numpy()
            distance, _ = cKDTree(nuclei).query(places)
            correct += int((distance < RADIUS).sum())
            inside = nuclei[((nuclei >= 40) & (nuclei <= np.array([256, 320]) - 40)).all(axis=1)]
            expected += len(inside)
            found += int((cKDTree(places).query(inside)[0] < RADIUS).sum()) if len(inside) else 0
    assert expected > 100
    assert found / expected > 0.95
    assert correct / sum(map(len, built[1].values())) > 0.95


def expected_pixels(web_folder: Path, table: pd.DataFrame, cells: pd.DataFrame, plate: str, size: int) -> np.ndarray:
    """Crops of all cells of a plate, cut out of the published images by DNA file name and x, y; (N, H, W, 3)."""
    columns = [f"Image_FileName_{c}" for c in CHANNEL_COLUMNS]
    files = table.set_index(table["Image_FileName_DAPI"].str.removesuffix(".tif"))[columns]
    crops = []
    with zipfile.ZipFile(archive_path(web_folder, plate)) as archive:
        for field, y, x in zip(cells["field"], cells["y"], cells["x"], strict=True):
            names = [f"{plate}/{name}" for name in files.loc[field]]
            image = np.stack([tifffile.imread(io.BytesIO(archive.read(name))) for name in names])
            top, left = (int(np.floor(place + 0.5)) - size // 2 for place in (y, x))
            crops.append(image[:, top : top + size, left : left + size])
    # Red is the last channel.
    return normalize_plate(np.stack(crops), size)[:, ::-1].transpose(0, 2, 3, 1)


def test_pictures_are_the_images_at_their_x_and_y_with_the_channels_in_order(web, built):
    """With too few fields to correct the illumination, a picture is the stretched image."""
    for name, plate in zip(("train", "test"), PLATES, strict=True):
        split = built[1][name]
        pictures = np.stack([np.asarray(image) for image in split["image"]])
        expected = expected_pixels(web[0], web[1], split.remove_columns("image").to_pandas(), plate, 48)
        np.testing.assert_array_equal(pictures, expected)


# --- what is chosen ---


@pytest.fixture(scope="module")
def tiny_web(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_plates(folder, TINY)
    return folder


@pytest.fixture
def tiny(tiny_web, tmp_path) -> Path:
    """A folder of two tiny plates that a test may spoil."""
    return shutil.copytree(tiny_web, tmp_path / "tiny", ignore=shutil.ignore_patterns("SHA256SUMS"))


@pytest.fixture(scope="module")
def tiny_built(tiny_web, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_built") / "out"
    assert run(folder, "--data_dir", tiny_web, *OPTIONS) == 0
    return folder


def test_only_the_plates_asked_for(tiny, tmp_path, tiny_built):
    archive_path(tiny, TINY[0]).unlink()
    assert run(tmp_path / "out", "--data_dir", tiny, "--plates", TINY[1], *OPTIONS) == 0
    (file,) = contents(tmp_path / "out")
    assert file == f"data/train/{TINY[1]}-00000.parquet"
    alone, both = rows_of(tmp_path / "out"), rows_of(tiny_built)
    pd.testing.assert_frame_equal(
        alone.drop(columns="split"), both[both["plate"] == TINY[1]].drop(columns="split"), check_like=True
    )


def test_archives_that_are_there_are_not_asked_for(tiny, tmp_path):
    with FileServer(tiny) as server:
        assert run(tmp_path / "out", "--base_url", server.url, "--data_dir", tiny, *OPTIONS) == 0
        assert server.requests == []


def test_the_order_of_plates_does_not_matter(tiny, tmp_path, tiny_built):
    assert run(tmp_path / "out", "--data_dir", tiny, "--plates", *reversed(TINY), *OPTIONS) == 0
    assert contents(tmp_path / "out") == contents(tiny_built)
    assert report_of(tmp_path / "out") == report_of(tiny_built)
    assert (tmp_path / "out/README.md").read_text() == (tiny_built / "README.md").read_text()


def test_labelled_only_leaves_out_what_has_no_mechanism(web, tmp_path):
    options = ("--data_dir", web[0], "--crop_size", 48, "--plates", PLATES[0])
    assert run(tmp_path / "out", *options, "--labelled_only") == 0
    rows = rows_of(tmp_path / "out")
    assert set(rows["compound"]) == {"DMSO", "taxol", "nocodazole"}


def test_crops_can_be_resized(tiny, tmp_path):
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS, "--image_size", 16) == 0
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows[0]["image"].size == (16, 16)
    assert len(rows) == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plates", "Week4_10"], "unknown plate 'Week4_10'; did you mean 'Week4_1'?"),
        (["--crop_size", 0], "crop_size must be at least 1 pixels, got 0"),
        (["--image_size", 0], "image_size must be at least 1 pixels, got 0"),
        (["--nucleus_diameter", 2], "nucleus_diameter must be at least 4 pixels, got 2.0"),
        (["--nucleus_diameter", "nan"], "nucleus_diameter must be at least 4 pixels, got nan"),
        (["--num_proc", 0], "num_proc must be at least 1, got 0"),
        (["--split", "plates"], "unknown split scheme 'plates'"),
        (["--license", "mit"], "license 'mit' is for the source 'folder': that of 'bbbc021' is known"),
        (["--table", "index.csv"], "unknown setting of the source 'bbbc021' 'table'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(tiny_web, tmp_path, capsys, options, message):
    assert run(tmp_path / "out", "--data_dir", tiny_web, *OPTIONS, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/data").exists()


def test_all_cells_of_a_plate_set_its_intensities(tiny, tmp_path):
    """The treated well is four times as bright as the controls, and not all of it is white."""
    rows = pd.read_csv(tiny / "BBBC021_v1_image.csv")
    bright = set(rows.loc[rows["Image_Metadata_Compound"] == "taxol", "Image_FileName_Tubulin"])

    def brighten(entries):
        for name in entries:
            if Path(name).name in bright:
                entries[name] = tiff(4 * tifffile.imread(io.BytesIO(entries[name])))

    rewrite(tiny, TINY[0], brighten)
    assert run(tmp_path / "out", "--data_dir", tiny, "--plates", TINY[0], *OPTIONS) == 0
    cells = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    tubulin = np.stack([np.asarray(image)[..., 1] for image in cells["image"]])
    treated = ~np.array(cells["is_control"])
    assert (tubulin[treated] == 255).mean() < 0.02
    assert np.unique(tubulin[treated]).size > 50
    assert tubulin[treated].mean() > 1.5 * tubulin[~treated].mean()


# --- damage ---


def first_field(folder: Path, plate: str) -> pd.Series:
    rows = pd.read_csv(folder / "BBBC021_v1_image.csv")
    return rows[rows["Image_Metadata_Plate_DAPI"] == plate].iloc[2]


def half(image: np.ndarray) -> np.ndarray:
    return image[:32]


def to_8_bits(image: np.ndarray) -> np.ndarray:
    return (image >> 4).astype(np.uint8)


DAMAGES = {
    "cut short": (lambda content: content[: len(content) // 2], "Tubulin", "truncated or damaged"),
    "missing": (lambda content: None, "Actin", "unknown file"),
    "one channel of another size": (lambda content: tiff(half(pixels(content))), "DAPI", "channels differ in size"),
    "one channel of 8 bits": (lambda content: tiff(to_8_bits(pixels(content))), "DAPI", "channels differ in size or"),
    "all of another size": (lambda content: tiff(half(pixels(content))), None, "most of the plate's have 64 x 80"),
    "all of 8 bits": (lambda content: tiff(to_8_bits(pixels(content))), None, "64 x 80 pixels of 8 bits, most"),
    "no image": (lambda content: b"<html>not found</html>", "DAPI", "neither TIFF nor PNG"),
}


def pixels(content: bytes) -> np.ndarray:
    return tifffile.imread(io.BytesIO(content))


OFTEN = ("cut short", "missing", "all of 8 bits", "all of another size")


@pytest.mark.parametrize(
    "damage", [*OFTEN, *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES if d not in OFTEN)]
)
def test_a_damaged_field_is_skipped_and_named(tiny, tiny_built, tmp_path, capsys, damage):
    spoil, channel, reason = DAMAGES[damage]
    field = first_field(tiny, TINY[0])
    name = field["Image_FileName_DAPI"].removesuffix(".tif")

    def change(entries):
        for column in [channel] if channel else CHANNEL_COLUMNS:
            entry = f"{TINY[0]}/{field[f'Image_FileName_{column}']}"
            spoilt = spoil(entries.pop(entry))
            if spoilt is not None:
                entries[entry] = spoilt

    rewrite(tiny, TINY[0], change)
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    entry = report_of(tmp_path / "out")["plates"][TINY[0]]
    assert (entry["fields"], entry["cells"]) == (7, 28)
    (problem,) = entry["problems"]
    assert problem["field"] == name
    assert reason in problem["reason"]
    capsys.readouterr()
    assert main(["data", "info", str(tmp_path / "out")]) == 0
    assert name in capsys.readouterr().out

    whole, rest = rows_of(tiny_built), rows_of(tmp_path / "out")
    metadata = whole[whole["field"] != name].drop(columns="image")
    pd.testing.assert_frame_equal(rest.drop(columns="image"), metadata)
    other = rest["plate"] == TINY[1]
    assert rest.loc[other, "image"].tolist() == whole.loc[whole["plate"] == TINY[1], "image"].tolist()
    cells = rest[~other].reset_index(drop=True)
    splits = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    pictures = np.stack([np.asarray(image) for image in splits["train"]["image"]])
    table = pd.read_csv(tiny / "BBBC021_v1_image.csv")
    np.testing.assert_array_equal(pictures, expected_pixels(tiny, table, cells, TINY[0], CROP))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"), [(truncate, "zip"), (empty, "has no image of Week4_1"), (delete, "the server answered 404")]
)
def test_a_damaged_archive_costs_its_plate_which_a_second_run_builds(
    tiny, tiny_built, tmp_path, capsys, spoil, reason
):
    spoil(archive_path(tiny, TINY[0]))
    with FileServer(tiny) as server:
        options = ("--base_url", server.url, *OPTIONS)
        assert run(tmp_path / "out", *options) == 2
        error = capsys.readouterr().err
        assert "1 of 2 plates could not be built" in error
        assert f"{TINY[0]}: " in error
        assert reason in error
        (kept,) = contents(tmp_path / "out")
        assert kept == f"data/test/{TINY[1]}-00000.parquet"
        assert not report_of(tmp_path / "out")["complete"]
        stamp = (tmp_path / "out" / kept).stat().st_mtime_ns

        repaired = tiny / "repaired"
        write_tiny_plates(repaired, TINY)
        shutil.copy(archive_path(repaired, TINY[0]), tiny)
        downloads = tmp_path / "out/downloads"
        archive_path(downloads, TINY[0]).unlink(missing_ok=True)
        (downloads / "SHA256SUMS").unlink(missing_ok=True)
        server.requests.clear()
        assert run(tmp_path / "out", *options) == 0
        assert [request.path for request in server.requests] == [f"/BBBC021_v1_images_{TINY[0]}.zip"]
    assert (tmp_path / "out" / kept).stat().st_mtime_ns == stamp
    assert contents(tmp_path / "out") == contents(tiny_built)
    assert report_of(tmp_path / "out")["counts"] == report_of(tiny_built)["counts"]
    assert list(report_of(tmp_path / "out")["plates"]) == TINY


def test_a_plate_without_any_readable_field_is_an_error_and_is_tried_again(tiny, tiny_built, tmp_path, capsys):
    good = archive_path(tiny, TINY[0]).read_bytes()
    rewrite(tiny, TINY[0], lambda entries: entries.update(dict.fromkeys(entries, b"rubbish")))
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 2
    assert f"{TINY[0]}: none of its fields of view can be read" in capsys.readouterr().err
    archive_path(tiny, TINY[0]).write_bytes(good)
    (tiny / "SHA256SUMS").unlink()
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    assert contents(tmp_path / "out") == contents(tiny_built)


def test_checksums_are_compared(tiny, tmp_path, capsys):
    sums = {name: hashlib.sha256((tiny / name).read_bytes()).hexdigest() for name in (p.name for p in tiny.iterdir())}
    file = tmp_path / "sums.txt"
    file.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    assert run(tmp_path / "good", "--data_dir", tiny, "--checksums", file, *OPTIONS) == 0

    rewrite(tiny, TINY[1], lambda entries: entries.popitem())
    assert run(tmp_path / "out", "--data_dir", tiny, "--checksums", file, *OPTIONS) == 2
    error = capsys.readouterr().err
    assert f"BBBC021_v1_images_{TINY[1]}.zip" in error
    assert "SHA-256" in error
    assert [Path(name).name for name in contents(tmp_path / "out")] == [f"{TINY[0]}-00000.parquet"]

    with open(tiny / "BBBC021_v1_moa.csv", "a") as table:
        table.write("\n")
    assert run(tmp_path / "other", "--data_dir", tiny, "--checksums", file, *OPTIONS) == 2
    assert "BBBC021_v1_moa.csv" in capsys.readouterr().err


def test_archives_in_a_folder_that_cannot_be_written_to(tiny, tiny_built, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tiny)
    before = sorted(p.name for p in tiny.iterdir())
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    assert sorted(p.name for p in tiny.iterdir()) == before
    assert contents(tmp_path / "out") == contents(tiny_built)


@pytest.mark.parametrize("where", ["shard", "footer", pytest.param("scratch", marks=pytest.mark.slow)])
def test_a_full_disk_is_an_error_and_finished_plates_are_kept(tiny, tiny_built, tmp_path, capsys, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")
    target, name = {
        "shard": (pq.ParquetWriter, "write_table"),
        "footer": (pq.ParquetWriter, "close"),
        "scratch": (build.ShardWriter, "write"),
    }[where]
    original, calls = getattr(target, name), []

    def second_fails(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise full
        return original(*args, **options)

    monkeypatch.setattr(target, name, second_fails)
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 2
    error = capsys.readouterr().err
    assert f"plate {TINY[1]}: " in error
    assert "No space left on device" in error
    assert "finished plates are kept" in error
    assert not (tmp_path / "out/.partial").exists()
    assert [Path(name).name for name in contents(tmp_path / "out")] == [f"{TINY[0]}-00000.parquet"]
    monkeypatch.setattr(target, name, original)
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    assert contents(tmp_path / "out") == contents(tiny_built)


# --- going on ---


def test_a_finished_build_is_left_as_it_is(tiny, tmp_path):
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/data").rglob("*.parquet")}
    archive_path(tiny, TINY[0]).unlink()
    assert run(tmp_path / "out", "--data_dir", tiny, *OPTIONS) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/data").rglob("*.parquet")} == before
    assert report_of(tmp_path / "out")["complete"]


@pytest.mark.parametrize("damage", ["deleted", "cut short", "empty"])
def test_a_shard_that_is_not_whole_is_built_again(tiny, tiny_built, tmp_path, damage):
    out = shutil.copytree(tiny_built, tmp_path / "out")
    shard = out / f"data/train/{TINY[0]}-00000.parquet"
    content = shard.read_bytes()
    shard.unlink()
    if damage != "deleted":
        shard.write_bytes(content[:-1000] if damage == "cut short" else b"")
    assert run(out, "--data_dir", tiny, *OPTIONS) == 0
    assert contents(out) == contents(tiny_built)
    assert report_of(out) == report_of(tiny_built)


def test_shards_that_no_report_lists_are_cleared(tiny, tiny_built, tmp_path):
    """A build that was killed between two shards of a plate, which has one now."""
    out = shutil.copytree(tiny_built, tmp_path / "out")
    shutil.copy(out / f"data/train/{TINY[0]}-00000.parquet", out / f"data/train/{TINY[0]}-00001.parquet")
    (out / "data/train/mine.parquet").write_bytes(b"of the user")
    assert run(out, "--data_dir", tiny, *OPTIONS) in (0, 2)  # the user's is no Parquet file
    (out / "data/train/mine.parquet").unlink()
    assert contents(out) == contents(tiny_built)


def test_other_settings_into_the_same_folder_are_refused(tiny_web, tiny_built, tmp_path, capsys):
    out = shutil.copytree(tiny_built, tmp_path / "out")
    before = contents(out)
    for options, named in (
        (["--crop_size", 20], "settings.crop_size 24, now it is 20"),
        (["--plates", TINY[0]], "plate_names ['Week4_1', 'Week5_2'], now it is ['Week4_1']"),
        (["--labelled_only"], "settings.labelled_only False, now it is True"),
        (["--held_out", TINY[0]], "split.held_out [], now it is ['Week4_1']"),
    ):
        assert run(out, "--data_dir", tiny_web, *OPTIONS, *options) == 2
        assert named in capsys.readouterr().err
    assert contents(out) == before
    assert report_of(out)["complete"]


def test_a_folder_with_something_else_is_refused(tiny_web, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "README.md").write_text("of the user")
    assert run(out, "--data_dir", tiny_web, *OPTIONS) == 2
    assert "holds ['README.md', 'data'], and is not a build" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "data"]


@pytest.mark.parametrize("content", ["{", "[]", '{"plates": {}}', ""])
def test_a_report_that_is_none_is_refused(tiny_web, tmp_path, capsys, content):
    (tmp_path / "build_report.json").write_text(content)
    assert run(tmp_path, "--data_dir", tiny_web, *OPTIONS) == 2
    error = capsys.readouterr().err
    assert "build_report.json is" in error
    assert "output_dir" in error


def test_two_builds_into_one_folder_are_refused(tiny_web, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert run(tmp_path / "out", "--data_dir", tiny_web, *OPTIONS) == 2
    assert f"another build is writing to '{tmp_path / 'out'}'" in capsys.readouterr().err


# --- shards ---


def some_cells(count: int, channels: int = 3, size: int = 4) -> Cells:
    random = np.random.default_rng(0)
    values = {"compound": "DMSO", "smiles": "", "concentration": 0.0, "moa": "DMSO", "plate": "P", "well": "B02"}
    values |= {"site": 1, "replicate": 1, "field": "f", "x": np.nan, "y": 1.5, "is_control": True, "split": "train"}
    rows = pd.DataFrame([values] * count).assign(cell_id=np.arange(count))
    return Cells(random.integers(0, 256, (count, channels, size, size)).astype(np.uint8), rows)


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_shards_and_row_groups_are_bounded_and_lossless(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(parquet, "ROWS_PER_SHARD", 25)
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    features = cell_features([f"c{i}" for i in range(channels)], 4, published=True)
    writer = ShardWriter(tmp_path / "data", "P", features)
    cells = some_cells(57, channels)
    for rows, images in map(encode_cells, row_groups([cells])):
        writer.write(rows, images)
    assert writer.close() == {"P-00000.parquet": 20, "P-00001.parquet": 20, "P-00002.parquet": 17}
    groups = [pq.read_metadata(path).row_group(0).num_rows for path in sorted((tmp_path / "data").iterdir())]
    assert max(groups) == 10
    read = load_dataset("parquet", data_dir=str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["cell_id"] == list(range(57))
    assert np.isnan(read["x"]).all()
    images = read.with_format("numpy")["image"][:]
    images = images[..., ::-1].transpose(0, 3, 1, 2) if channels == 3 else images
    np.testing.assert_array_equal(images, cells.images)


# --- the builder ---


def prepare(cache_dir: Path, **config) -> BBBC021:
    builder = BBBC021(cache_dir=str(cache_dir), **config)
    builder.download_and_prepare()
    return builder


def test_the_builder_gives_the_rows_of_the_command(tiny, tiny_built, tmp_path):
    config = {"config_name": "bbbc021", "data_dir": str(tiny), "settings": SETTINGS}
    prepared = prepare(tmp_path / "cache", **config).as_dataset()
    command = load_dataset(str(tiny_built), cache_dir=str(tmp_path / "loaded"))
    streamed = BBBC021(cache_dir=str(tmp_path / "stream"), **config).as_streaming_dataset()
    for split in ("train", "test"):
        columns = [column for column in prepared[split].column_names if column != "image"]
        assert prepared[split].select_columns(columns)[:] == command[split].select_columns(columns)[:]
        images = prepared[split].with_format("numpy")["image"][:]
        pictures = np.stack([np.asarray(image)[..., ::-1].transpose(2, 0, 1) for image in command[split]["image"]])
        np.testing.assert_array_equal(images, pictures)
        for row, image, cell in zip(streamed[split], images, prepared[split]["cell_id"], strict=True):
            np.testing.assert_array_equal(np.asarray(row["image"]), image)
            assert row["cell_id"] == cell


def test_the_builder_downloads_once_and_caches(tiny, tmp_path, monkeypatch):
    with FileServer(tiny) as server:
        settings = {**SETTINGS, "base_url": server.url}
        config = {"config_name": "bbbc021", "data_dir": str(tmp_path / "downloads"), "settings": settings}
        first = prepare(tmp_path / "cache", **config)
        assert len(server.requests) == 5
        again = prepare(tmp_path / "cache", **config)
        assert len(server.requests) == 5
    assert again.cache_dir == first.cache_dir
    table = tmp_path / "downloads/BBBC021_v1_image.csv"
    table.write_text(table.read_text().replace("taxol,0.3", "taxol,1.0"))
    moa = tmp_path / "downloads/BBBC021_v1_moa.csv"
    moa.write_text(moa.read_text().replace("taxol,0.3", "taxol,1.0"))
    changed = prepare(tmp_path / "cache", **config).as_dataset(split="train")
    assert set(changed["concentration"]) == {0.0, 1.0}


@pytest.mark.slow
def test_the_builder_works_in_processes(tiny, tmp_path):
    config = {"config_name": "bbbc021", "data_dir": str(tiny), "settings": SETTINGS, "split": "cellflux"}
    one = prepare(tmp_path / "one", config_name="simulated", settings={"cells_per_moa": 4, "controls_per_plate": 4})
    two = BBBC021(cache_dir=str(tmp_path / "two"), config_name="simulated", settings=one.config.settings)
    two.download_and_prepare(num_proc=2)
    for split in ("train", "test"):
        assert one.as_dataset(split=split)[:]["cell_id"] == two.as_dataset(split=split)[:]["cell_id"]
    del config["split"]
    builder = BBBC021(cache_dir=str(tmp_path / "cache"), **config)
    builder.download_and_prepare(num_proc=2)
    assert len(builder.as_dataset(split="train")) == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"config_name": "bbbc021"}, "the source 'bbbc021' needs data_dir"),
        ({"config_name": "crops"}, "the source 'crops' needs data_dir"),
        ({"config_name": "folder"}, "the source 'folder' needs table"),
        ({"config_name": "simulated", "settings": {"cell_per_moa": 3}}, "did you mean 'cells_per_moa'"),
        ({"config_name": "simulated", "settings": {"image_size": 3}}, "'image_size' is an argument of the builder"),
        ({"config_name": "simulated", "data_dir": "x"}, "unknown setting of the source 'simulated' 'data_dir'"),
    ],
)
def test_what_a_source_needs_and_takes(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, **config)


def test_a_server_that_is_away_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0)
    with FileServer(tmp_path) as server, pytest.raises(OSError, match="the server answered 404"):
        make_source("bbbc021", data_dir=tmp_path / "data", base_url=server.url)
