"""Real crops of BBBC021, where they are present, and folders and files that no data set can be made from."""

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cellfluxrl import BBBC021, CompoundEncoder, ControlTreatedPairs
from cellfluxrl.data.building.normalization import (
    apply_stretch,
    intensity_histogram,
    normalize_plate,
    plate_stretch,
    resize_crops,
)
from cellfluxrl.data.building.sources.crops import ARRAYS
from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features

IMAGE_SIZE = 16
CELLS_PER_COMPOUND = 25


def build(data_dir, cache_dir, **config) -> datasets.DatasetDict:
    builder = BBBC021(
        config_name="crops", data_dir=str(data_dir), cache_dir=str(cache_dir), image_size=IMAGE_SIZE, **config
    )
    builder.download_and_prepare()
    return builder.as_dataset()


def random_plate(compounds=("DMSO", "taxol", "taxol"), seed=0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    count = len(compounds)
    return {
        "image": random.integers(0, 4096, (count, 20, 20, 3)).astype(np.uint16),
        "well": np.array(["B02"] * count),
        "site": np.ones(count, dtype=int),
        "fov": np.array(["field"] * count),
        "cell": np.arange(count),
        "compound": np.array(compounds),
        "concentration": np.array([0.0 if name == CONTROL else 0.3 for name in compounds]),
        "replicate": np.ones(count, dtype=int),
    }


@pytest.fixture
def crops_dir(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"plate_{number}.npz", **random_plate(seed=number))
    return folder


# --- real cells ---


@pytest.fixture(scope="module")
def real_crops(bbbc021_dir, tmp_path_factory):
    """The first cells of each compound on three real plates, as a folder of crops."""
    folder = tmp_path_factory.mktemp("real_crops")
    for plate in ("Week4_27481", "Week4_27801", "Week4_27821"):
        with np.load(bbbc021_dir / f"{plate}.npz") as archive:
            compound = archive["compound"]
            rows = np.concatenate([np.flatnonzero(compound == c)[:CELLS_PER_COMPOUND] for c in np.unique(compound)])
            np.savez(folder / f"{plate}.npz", **{field: archive[field][rows] for field in ARRAYS})
    return folder


@pytest.fixture(scope="module")
def real_cells(real_crops, tmp_path_factory):
    return build(real_crops, tmp_path_factory.mktemp("real_cells"))


def test_real_cells_have_the_schema(real_cells):
    assert real_cells["train"].features == cell_features(CHANNEL_NAMES, IMAGE_SIZE)
    images = real_cells["train"].with_format("numpy")["image"][:]
    assert images.shape == (len(real_cells["train"]), 3, IMAGE_SIZE, IMAGE_SIZE)
    assert (images.min(), images.max()) == (0, 255)


def test_a_data_set_says_what_it_is_and_whose(crops_dir, tmp_path):
    real = BBBC021(config_name="crops", data_dir=str(crops_dir), cache_dir=str(tmp_path / "crops")).info
    assert "Caie et al." in real.citation
    assert "apply to these crops" in real.license
    simulated = BBBC021(config_name="simulated", cache_dir=str(tmp_path / "simulated")).info
    assert "computed, not photographed" in simulated.description
    assert "Caie" not in simulated.citation


def test_the_last_treated_plate_is_held_out(real_cells):
    assert set(real_cells["test"]["plate"]) == {"Week4_27821"}
    assert set(real_cells["train"]["plate"]) == {"Week4_27481", "Week4_27801"}
    for name, split in real_cells.items():
        assert set(split["split"]) == {name}


def test_every_real_cell_is_there_once_with_what_the_file_says(real_crops, real_cells):
    for plate, split in (("Week4_27801", "train"), ("Week4_27821", "test")):
        cells = real_cells[split].remove_columns("image").to_pandas().query("plate == @plate")
        with np.load(real_crops / f"{plate}.npz") as archive:
            assert cells["well"].tolist() == archive["well"].tolist()
            assert cells["compound"].tolist() == archive["compound"].tolist()
            np.testing.assert_allclose(cells["concentration"], archive["concentration"], rtol=1e-6)
    assert set(cells["moa"]) == {CONTROL, "Protein synthesis"}
    assert (cells["is_control"] == (cells["compound"] == CONTROL)).all()


def test_real_cells_can_be_paired(real_cells):
    pairs = ControlTreatedPairs(real_cells["train"])
    assert set(pairs.conditions["compound"]) == {"cyclohexamide"}
    assert len(pairs) == CELLS_PER_COMPOUND


def test_fields_join_the_image_set_s_own_index(bbbc021_dir, real_cells):
    index = pd.read_csv(bbbc021_dir / "BBBC021_v1_image.csv.gz")
    index["field"] = index["Image_FileName_DAPI"].str.removesuffix(".tif")
    for split in real_cells.values():
        cells = split.remove_columns("image").to_pandas()
        joined = cells.merge(index, on="field", validate="many_to_one")
        assert len(joined) == len(cells)
        for own, theirs in (
            ("plate", "Image_Metadata_Plate_DAPI"),
            ("well", "Image_Metadata_Well_DAPI"),
            ("compound", "Image_Metadata_Compound"),
            ("replicate", "Replicate"),
        ):
            assert (joined[own] == joined[theirs]).all(), own
        np.testing.assert_allclose(joined["concentration"], joined["Image_Metadata_Concentration"], rtol=1e-6)


def test_compounds_and_mechanisms_are_those_of_the_image_set(bbbc021_dir):
    published = (
        pd.read_csv(bbbc021_dir / "BBBC021_v1_moa.csv").drop_duplicates("compound").set_index("compound")["moa"]
    )
    own = known_compounds()
    assert own["moa"].to_dict() == published[own.index].to_dict()
    assert set(own["moa"]) == {CONTROL, *MOAS}


def test_morgan_counts_are_cellflux_s_for_all_compounds(bbbc021_dir):
    counts = pd.read_csv(bbbc021_dir / "morgan_counts_r2_1024.csv", index_col=0)
    assert len(counts) == 35
    assert set(counts.index) == set(known_compounds().index)
    np.testing.assert_array_equal(CompoundEncoder().encode(counts.index.tolist()).numpy(), counts.to_numpy())


# --- normalisation ---


def test_a_plate_is_stretched_between_percentiles_of_all_its_cells():
    random = np.random.default_rng(0)
    dim, bright = random.integers(0, 400, (40, 3, 8, 8)), random.integers(1600, 4000, (40, 3, 8, 8))
    crops = np.concatenate([dim, bright]).astype(np.uint16)
    plate = apply_stretch(crops, plate_stretch(intensity_histogram(crops)))
    assert plate.min() == 0
    assert plate.max() == 1
    assert (plate[40:] == 1).mean() < 0.01
    assert plate[:40].max() < plate[40:].min()


def test_the_stretch_is_one_for_all_cells_of_a_channel():
    crops = np.random.default_rng(0).integers(0, 4096, (30, 3, 8, 8)).astype(np.uint16)
    roots = np.sqrt(crops[:, 1])
    low, high = np.percentile(roots, [0.5, 99.7])
    expected = np.round(255 * np.clip((roots - low) / (high - low), 0, 1))
    np.testing.assert_allclose(normalize_plate(crops, 8)[:, 1], expected, atol=1)


@given(
    arrays(np.uint16, st.tuples(st.integers(1, 9), st.just(2), st.integers(1, 5), st.integers(1, 5))),
    st.integers(1, 4),
)
def test_percentiles_are_numpy_s(crops, scale):
    crops = crops // scale
    stretch = plate_stretch(intensity_histogram(crops))
    for channel in (0, 1):
        roots = np.sqrt(crops[:, channel].astype(np.float32))
        low, high = np.percentile(roots, [0.5, 99.7])
        expected = np.clip((roots - low) / max(high - low, 1e-6), 0, 1)
        if high - low > 1e-3:
            np.testing.assert_allclose(apply_stretch(crops, stretch)[:, channel], expected, atol=1e-3)


def test_a_dark_channel_stays_dark():
    assert not normalize_plate(np.zeros((2, 3, 4, 4), dtype=np.uint16), 4).any()


def test_crops_are_resized_in_place_and_keep_their_range():
    crops = np.zeros((2, 3, 20, 20), dtype=np.float32)
    crops[:, :, :10] = 1
    smaller = resize_crops(crops, 10)
    assert smaller.shape == (2, 3, 10, 10)
    np.testing.assert_allclose(smaller[:, :, :4], 1, atol=0.01)
    np.testing.assert_allclose(smaller[:, :, 6:], 0, atol=0.01)
    assert resize_crops(smaller, 10) is smaller


# --- splits ---


def test_plates_can_be_held_out_by_name(crops_dir, tmp_path):
    cells = build(crops_dir, tmp_path / "cache", held_out=("plate_0", "plate_1"))
    assert set(cells["test"]["plate"]) == {"plate_0", "plate_1"}
    assert set(cells["train"]["plate"]) == {"plate_2"}


def test_a_plate_of_controls_is_never_the_one_held_out(crops_dir, tmp_path):
    np.savez(crops_dir / "plate_9.npz", **random_plate(("DMSO", "DMSO")))
    assert set(build(crops_dir, tmp_path / "cache")["test"]["plate"]) == {"plate_2"}


def test_crops_that_changed_in_place_are_read_again(crops_dir, tmp_path):
    before = build(crops_dir, tmp_path / "cache")
    np.savez(crops_dir / "plate_0.npz", **random_plate(("DMSO", "DMSO", "taxol", "taxol"), seed=9))
    after = build(crops_dir, tmp_path / "cache")
    assert len(after["train"]) == len(before["train"]) + 1


def test_a_single_treated_plate_is_not_held_out(tmp_path):
    np.savez(tmp_path / "only.npz", **random_plate())
    assert set(build(tmp_path, tmp_path / "cache")) == {"train"}


def test_an_unknown_plate_is_refused_with_the_nearest(crops_dir, tmp_path):
    with pytest.raises(ValueError, match=r"unknown plate 'plate_11'; did you mean 'plate_1'\?"):
        build(crops_dir, tmp_path / "cache", held_out=("plate_11",))


# --- folders and files that cannot be used ---


def test_a_folder_has_to_be_named():
    with pytest.raises(ValueError, match="needs data_dir"):
        BBBC021(config_name="crops").download_and_prepare()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        build(tmp_path / "nowhere", tmp_path / "cache")


def test_a_folder_without_plates_says_what_it_holds(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no PLATE.npz files; it holds: nothing"):
        build(tmp_path / "empty", tmp_path / "cache")
    (tmp_path / "empty" / "cells.h5").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds: cells.h5"):
        build(tmp_path / "empty", tmp_path / "cache")


@pytest.mark.parametrize("held_out", [(), ("plate_0",)], ids=["default split", "named split"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no archive" * 9])
def test_a_file_that_cannot_be_read_is_named(crops_dir, tmp_path, damage, held_out):
    path = crops_dir / "plate_1.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"plate_1.npz cannot be read as a plate of crops"):
        build(crops_dir, tmp_path / "cache", held_out=held_out)


def test_bytes_flipped_inside_a_file_are_noticed(crops_dir, tmp_path):
    path = crops_dir / "plate_1.npz"
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"plate_1.npz cannot be read as a plate of crops"):
        build(crops_dir, tmp_path / "cache")


@pytest.mark.parametrize("field", ARRAYS)
def test_a_missing_field_is_named(crops_dir, tmp_path, field):
    plate = random_plate()
    plate.pop(field)
    np.savez(crops_dir / "plate_1.npz", **plate)
    with pytest.raises(ValueError, match=rf"plate_1.npz lacks \['{field}'\]"):
        build(crops_dir, tmp_path / "cache")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", np.zeros((3, 20, 20), np.uint16), r"must have shape \(N, H, W, 3\) .*got \(3, 20, 20\)"),
        ("image", np.zeros((3, 3, 20, 20), np.uint16), r"must have shape \(N, H, W, 3\)"),
        ("image", np.zeros((0, 20, 20, 3), np.uint16), "with N > 0"),
        ("well", np.array(["B02"]), "one entry for each crop, got .*'well': 1"),
    ],
    ids=["no channels", "channels first", "no crops", "too few wells"],
)
def test_fields_of_the_wrong_shape_are_refused(crops_dir, tmp_path, field, value, message):
    np.savez(crops_dir / "plate_1.npz", **{**random_plate(), field: value})
    with pytest.raises(ValueError, match=message):
        build(crops_dir, tmp_path / "cache")


def test_an_unknown_compound_is_refused_with_the_nearest(crops_dir, tmp_path):
    np.savez(crops_dir / "plate_1.npz", **random_plate(("DMSO", "taxoll")))
    with pytest.raises(ValueError, match=r"unknown compound in plate_1.npz 'taxoll'; did you mean 'taxol'\?"):
        build(crops_dir, tmp_path / "cache")
