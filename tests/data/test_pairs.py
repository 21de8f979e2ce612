import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl import ControlTreatedPairs
from cellfluxrl.data.pairs import images_to_tensor, random_dihedral, stack_images
from cellfluxrl.data.schema import cell_features

COMPOUNDS = ("DMSO", "taxol", "nocodazole")


def dataset_of(cells) -> datasets.Dataset:
    """Cells given as (plate, split, compound); the pixels of cell i are i, so that an image tells its row."""
    rows = [
        {
            "image": np.full((3, 2, 2), i, dtype=np.uint8),
            "compound": compound,
            "smiles": "",
            "concentration": 0.0 if compound == "DMSO" else 0.3,
            "moa": compound,
            "plate": plate,
            "well": "",
            "site": 1,
            "replicate": 1,
            "field": "",
            "cell_id": i,
            "x": float("nan"),
            "y": float("nan"),
            "is_control": compound == "DMSO",
            "split": split,
        }
        for i, (plate, split, compound) in enumerate(cells)
    ]
    return datasets.Dataset.from_list(rows, features=cell_features(("dna", "tubulin", "actin"), 2))


def rows_of(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


cells_strategy = st.lists(
    st.tuples(st.sampled_from(["P1", "P2", "P3"]), st.sampled_from(["train", "test"]), st.sampled_from(COMPOUNDS)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(cells=cells_strategy, seed=st.integers(0, 1000))
def test_a_pair_always_shares_plate_and_split(cells, seed):
    # One control in each group that has treated cells makes every data set usable.
    cells = [*cells, ("P1", "train", "taxol")]
    cells += [(plate, split, "DMSO") for plate, split in sorted({cell[:2] for cell in cells})]
    pairs = ControlTreatedPairs(dataset_of(cells))
    batch = pairs.draw(64, torch.Generator().manual_seed(seed))
    conditions = pairs.conditions.iloc[batch.condition.tolist()]
    for control, treated, condition in zip(
        rows_of(batch.control), rows_of(batch.treated), conditions.itertuples(), strict=True
    ):
        assert cells[control] == (condition.plate, condition.split, "DMSO")
        assert cells[treated] == (condition.plate, condition.split, condition.compound)


@pytest.fixture(scope="module")
def pairs():
    return ControlTreatedPairs(dataset_of([("P", "train", c) for c in ["DMSO"] * 3 + ["taxol"] * 3 + ["nocodazole"]]))


def test_there_is_one_condition_for_each_compound_of_a_plate(pairs):
    assert pairs.conditions["compound"].tolist() == ["nocodazole", "taxol"]
    assert len(pairs) == 4
    assert pairs.channel_names == ("dna", "tubulin", "actin")


def test_images_are_in_the_models_range():
    assert images_to_tensor(np.array([0, 255], dtype=np.uint8)).tolist() == [-1, 1]


def test_the_generator_decides_the_draw(simulated_cells):
    pairs = ControlTreatedPairs(simulated_cells["train"])
    first, again, other = (pairs.draw(8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name in ("control", "treated", "condition"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_controls_are_drawn_independently_of_the_treated_cells_and_of_each_other(pairs, generator):
    batch = pairs.draw(12_000, generator)
    control, treated = torch.tensor(rows_of(batch.control)), torch.tensor(rows_of(batch.treated))
    together = torch.bincount(3 * (treated - 3) + control, minlength=12).double() / len(control)
    # Four standard errors of a share of 1/12 among 12,000.
    torch.testing.assert_close(together, torch.full_like(together, 1 / 12), atol=0.01, rtol=0)
    neighbours = torch.bincount(3 * control[0::2] + control[1::2], minlength=9).double() / (len(control) // 2)
    torch.testing.assert_close(neighbours, torch.full_like(neighbours, 1 / 9), atol=0.016, rtol=0)


def test_conditions_are_drawn_as_often_as_they_have_cells(pairs, generator):
    share = pairs.draw_conditions(8000, generator).double().mean()
    assert float(share) == pytest.approx(3 / 4, abs=0.02)


def test_without_augmentation_images_are_as_stored(simulated_cells, generator):
    cells = simulated_cells["train"]
    stored = {image.tobytes() for image in stack_images(cells)}
    batch = ControlTreatedPairs(cells).draw(20, generator, augment=False)
    for images in (batch.control, batch.treated):
        assert {((i + 1) * 127.5).round().byte().numpy().tobytes() for i in images} <= stored


def test_a_subset_of_a_data_set_keeps_images_and_labels_together():
    cells = [("P", "train", c) for c in ("taxol", "DMSO", "nocodazole", "DMSO", "taxol")]
    pairs = ControlTreatedPairs(dataset_of(cells).select([4, 3, 2]))
    batch = pairs.draw(50, torch.Generator().manual_seed(0))
    assert set(rows_of(batch.control)) == {3}
    assert {
        (row, pairs.conditions["compound"][c])
        for row, c in zip(rows_of(batch.treated), batch.condition.tolist(), strict=True)
    } == {(4, "taxol"), (2, "nocodazole")}


def test_without_treated_cells_there_is_nothing_to_pair():
    with pytest.raises(ValueError, match="none of the 2 cells is treated"):
        ControlTreatedPairs(dataset_of([("P", "train", "DMSO")] * 2))


@pytest.mark.parametrize("control", [("P2", "train"), ("P1", "test")], ids=["on another plate", "in another split"])
def test_treated_cells_need_controls_of_their_own_plate_and_split(control):
    with pytest.raises(ValueError, match="plate 'P1' has treated cells but no control cell in split 'train'"):
        ControlTreatedPairs(dataset_of([("P1", "train", "taxol"), (*control, "DMSO")]))


def test_a_data_set_without_cells_is_refused():
    with pytest.raises(ValueError, match="no image column with channel names; its columns"):
        ControlTreatedPairs(datasets.Dataset.from_dict({"image": [1], "plate": ["P"]}))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 6), size=st.integers(1, 5), seed=st.integers(0, 1000))
def test_flips_and_transposition_only_move_pixels(count, size, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 2, size, size, generator=random)
    moved = random_dihedral(images, random)
    assert moved.shape == images.shape
    torch.testing.assert_close(moved.flatten(2).sort().values, images.flatten(2).sort().values, rtol=0, atol=0)


def test_the_channels_of_an_image_are_moved_together(generator):
    images = torch.rand(20, 1, 4, 4, generator=generator).expand(-1, 3, -1, -1)
    moved = random_dihedral(images, generator)
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_all_eight_orientations_occur_equally_often(generator):
    image = torch.arange(4.0).view(1, 1, 2, 2)
    moved = random_dihedral(image.expand(8000, -1, -1, -1), generator)
    seen, counts = moved.flatten(1).unique(dim=0, return_counts=True)
    assert len(seen) == 8
    assert int((counts - 1000).abs().max()) < 150
