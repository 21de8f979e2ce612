"""Data sets pushed to a Hub on loopback and loaded from it, each by a process of its own, as users do."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from hub_server import HubServer, HubUser, Request

from cellfluxrl.data.card import ORIGINS, _size_category, dataset_card
from cellfluxrl.data.info import count_cells
from cellfluxrl.data.push import checked_files, push_dataset
from cellfluxrl.data.schema import cell_features, channel_names_of

THREE = ("dna", "tubulin", "actin")
FIVE = ("dna", "er", "rna", "agp", "mito")
SIZE = 12


def write_plate(folder: Path, split: str, plate: str, names: tuple[str, ...], rows: int, seed: int) -> dict[str, int]:
    random = np.random.default_rng(seed)
    cells = []
    for i in range(rows):
        treated = i % 3 == 2
        image = random.integers(0, 256, (len(names), SIZE, SIZE)).astype(np.uint8)
        cells.append(
            {
                "image": np.ascontiguousarray(image[::-1].transpose(1, 2, 0)) if len(names) == 3 else image,
                "compound": "taxol" if treated else "DMSO",
                "smiles": "C",
                "concentration": 0.3 if treated else 0.0,
                "moa": "Microtubule stabilizers" if treated else "DMSO",
                "plate": plate,
                "well": "B02",
                "site": 1,
                "replicate": 1,
                "field": f"{plate}_s1",
                "cell_id": i,
                "x": 1.5,
                "y": float("nan"),
                "is_control": not treated,
                "split": split,
            }
        )
    name = f"data/{split}/{plate}-00000.parquet"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    features = cell_features(names, SIZE, published=True)
    datasets.Dataset.from_list(cells, features=features).to_parquet(str(folder / name))
    return {name: rows}


def write_dataset(folder: Path, names: tuple[str, ...] = THREE, source: str = "simulated", **described: str) -> Path:
    plates = {"plate_1": ("train", 7), "plate_2": ("train", 5), "plate_3": ("test", 6)}
    report = {
        "complete": True,
        "source": source,
        "channel_names": list(names),
        "image_size": SIZE,
        "settings": {"crop_size": SIZE, "nucleus_diameter": 8.0},
        "split": {"scheme": "plate", "held_out": ["plate_3"]},
        "plates": {
            plate: {"fields": 1, "cells": rows, "files": write_plate(folder, split, plate, names, rows, seed)}
            for seed, (plate, (split, rows)) in enumerate(plates.items())
        },
        **described,
    }
    report["counts"] = json.loads(count_cells(folder).to_json(orient="records"))
    (folder / "build_report.json").write_text(json.dumps(report))
    (folder / "README.md").write_text(dataset_card(report))
    (folder / "contact_sheet.png").write_bytes(b"a picture")
    (folder / ".lock").touch()
    (folder / "downloads").mkdir()
    (folder / "downloads" / "archive.zip").write_bytes(b"gigabytes")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("built") / "three")


@pytest.fixture
def own_copy(built, tmp_path):
    """A folder that a test may spoil."""
    folder = tmp_path / "copy"
    for path in built.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(built)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


class User(HubUser):
    def push(self, folder: Path, repo_id: str, fails: bool = False, **options: object) -> str:
        code = "from cellfluxrl.data.push import push_dataset\nresult = push_dataset({!r}, {!r}, **{})"
        return self(code.format(str(folder), repo_id, options), fails)

    def load(self, name: str, fails: bool = False, **options: object) -> Any:
        """Channel names and a digest of the rows, by split."""
        return self(LOAD.format(name=name, options=options), fails)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def owner(hub, tmp_path_factory):
    """A user with a token."""
    user = User(hub, tmp_path_factory.mktemp("owner"), hub.token)
    yield user
    user.process.kill()
    user.process.communicate()


@pytest.fixture(scope="module")
def stranger(hub, tmp_path_factory):
    """A user without an account, who shares no cache with the owner."""
    user = User(hub, tmp_path_factory.mktemp("stranger"), None)
    yield user
    user.process.kill()
    user.process.communicate()


@pytest.fixture
def repo_id(request):
    """Each test has its own repository."""
    return "org/" + re.sub(r"[^a-z]+", "-", request.node.name).strip("-")[:80]


def published(hub: HubServer, repo_id: str) -> set[str]:
    return set(hub.repos[f"datasets/{repo_id}"].files) - {".gitattributes"}


def commits(hub: HubServer, repo_id: str) -> int:
    """How many there are, but for the one that makes a repository."""
    return len(hub.repos[f"datasets/{repo_id}"].commits) - 1


def uploads(hub: HubServer, repo_id: str, since: int = 0) -> list[Request]:
    return [r for r in hub.requests[since:] if r.method == "PUT" and r.path.startswith(f"/lfs/datasets/{repo_id}/")]


# --- what is published, and what others load ---

LOAD = """
import hashlib, datasets

