"""Mangled downloads: a clear error, or a build in which every row is right."""

import io
import re
import shutil
import struct
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from tiny_plates import SETTINGS, archive_path, tiff, write_tiny_plates

from cellfluxrl.data.building import build, downloads
from cellfluxrl.data.building.build import build_dataset
from cellfluxrl.data.building.sources.bbbc021 import PublishedArchives

PLATE = "Week4_1"
NOWHERE = "http://127.0.0.1:9/"
PLACE = ["cell_id", "x", "y", "image"]


@dataclass
class Case:
    """Files as they are published, to be damaged."""

    tables: dict[str, bytes]
    entries: dict[str, bytes]
    random: np.random.Generator
    archive: bytes | None = None  # in place of the entries
    damaged_tables: list[str] = field(default_factory=list)
    other_pixels: set[str] = field(default_factory=set)  # entries that can be read, and as something else

    def pick(self, choices):
        return choices[self.random.integers(len(choices))]


def zipped(entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    return file.getvalue()


def mangled(content: bytes, random: np.random.Generator) -> bytes:
    """Cut short, with a part missing or doubled, or with some bytes changed."""
    content = bytearray(content)
    kind = random.integers(4)
    start = int(random.integers(max(1, len(content))))
    length = int(random.integers(1, 200))
    if kind == 0:
        return bytes(content[:start])
    if kind == 1:
        return bytes(content[:start] + content[start + length :])
    if kind == 2:
        return bytes(content[: start + length] + content[start:])
    for _ in range(random.integers(1, 20)):
        content[random.integers(len(content))] = random.integers(256)
    return bytes(content)


# --- archives ---

BAD_NAMES = ["../../evil.tif", "/tmp/evil.tif", "C:\\evil.tif", "a/../../evil.tif", "..\\evil.tif", "evil\0.tif", ""]


def archive_bytes(case: Case) -> None:
    content = case.archive or zipped(list(case.entries.items()))
    if case.random.random() < 0.5:  # its directory is small and at the end
        size = int(case.random.integers(100, 6000))
        case.archive = content[:-size] + mangled(content[-size:], case.random)
    else:
        case.archive = mangled(content, case.random)


def archive_names(case: Case) -> None:
    entries = list(case.entries.items())
    number = case.random.integers(len(entries))
    name, content = entries[number]
    kind = case.random.integers(7)
    if kind == 0:
        entries.append((case.pick(BAD_NAMES) or "evil/", b"evil"))
    elif kind == 1:
        entries[number] = (case.pick(BAD_NAMES) or "evil", content)
    elif kind == 2:
        entries.append((name, case.entries[case.pick(list(case.entries))]))
    elif kind == 3:
        entries.append((f"copy/{Path(name).name}", b"other"))
    elif kind == 4:
        chosen = set(case.random.choice(len(entries), case.random.integers(1, len(entries) + 1), replace=False))
        entries = [entry for i, entry in enumerate(entries) if i not in chosen]
    elif kind == 5:
        link = zipfile.ZipInfo(name)
        link.external_attr = 0o120777 << 16
        entries[number] = (link, b"/etc/passwd")
    else:
        entries = [(Path(name).name, content) for name, content in entries]
        case.random.shuffle(entries)
    case.archive = zipped(entries)


def archive_bomb(case: Case) -> None:
    name = case.pick(list(case.entries))
    content = bytearray(zipped([(n, c if n != name else bytes(12 << 20)) for n, c in case.entries.items()]))
    if case.random.random() < 0.5:  # and it lies about the size
        offset = content.find(b"PK\1\2")
        content[offset + 24 : offset + 28] = struct.pack("<I", int(case.random.integers(2**32)))
    case.archive = bytes(content)


# --- images ---


def image_kind(case: Case) -> None:
    """All channels of a field, or one, in another form; some of the forms are as good."""
    some = case.pick(list(case.entries))
    stem = re.match(r".*_s\d", some)[0]
    kinds = {
        "8 bits": lambda image: tiff((image >> 4).astype(np.uint8)),
        "float": lambda image: tiff(image.astype(np.float32)),
        "signed": lambda image: tiff(image.astype(np.int16)),
        "32 bits": lambda image: tiff(image.astype(np.uint32)),
        "RGB": lambda image: tiff_of(np.stack([image] * 3, axis=-1), photometric="rgb"),
        "other size": lambda image: tiff(image[: case.random.integers(1, 64), : case.random.integers(1, 80)]),
        "pages": lambda image: tiff(np.stack([image] * 3)),
        "big-endian": lambda image: tiff(image, byteorder=">"),
        "BigTIFF": lambda image: tiff(image, bigtiff=True),
        "tiles": lambda image: tiff(image, tile=(16, 16)),
        "compressed": lambda image: tiff(image, compression="zlib"),
        "empty": lambda image: b"",
        "text": lambda image: b"404 not found",
    }
    change = kinds[case.pick(sorted(kinds))]
    whole_field = case.random.random() < 0.5
    for name, content in case.entries.items():
        if name == some or (whole_field and name.startswith(stem)):
            case.entries[name] = change(tifffile.imread(io.BytesIO(content)))


def tiff_of(image: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, metadata=None, **options)
    return file.getvalue()


def image_bytes(case: Case) -> None:
    for _ in range(case.random.integers(1, 4)):
        name = case.pick(list(case.entries))
        content = case.entries[name]
        if case.random.random() < 0.5:
            case.entries[name] = mangled(content[:300], case.random) + content[300:]
        else:
            case.entries[name] = mangled(content, case.random)
        case.other_pixels.add(name)


# --- tables ---


def table_bytes(case: Case) -> None:
    name = case.pick(sorted(case.tables))
    case.tables[name] = mangled(case.tables[name], case.random)
    case.damaged_tables.append(name)


def table_cells(case: Case) -> None:
    name = case.pick(sorted(case.tables))
    table = pd.read_csv(io.BytesIO(case.tables[name]), dtype=str, keep_default_na=False)
    rows = len(table)
    i, j = case.random.choice(rows, 2, replace=False)
    column, other = case.random.choice(table.columns.to_numpy(str), 2, replace=False)
    kind = case.random.integers(9)
    if kind == 0:
        table.loc[i, column] = case.pick(["", "NaN", "nan", "-1", "1e400", "taxol", "DMSO", "inf", "0", "../x", "5"])
    elif kind == 1:
        table.loc[[i, j], column] = table.loc[[j, i], column].to_numpy()
    elif kind == 2:
        table = pd.concat([table, table.iloc[[i]]])
    elif kind == 3:
        table = table.drop(index=i)
    elif kind == 4:
        table = table.drop(columns=column)
    elif kind == 5:
        table = table.rename(columns={column: case.pick([other, column.lower(), "x"])})
    elif kind == 6:
        table = table.iloc[case.random.permutation(rows)][case.random.permutation(table.columns)]
    elif kind == 7:
        table.loc[i, [column, other]] = table.loc[i, [other, column]].to_numpy()
    else:
        table.iloc[i] = table.iloc[j]
    case.tables[name] = table.to_csv(index=False, sep=case.pick([",", ",", ",", ";"])).encode()
    case.damaged_tables.append(name)


def table_encoding(case: Case) -> None:
    name = case.pick(sorted(case.tables))
    text = case.tables[name].decode()
    changes = [
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-8-sig"),
        lambda: text.replace("taxol", "tax\u00f6l").encode("latin-1"),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.replace("\n", "\r").encode(),
        lambda: text.replace(",", '","', 1).encode(),
        lambda: text.replace("taxol", '"taxol').encode(),
        lambda: text.replace("o", "o\0").encode(),
        lambda: b"",
        lambda: text.split("\n")[0].encode(),
    ]
    case.tables[name] = case.pick(changes)()
    case.damaged_tables.append(name)


OF_ARCHIVES = [archive_bytes, archive_names, archive_bomb, image_kind, image_kind, image_bytes, image_bytes]
OF_TABLES = [table_bytes, table_cells, table_cells, table_encoding]

# --- the test ---


@dataclass(frozen=True)
class Truth:
    tables: dict[str, bytes]
    entries: dict[str, bytes]
    rows: pd.DataFrame
    field_of: dict[str, str]  # by name of an entry


def built_rows(folder: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(path) for path in sorted(folder.glob("data/*/*.parquet"))]
    rows = pd.concat(tables, ignore_index=True)
    rows["image"] = [image["bytes"] for image in rows["image"]]
    return rows


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    folder = tmp_path_factory.mktemp("truth")
    published = write_tiny_plates(folder / "web", [PLATE])
    names = [f"BBBC021_v1_{name}.csv" for name in ("image", "moa", "compound")]
    tables = {name: (folder / "web" / name).read_bytes() for name in names}
    with zipfile.ZipFile(archive_path(folder / "web", PLATE)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    build_dataset(PublishedArchives(folder / "web", **SETTINGS), "bbbc021", folder / "out")
    field_of = {}
    for row in published.to_dict("records"):
        for column in ("DAPI", "Tubulin", "Actin"):
            name = f"{PLATE}/{row[f'Image_FileName_{column}']}"
            field_of[name] = row["Image_FileName_DAPI"].removesuffix(".tif")
    return Truth(tables, entries, built_rows(folder / "out"), field_of)


def write_case(case: Case, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "web").mkdir(parents=True)
    for name, content in case.tables.items():
        (folder / "web" / name).write_bytes(content)
    archive = zipped(list(case.entries.items())) if case.archive is None else case.archive
    archive_path(folder / "web", PLATE).write_bytes(archive)


def check_rows(case: Case, truth: Truth, rows: pd.DataFrame, report: dict) -> None:
    """Compare with the undamaged build by DNA file name."""
    skipped = {problem["field"] for problem in report["plates"][PLATE]["problems"]}
    touched = {truth.field_of[name] for name in case.other_pixels}
    assert not set(rows["field"]) & skipped
    expected = truth.rows[~truth.rows["field"].isin(skipped)]
    if "BBBC021_v1_moa.csv" in case.damaged_tables:  # a line of it that is missing cannot be noticed
        unlabelled = (rows["moa"] == "") & ~rows["is_control"]
        rows = rows.assign(moa=rows["moa"].mask(unlabelled, expected["moa"].max()))
    if "BBBC021_v1_image.csv" in case.damaged_tables:  # nor can a well
        expected = expected[expected["field"].isin(rows["field"])]
    in_place = [part[~part["field"].isin(touched)].reset_index(drop=True) for part in (rows, expected)]
    columns = [column for column in rows.columns if column != "image"]
    pd.testing.assert_frame_equal(in_place[0][columns], in_place[1][columns])
    metadata = truth.rows.drop(columns=PLACE).drop_duplicates("field").set_index("field")
    found = rows.drop(columns=PLACE)
    pd.testing.assert_frame_equal(metadata.loc[found["field"]].reset_index()[found.columns], found)
    if not skipped and not touched and len(rows) == len(truth.rows):
        assert rows["image"].tolist() == truth.rows["image"].tolist()


def fuzz(truth: Truth, seed: int, folder: Path) -> str:
    random = np.random.default_rng([seed, 21])
    case = Case(dict(truth.tables), dict(truth.entries), random)
    for damages in [[OF_ARCHIVES], [OF_ARCHIVES], [OF_TABLES], [OF_ARCHIVES, OF_TABLES]][random.integers(4)]:
        case.pick(damages)(case)
    write_case(case, folder)
    problem = report = None
    try:
        source = PublishedArchives(folder / "web", base_url=NOWHERE, **SETTINGS)
        report = build_dataset(source, "bbbc021", folder / "out")
    except (ValueError, OSError) as error:
        problem = error
    if report is None:
        assert type(problem).__name__ not in ("UnicodeDecodeError", "JSONDecodeError", "LinAlgError"), repr(problem)
        assert re.search(rf"BBBC021_v1_|{PLATE}", str(problem)), f"it names no file: {problem!r}"
        outcome = "error"
    else:
        check_rows(case, truth, built_rows(folder / "out"), report)
        outcome = "skipped" if report["plates"][PLATE]["problems"] else "built"
    assert not (folder / "out/.partial").exists()
    assert {path.name for path in folder.iterdir()} <= {"web", "out"}
    allowed = {*truth.tables, archive_path(folder, PLATE).name, "SHA256SUMS"}
    assert {path.name for path in (folder / "web").iterdir()} <= allowed
    return outcome


def fuzz_all(truth: Truth, seeds: range, folder: Path, monkeypatch) -> dict[str, int]:
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", 0)
    monkeypatch.setattr(build, "dataset_card", lambda report: "")  # a third of the time
    outcomes = dict.fromkeys(("error", "skipped", "built"), 0)
    for seed in seeds:
        try:
            outcomes[fuzz(truth, seed, folder / "case")] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return outcomes


def test_mangled_inputs(truth, tmp_path, monkeypatch):
    outcomes = fuzz_all(truth, range(100), tmp_path, monkeypatch)
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("part", range(19))
def test_many_mangled_inputs(truth, tmp_path, monkeypatch, part):
    outcomes = fuzz_all(truth, range(100 + 100 * part, 200 + 100 * part), tmp_path, monkeypatch)
    assert min(outcomes.values()) > 0, outcomes
