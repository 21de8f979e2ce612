"""Names from tables, files and models as parts of paths: the helper, and every place that takes such names."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import IMAGE_SIZE

from cellfluxrl import CellFluxRLPipeline
from cellfluxrl.data.building.build import build_dataset
from cellfluxrl.data.building.downloads import verified_download
from cellfluxrl.data.building.sources.impa import ImpaCrops
from cellfluxrl.data.building.sources.simulated import SimulatedPlates
from cellfluxrl.data.image_files import images_of_files
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.parquet import ShardWriter
from cellfluxrl.data.push import checked_files
from cellfluxrl.data.schema import cell_features
from cellfluxrl.files import MAX_NAME_BYTES, contained_path, file_name
from cellfluxrl.hub import download
from cellfluxrl.hub.remote_code import write_shims
from cellfluxrl.pipelines.generation import folder as generation_folder
from cellfluxrl.pipelines.generation.controls import Controls
from cellfluxrl.pipelines.generation.run import GenerationSettings, generate_images
from cellfluxrl.pipelines.generation.treatments import Treatment

HOSTILE = [
    "",
    ".",
    "..",
    "../escaped",
    "..\\escaped",
    "/escaped",
    "a/../../escaped",
    "C:escaped",
    "a\0b",
    "a\nb",
    "a\u202eb",
    "con",
    "NUL.txt",
    "ends in a dot.",
    "ends in a space ",
    "x" * (MAX_NAME_BYTES + 1),
    "\U0001f600" * 64,
]


# --------------------------------------------------------------------------------------------------------------------
# The helper
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_cannot_be_one_is_named_with_the_reason(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name of a file or folder in") as error:
        contained_path(tmp_path, "train", name)
    assert repr(name) in str(error.value)


def test_no_name_is_not_the_folder_itself(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        contained_path(tmp_path)


@given(st.lists(st.text() | st.sampled_from(HOSTILE), min_size=1, max_size=3))
def test_no_names_lead_out_of_the_folder(names):
    try:
        path = contained_path("/folder", *names)
    except ValueError:
        return
    assert os.path.normpath(path) == str(path)
    assert Path(path).parts == ("/", "folder", *names)


@given(st.text() | st.sampled_from(HOSTILE), st.integers(1, 200))
def test_a_name_that_was_made_can_be_one(text, max_bytes):
    name = file_name(text, max_bytes)
    assert contained_path("/folder", name).parent == Path("/folder")
    assert len(name.encode()) <= max(max_bytes, len("unnamed"))


@pytest.mark.parametrize("text", ["taxol", "Cdk1_2_inhibitor", "ALLN-1.5", "ß-estradiol"])
def test_a_name_that_is_good_is_kept(text):
    assert file_name(text) == text


def test_a_link_that_leads_out_is_followed_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "folder/link").symlink_to(tmp_path)
    (tmp_path / "folder/near").symlink_to("inside")
    with pytest.raises(ValueError, match=r"'link/new' cannot be .*: a link leads out"):
        contained_path(tmp_path / "folder", "link", "new")
    assert contained_path(tmp_path / "folder", "link", "new", follow_links=True) == tmp_path / "folder/link/new"
    assert contained_path(tmp_path / "folder", "near", "new") == tmp_path / "folder/near/new"
    (tmp_path / "linked").symlink_to("folder")
    assert contained_path(tmp_path / "linked", "new") == tmp_path / "linked/new"


# --------------------------------------------------------------------------------------------------------------------
# Every place that takes names
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder in which something may write, with files of somebody else around it."""
    for name in ("canary", "escaped/canary", "escaped-00000.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("somebody's work")
    return tmp_path / "own"


def around(place: Path) -> dict[str, bytes]:
    files = [path for path in place.parent.rglob("*") if place not in (path, *path.parents)]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in files}