def digest(rows):
    result = hashlib.sha256()
    for row in rows:
        image = row.pop("image")
        result.update(image.tobytes() if hasattr(image, "tobytes") else bytes(sum(sum(image, []), [])))
        result.update(repr(sorted(row.items())).encode())
    return result.hexdigest()

cells = datasets.load_dataset({name!r}, **{options})
result = {{split: [rows.features["image"].id, digest(rows)] for split, rows in cells.items()}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [THREE, FIVE], ids=["three", "five"])
def test_what_is_pushed_is_what_others_load(hub, owner, stranger, repo_id, built, tmp_path, names):
    folder = built if names is THREE else write_dataset(tmp_path / "five", names)
    assert owner.push(folder, repo_id) == f"{hub.endpoint}/datasets/{repo_id}"
    assert published(hub, repo_id) == {
        "README.md",
        "build_report.json",
        "contact_sheet.png",
        "data/train/plate_1-00000.parquet",
        "data/train/plate_2-00000.parquet",
        "data/test/plate_3-00000.parquet",
    }
    assert commits(hub, repo_id) == 1

    expected = {split: [",".join(names), digest(folder, split)] for split in ("train", "test")}
    assert stranger.load(repo_id) == expected
    assert stranger.load(repo_id, streaming=True) == expected
    assert stranger.load(str(folder)) == expected


def digest(folder: Path, split: str) -> str:
    """The same as the clients compute, from the Parquet files alone, without the card."""
    result = hashlib.sha256()
    files = sorted(str(path) for path in folder.glob(f"data/{split}/*.parquet"))
    for file in files:
        for row in datasets.Dataset.from_parquet(file, cache_dir=str(folder.parent / "cache")):
            image = row.pop("image")
            result.update(image.tobytes() if hasattr(image, "tobytes") else np.array(image, np.uint8).tobytes())
            result.update(repr(sorted(row.items())).encode())
    return result.hexdigest()


@pytest.mark.parametrize("names", [THREE, FIVE], ids=["three channels", "five channels"])
def test_channel_names_are_in_the_parquet_files_and_in_the_card(tmp_path, names):
    folder = write_dataset(tmp_path / "cells", names)
    file = str(folder / "data/train/plate_1-00000.parquet")
    alone = datasets.Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache"))
    assert channel_names_of(alone) == names
    assert alone.features == cell_features(names, SIZE, published=True)
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    from_card = datasets.Features._from_yaml_list(header["dataset_info"]["features"])
    assert from_card["image"].id == ",".join(names)


# --- interruptions ---


@pytest.mark.slow
def test_a_hub_that_fails_twice_is_asked_again(hub, owner, repo_id, built):
    hub.fail(f"PUT .*{repo_id}/", status=500, times=2)
    owner.push(built, repo_id)
    assert sorted(request.status for request in uploads(hub, repo_id)) == [200, 200, 200, 200, 500, 500]
    assert commits(hub, repo_id) == 1


@pytest.mark.slow
def test_a_push_goes_on_where_the_connection_broke(hub, owner, repo_id, built):
    broken = hashlib.sha256((built / "data/test/plate_3-00000.parquet").read_bytes()).hexdigest()
    hub.fail(f"PUT .*{repo_id}/{broken}", cut=True, times=6)
    error = owner.push(built, repo_id, fails=True)
    assert error.startswith("ConnectionError: the Hub cannot be reached")
    assert "run the same command again: it resumes" in error
    assert published(hub, repo_id) == set(), "half of a data set was published"
    arrived = {request.path for request in uploads(hub, repo_id) if request.status == 200}
    assert len(arrived) == 3  # the other Parquet files, and the picture

    before = len(hub.requests)
    owner.push(built, repo_id)
    assert [request.path for request in uploads(hub, repo_id, since=before)] == [f"/lfs/datasets/{repo_id}/{broken}"]
    assert len(published(hub, repo_id)) == 6
    assert commits(hub, repo_id) == 1


