import numpy as np
import pytest

from cellfluxrl import SimulatedCells
from cellfluxrl.data.compounds import CELLFLUX_HELD_OUT, CONTROL, MOAS, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features, channel_names_of


def build(cache_dir, **config):
    settings = {"image_size": 16, "cells_per_moa": 4, "controls_per_plate": 5, "num_plates": 2, **config}
    builder = SimulatedCells(cache_dir=str(cache_dir), **settings)
    builder.download_and_prepare()
    return builder.as_dataset()


def images_of(cells):
    return cells.with_format("numpy")["image"][:]


def test_the_schema_is_that_of_bbbc021(simulated_cells):
    features = simulated_cells["train"].features
    assert features == cell_features(CHANNEL_NAMES, 16)
    assert channel_names_of(simulated_cells["train"]) == ("dna", "tubulin", "actin")


def test_plates_are_never_shared_between_splits(tmp_path):
    cells = build(tmp_path, num_plates=5, held_out=("simulated_3", "simulated_4"))
    assert set(cells["train"]["plate"]) == {"simulated_0", "simulated_1", "simulated_2"}
    assert set(cells["test"]["plate"]) == {"simulated_3", "simulated_4"}
    for name, split in cells.items():
        assert set(split["split"]) == {name}


def test_every_plate_has_every_mechanism_and_its_controls(simulated_cells):
    for split in simulated_cells.values():
        counts = split.remove_columns("image").to_pandas()["moa"].value_counts()
        assert counts.to_dict() == {CONTROL: 12} | dict.fromkeys(MOAS, 8)


def test_rows_agree_with_the_table_of_compounds(simulated_cells):
    cells = simulated_cells["train"].remove_columns("image").to_pandas()
    table = known_compounds().loc[cells["compound"]]
    assert cells["moa"].tolist() == table["moa"].tolist()
    assert cells["smiles"].tolist() == table["smiles"].tolist()
    assert (cells["is_control"] == (cells["compound"] == CONTROL)).all()
    assert ((cells["concentration"] == 0) == cells["is_control"]).all()
    assert cells.groupby(["plate", "well"])[["compound", "concentration"]].nunique().max().max() == 1
    assert not cells[["plate", "cell_id"]].duplicated().any()


def test_the_seed_decides_everything(tmp_path):
    first, again, other = (build(tmp_path / name, seed=seed)["train"] for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert first.remove_columns("image").to_pandas().equals(again.remove_columns("image").to_pandas())
    np.testing.assert_array_equal(images_of(first), images_of(again))
    assert (images_of(first) != images_of(other)).any()


def test_a_plate_does_not_depend_on_how_the_plates_are_split(tmp_path):
    as_train = build(tmp_path, num_plates=3)["train"]
    as_test = build(tmp_path, num_plates=3, held_out=("simulated_1", "simulated_2"))["test"]
    plate = "simulated_1"
    np.testing.assert_array_equal(
        images_of(as_train.filter(lambda row: row["plate"] == plate)),
        images_of(as_test.filter(lambda row: row["plate"] == plate)),
    )


def test_other_protocols_split_within_plates_and_share_no_control(tmp_path):
    cells = build(tmp_path, controls_per_plate=16, split="cellflux")
    tables = {name: split.remove_columns("image").to_pandas() for name, split in cells.items()}
    assert set(tables["train"]["plate"]) == set(tables["test"]["plate"])
    wells = [set(zip(table["plate"], table["well"], strict=True)) for table in tables.values()]
    assert not wells[0] & wells[1]
    assert set(tables["test"]["compound"]) - {CONTROL} <= set(CELLFLUX_HELD_OUT)


@pytest.mark.parametrize("held_out", [("simulated_9",), ("simulated_0", "simulated_1")])
def test_both_splits_need_a_plate(tmp_path, held_out):
    with pytest.raises(ValueError, match=r"unknown plate 'simulated_9'|no treated cell is in the train split"):
        build(tmp_path, held_out=held_out)
