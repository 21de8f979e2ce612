"""Data sets that were built by `cellfluxrl data build`, as the training scripts load them."""

import numpy as np
import pytest
import torch

from cellfluxrl import ControlTreatedPairs
from cellfluxrl.data.building.build import build_dataset
from cellfluxrl.data.building.sources.simulated import SimulatedPlates
from cellfluxrl.data.cells import Cells, PlateLog
from cellfluxrl.data.image_store import open_images
from cellfluxrl.training.common import encoder_of, load_cells, load_labelled_cells
from cellfluxrl.training.options import SharedArguments

IMAGE_SIZE = 16


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    source = SimulatedPlates(image_size=IMAGE_SIZE, cells_per_moa=6, controls_per_plate=8, num_plates=3)
    build_dataset(source, "simulated", folder)
    return folder


def arguments(folder, **changed) -> SharedArguments:
    return SharedArguments(**{"dataset_name": str(folder), "image_size": IMAGE_SIZE, **changed})


def test_a_built_folder_trains_like_the_cells_it_was_built_from(built, tmp_path):
    cells = load_cells(arguments(built))
    same = SharedArguments(
        dataset_name="simulated", image_size=IMAGE_SIZE, simulated_cells_per_moa=8, output_dir=str(tmp_path)
    )
    assert set(load_cells(same)["train"].column_names) == set(cells["train"].column_names)
    batch = ControlTreatedPairs(cells["train"]).draw(4, torch.Generator().manual_seed(0))
    assert batch.control.shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE)
    source = SimulatedPlates(image_size=IMAGE_SIZE, cells_per_moa=6, controls_per_plate=8, num_plates=3)
    (plate,) = source.read("simulated_2", log=PlateLog(), scratch=tmp_path)
    np.testing.assert_array_equal(open_images(cells["test"])[:], plate.images)
    assert encoder_of(cells).moa("taxol") == "Microtubule stabilizers"


def test_other_plates_can_be_held_out_of_a_built_folder(built):
    cells = load_cells(arguments(built, test_plates=["simulated_0"]))
    assert set(cells["test"]["plate"]) == {"simulated_0"}
    assert set(cells["test"]["split"]) == {"test"}


def test_crops_of_another_size_are_refused(built):
    with pytest.raises(ValueError, match=r"are 16 pixels wide, image_size is 48: pass --image_size 16"):
        load_cells(arguments(built, image_size=48))


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused():
    with pytest.raises(ValueError, match=r"unknown dataset_name 'simulatd'; did you mean 'simulated'\?"):
        load_cells(arguments("simulatd"))


class PartlyLabelledPlates(SimulatedPlates):
    def read(self, *args, **kwargs):
        for cells in super().read(*args, **kwargs):
            known = cells.rows["compound"] != "AZ138"
            yield Cells(cells.images, cells.rows.assign(moa=cells.rows["moa"].where(known, "")))


def test_cells_without_a_mechanism_are_left_out_where_it_is_needed(tmp_path, caplog):
    source = PartlyLabelledPlates(image_size=IMAGE_SIZE, cells_per_moa=6, controls_per_plate=8, num_plates=2)
    build_dataset(source, "simulated", tmp_path / "built")
    cells = load_cells(arguments(tmp_path / "built"))
    assert sum(moa == "" for split in cells.values() for moa in split["moa"]) == 6
    labelled = load_labelled_cells(arguments(tmp_path / "built"))
    assert all(moa for split in labelled.values() for moa in split["moa"])
    assert "3 cells without a mechanism of action are left out" in caplog.text