def test_generated_images_of_any_compound_and_control_stay_in_their_folder(place, pipeline):
    before = around(place)
    image = np.random.default_rng(0).random((3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    treatments = [Treatment(name, smiles="CCO") for name in HOSTILE]
    rows = pd.DataFrame({"control": ["../../escaped.png", "\U0001f600" * 99], "control_sha256": ["a", "b"]})
    table = generate_images(
        pipeline,
        Controls(rows, lambda row: image, []),
        treatments,
        pipeline.encode_condition(len(treatments), smiles="CCO"),
        GenerationSettings(num_inference_steps=1, best_of_n=1, format="npy"),
        place,
        {},
    )
    assert len(set(table["file"])) == len(table) == 2 * len(HOSTILE)
    assert {str(path.relative_to(place)) for path in place.glob("images/*/*")} == set(table["file"])
    assert around(place) == before


def test_a_record_of_a_batch_names_files_of_its_folder_only(place):
    table = pd.DataFrame({"file": ["images/taxol/1.png", "../canary"]})
    generation_folder.record_batch(place, 0, table)
    with pytest.raises(ValueError, match=r"'\.\.' cannot be the name"):
        generation_folder.read_batch(place, 0)


def test_a_table_of_images_names_files_of_its_folder_only(place):
    (place / "sub").mkdir(parents=True)
    image = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    for path in (place / "sub/in.npy", place.parent / "out.npy"):
        np.save(path, image)
    (place / "linked").symlink_to(place / "sub")
    names = ["sub/in.npy", "linked/in.npy", "./sub/in.npy", "../out.npy", str(place.parent / "out.npy"), "sub\\in.npy"]
    table = place / "table.csv"
    table.write_text("file,moa\n" + "".join(f'"{name}",DMSO\n' for name in names))
    images = images_of_files(place, ("dna", "tubulin", "actin"), table=table)
    assert images.rows["source"].tolist() == names[:3]
    assert [reason.startswith(name) for reason, name in zip(images.skipped, names[3:], strict=True)] == [True] * 3
    assert all("cannot be the name" in reason for reason in images.skipped)


def source_with_plate(name: str) -> SimulatedPlates:
    """Two plates, of which one has this name."""
    source = SimulatedPlates(image_size=16, cells_per_moa=1, controls_per_plate=2, num_plates=2)
    rows, seed = source._plates.pop("simulated_0")
    source._plates[name] = rows.assign(plate=name), seed
    source.fields = source.fields.replace({"plate": {"simulated_0": name}})
    return source


@pytest.mark.parametrize("plate", ["../escaped", "/escaped", "a/..", "a\0b", "x" * 300])
def test_files_of_a_build_are_not_named_after_any_plate(place, plate):
    before = around(place)
    with pytest.raises(ValueError, match="cannot be the name"):
        build_dataset(source_with_plate(plate), "simulated", place)
    assert around(place) == before


def test_shards_of_a_data_set_stay_in_their_folder(place):
    before = around(place)
    writer = ShardWriter(place, "../escaped", cell_features(("dna", "tubulin", "actin"), 8, published=True))
    with pytest.raises(ValueError, match="cannot be the name"):
        writer.write(pd.DataFrame({"plate": ["../escaped"]}), [b""])
    assert around(place) == before


def test_the_report_of_an_earlier_build_names_files_of_its_folder_only(place):
    build_dataset(source_with_plate("p"), "simulated", place)
    path = place / "build_report.json"
    report = json.loads(path.read_text())
    report["plates"]["p"]["files"] = {"data/../../escaped-00000.parquet": 1}
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"'\.\.' cannot be the name"):
        build_dataset(source_with_plate("p"), "simulated", place)
    report["plates"]["p"]["files"] = {"data/../p-00000.parquet": 1}
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"'\.\.' cannot be the name"):
        checked_files(place)


def test_decoded_images_are_not_named_after_any_fingerprint(place, simulated_cells):
    before = around(place)
    table = simulated_cells["test"].select(range(2)).flatten_indices().data.table
    described = {**json.loads(table.schema.metadata[b"huggingface"]), "fingerprint": "x/../../escaped"}
    place.mkdir()
    path = str(place / "cells.arrow")
    with pa.ipc.new_stream(path, table.schema.with_metadata({"huggingface": json.dumps(described)})) as stream:
        stream.write_table(table)
    with pytest.raises(ValueError, match=r"'images-x/../../escaped-.* cannot be the name"):
        open_images(datasets.Dataset.from_file(path))
    assert around(place) == before


@pytest.fixture
def model(place, pipeline) -> Path:
    """A saved pipeline whose index names a component that lies outside of its folder."""
    pipeline.save_pretrained(place)
    shutil.copytree(place / "unet", place.parent / "escaped/unet")
    index = json.loads((place / "model_index.json").read_text())
    index["../escaped/unet"] = index["unet"]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


@pytest.mark.parametrize(
    "use", [CellFluxRLPipeline.from_pretrained, write_shims, lambda f: CellFluxRLPipeline.push_folder(f, "a/b")]
)
def test_components_of_a_pipeline_lie_in_its_folder(model, use):
    before = around(model)
    with pytest.raises(ValueError, match=r"'\.\.(/escaped/unet)?' cannot be the name"):
        use(model)
    assert around(model) == before


def test_a_pipeline_of_the_hub_names_folders_of_its_own_only(tmp_path, monkeypatch):
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"../escaped": ["cellfluxrl.models.unet", "CellFluxUNet2DModel"]}))
    monkeypatch.setattr(download, "hf_hub_download", lambda *args, **kwargs: str(index))
    with pytest.raises(ValueError, match=r"'\.\./escaped' cannot be the name"):
        download.download_pipeline("owner/name")


def test_crops_of_an_index_lie_in_their_folder(place):
    place.mkdir()
    table = place / "index.csv"
    columns = "SAMPLE_KEY,BATCH,CPD_NAME,SMILES,DOSE,ANNOT,STATE,SPLIT"
    table.write_text(f"{columns}\nWeek1_../../escaped_1_1_1,Week1,DMSO,CS(C)=O,0,DMSO,control,train\n")
    with pytest.raises(ValueError, match="SAMPLE_KEY"):
        ImpaCrops(place, table)


@pytest.mark.parametrize("name", ["..%2Fescaped", "%2Fescaped", "a%00", "con", "x" * 300])
def test_a_download_is_not_named_after_any_address(place, name):
    before = around(place)
    with pytest.raises(ValueError, match="does not end in a file name that can be used"):
        verified_download(f"http://127.0.0.1:9/{name}", place, {})
    assert around(place) == before