@pytest.mark.slow
def test_a_push_whose_commit_failed_is_repeated_without_sending_data(hub, owner, repo_id, built):
    hub.fail(f"POST .*{repo_id}/commit/", status=500)
    assert "ConnectionError: the Hub failed with status 500" in owner.push(built, repo_id, fails=True)
    assert published(hub, repo_id) == set()
    before = len(hub.requests)
    owner.push(built, repo_id)
    assert uploads(hub, repo_id, since=before) == []
    assert len(published(hub, repo_id)) == 6
    owner.push(built, repo_id)
    assert commits(hub, repo_id) == 1, "nothing changed, and yet there is a new commit"


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one(hub, owner, repo_id, own_copy):
    owner.push(own_copy, repo_id)
    report = json.loads((own_copy / "build_report.json").read_text())
    del report["plates"]["plate_2"]
    report["counts"] = [row for row in report["counts"] if row["plate"] != "plate_2"]
    (own_copy / "data/train/plate_2-00000.parquet").unlink()
    (own_copy / "build_report.json").write_text(json.dumps(report))
    (own_copy / "README.md").write_text(dataset_card(report))
    owner.push(own_copy, repo_id)
    assert published(hub, repo_id) == set(checked_files(own_copy))
    assert commits(hub, repo_id) == 2


# --- who may ---


@pytest.mark.slow
def test_a_private_data_set_needs_a_token(hub, owner, stranger, repo_id, built):
    owner.push(built, repo_id, private=True)
    assert hub.repos[f"datasets/{repo_id}"].private
    assert "DatasetNotFoundError" in stranger.load(repo_id, fails=True)
    assert set(owner.load(repo_id)) == {"train", "test"}


@pytest.mark.slow
def test_a_public_repository_is_not_taken_for_a_private_one(owner, repo_id, built):
    owner.push(built, repo_id)
    assert f"{repo_id} is there already and is public" in owner.push(built, repo_id, private=True, fails=True)


@pytest.mark.slow
def test_nothing_is_made_without_a_token_that_may_write(hub, owner, stranger, repo_id, built):
    assert "PermissionError: there is no access token" in stranger.push(built, repo_id, fails=True)
    error = stranger.push(built, repo_id, token="hf_wrong", fails=True)
    assert "PermissionError: the Hub does not accept the access token (401)" in error
    hub.fail("POST /api/repos/create", status=403)
    assert f"PermissionError: the access token may not write to {repo_id}" in owner.push(built, repo_id, fails=True)
    assert f"datasets/{repo_id}" not in hub.repos


@pytest.mark.slow
def test_nothing_is_made_on_a_hub_that_refuses_fails_or_is_away(hub, owner, repo_id, built):
    hub.fail("POST /api/validate-yaml", status=400)
    assert "ValueError: the Hub refuses" in owner.push(built, repo_id, fails=True)
    hub.fail("POST /api/repos/create", status=503)
    assert "ConnectionError: the Hub failed with status 503" in owner.push(built, repo_id, fails=True)
    hub.fail("POST /api/repos/create", cut=True)
    assert "ConnectionError: the Hub cannot be reached" in owner.push(built, repo_id, fails=True)
    assert f"datasets/{repo_id}" not in hub.repos


@pytest.mark.parametrize("name", ["cells", "org/cells/more", "datasets/org/cells", "org/my cells", "org/", "/x", ""])
def test_a_malformed_repository_name_is_refused(built, name):
    with pytest.raises(ValueError, match="must be named 'owner/name'"):
        push_dataset(built, name)


# --- what is not published ---


def change_report(folder, **changes):
    path = folder / "build_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_card(folder, old, new):
    path = folder / "README.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_complete_folder_is_listed_without_what_is_not_part_of_it(built):
    assert checked_files(built) == [
        "README.md",
        "build_report.json",
        "contact_sheet.png",
        "data/test/plate_3-00000.parquet",
        "data/train/plate_1-00000.parquet",
        "data/train/plate_2-00000.parquet",
    ]


PLATE = "data/train/plate_1-00000.parquet"
DAMAGES = {
    "unfinished": (lambda f: change_report(f, complete=False), "has not finished"),
    "no report": (lambda f: (f / "build_report.json").unlink(), "has no build_report.json"),
    "cut report": (lambda f: (f / "build_report.json").write_text('{"comp'), "build_report.json cannot be read"),
    "no plates": (lambda f: change_report(f, plates={}), "lists no Parquet files"),
    "no such file": (lambda f: (f / PLATE).unlink(), "plate_1-00000.parquet is missing"),
    "cut file": (lambda f: (f / PLATE).write_bytes((f / PLATE).read_bytes()[:900]), "plate_1.*cannot be read"),
    "other rows": (
        lambda f: change_report(f, plates={"plate_1": {"files": {PLATE: 8}}}),
        "plate_1-00000.parquet has 7 rows, build_report.json lists 8",
    ),
    "outside": (lambda f: change_report(f, plates={"p": {"files": {"../x.parquet": 1}}}), "not of the form"),
    "unlisted": (lambda f: (f / "data/train/more.parquet").touch(), "does not list: .'data/train/more.parquet'"),
    "no card": (lambda f: (f / "README.md").unlink(), "README.md is missing"),
    "placeholder": (
        lambda f: change_card(f, "Apache License 2.0.", "[More Information Needed]"),
        r"placeholder '\[More Information Needed\]'",
    ),
    "template": (lambda f: change_card(f, "# Simulated cells", "# {{ title }}"), "placeholder '{{ title }}'"),
    "no licence": (lambda f: change_card(f, "license: apache-2.0\n", ""), "names no licence"),
    "unknown licence": (lambda f: change_card(f, "apache-2.0", "unknown"), "names no licence"),
    "no configs": (lambda f: change_card(f, "configs:", "others:"), "has no `configs:`"),
    "broken header": (lambda f: change_card(f, "license: ", "license: [: "), "cannot be read as a card"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_incomplete_data_set_is_refused(own_copy, damage, message):
    damage(own_copy)
    with pytest.raises(ValueError, match=message):
        push_dataset(own_copy, "org/cells", token="hf_unused")


# --- the card ---


def read_card(tmp_path, **options) -> tuple[dict, str]:
    text = (write_dataset(tmp_path / "cells", **options) / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


@pytest.mark.parametrize("source", ORIGINS)
def test_every_source_has_a_card_with_its_terms(tmp_path, source):
    described = {"license": "cc-by-4.0", "citation": "Me (2024)."} if source == "folder" else {}
    header, body = read_card(tmp_path, source=source, **described)
    assert header["license"] == {"folder": "cc-by-4.0", "simulated": "apache-2.0"}.get(source, "other")
    assert header["size_categories"] == ["n<1K"]
    splits = header["configs"][0]["data_files"]
    assert splits == [{"split": s, "path": f"data/{s}/*.parquet"} for s in ("train", "test")]
    if source in ("bbbc021", "impa", "crops"):
        assert header["license_link"] == "https://bbbc.broadinstitute.org/BBBC021"
        assert "Caie et al." in body
        assert "Ljosa" in body
        assert "accept them there" in body
    assert ("Me (2024)." in body) == (source == "folder")
    assert checked_files(tmp_path / "cells")[0] == "README.md"


def test_a_folder_without_a_licence_can_be_built_but_not_published(tmp_path):
    folder = write_dataset(tmp_path / "cells", source="folder")
    with pytest.raises(ValueError, match=r"names no licence.*--license"):
        push_dataset(folder, "org/cells", token="hf_unused")


def test_the_card_says_what_the_colours_are_and_counts_the_cells(tmp_path):
    header, body = read_card(tmp_path)
    assert [row["num_examples"] for row in header["dataset_info"]["splits"]] == [12, 6]
    for line in (
        "| red | actin |",
        "| green | tubulin |",
        "| blue | dna |",
        "| train | 2 | 9 | 3 |",
        "| test | plate_3 | 4 | 2 |",
        "| taxol | Microtubule stabilizers | 3 | 2 | 0.3 |",
        "- Split: by plate; the test plates are plate_3.",
    ):
        assert f"\n{line}\n" in body


def test_a_card_has_only_the_splits_that_there_are(tmp_path):
    report = json.loads((write_dataset(tmp_path / "cells") / "build_report.json").read_text())
    report["counts"] = [row for row in report["counts"] if row["split"] == "train"]
    header = yaml.safe_load(dataset_card(report).split("---\n")[1])
    assert [files["split"] for files in header["configs"][0]["data_files"]] == ["train"]


def test_names_with_bars_do_not_break_the_tables(tmp_path):
    report = json.loads((write_dataset(tmp_path / "cells") / "build_report.json").read_text())
    report["counts"][0]["compound"] = "a|b"
    assert r"| a\|b |" in dataset_card(report)


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="unknown source 'bbbc22'; did you mean 'bbbc021'"):
        dataset_card({"source": "bbbc22"})


@pytest.mark.parametrize(
    ("cells", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (123_456, "100K<n<1M"), (2_200_000, "1M<n<10M")],
)
def test_sizes_are_in_the_hub_s_words(cells, category):
    assert _size_category(cells) == category
