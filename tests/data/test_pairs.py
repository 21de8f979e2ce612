import pickle

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cellfluxrl import ControlTreatedPairs
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.data.pairs import PairBatch, random_dihedral, vary_brightness
from cellfluxrl.data.schema import cell_features

COMPOUNDS = ("DMSO", "taxol", "nocodazole")


def dataset_of(cells, images=None) -> datasets.Dataset:
    """Cells given as (plate, split, compound); the pixels of cell i are i, so that an image tells its row."""
    rows = [
        {
            "image": np.full((3, 2, 2), i, dtype=np.uint8) if images is None else images[i],
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


@settings(max_examples=20, deadline=None)
@given(cells=cells_strategy, seed=st.integers(0, 1000))
def test_a_pair_always_shares_plate_and_split(cells, seed):
    cells = usable(cells)
    pairs = ControlTreatedPairs(dataset_of(cells))
    batch = pairs.draw(64, torch.Generator().manual_seed(seed))
    conditions = pairs.conditions.iloc[batch.condition.tolist()]
    for control, treated, condition in zip(
        rows_of(batch.control), rows_of(batch.treated), conditions.itertuples(), strict=True
    ):
        assert cells[control] == (condition.plate, condition.split, "DMSO")
        assert cells[treated] == (condition.plate, condition.split, condition.compound)


# --------------------------------------------------------------------------------------------------------------------
# Epochs
# --------------------------------------------------------------------------------------------------------------------


def usable(cells):
    """The cells with a treated one, and with one control in each group that has none."""
    cells = [*cells, ("P1", "train", "taxol")]
    return cells + [(plate, split, "DMSO") for plate, split in sorted({cell[:2] for cell in cells})]


def together(batches):
    """The rows of controls and treated cells, and the conditions, of several batches."""
    batches = list(batches)
    control, treated = (torch.cat([getattr(b, name) for b in batches]) for name in ("control", "treated"))
    return rows_of(control), rows_of(treated), torch.cat([b.condition for b in batches]).tolist()


def assert_same_batches(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in ("control", "treated", "condition"):
            assert torch.equal(getattr(batch, name), getattr(other, name))


@settings(max_examples=25, deadline=None)
@given(cells=cells_strategy, size=st.integers(1, 6), world_size=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_has_every_treated_cell_once_with_a_control_of_its_plate(cells, size, world_size, epoch):
    cells = usable(cells)
    pairs = ControlTreatedPairs(dataset_of(cells))
    ranks = [pairs.epoch_batches(size, 0, epoch, rank, world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {pairs.steps_per_epoch(size, world_size)}
    controls, treated, conditions = together(batch for batches in ranks for batch in batches)
    for control, cell, condition in zip(controls, treated, conditions, strict=True):
        row = pairs.conditions.loc[condition]
        assert cells[control] == (row["plate"], row["split"], "DMSO")
        assert cells[cell] == (row["plate"], row["split"], row["compound"])
    step, everyone = size * world_size, {i for i, cell in enumerate(cells) if cell[2] != "DMSO"}
    if len(everyone) >= step:
        assert len(set(treated)) == len(treated) == len(everyone) - len(everyone) % step
        assert set(treated) <= everyone
    else:  # one step, in which no cell comes more than once more often than another
        times = [treated.count(cell) for cell in everyone]
        assert len(treated) == step
        assert max(times) - min(times) <= 1


@settings(max_examples=12, deadline=None)
@given(cells=cells_strategy, size=st.integers(1, 4), world_size=st.integers(1, 3), augment=st.booleans())
def test_the_batches_of_all_processes_are_those_of_one_with_a_larger_batch(cells, size, world_size, augment):
    pairs = ControlTreatedPairs(dataset_of(usable(cells)))
    ranks = [pairs.epoch_batches(size, 5, 1, rank, world_size, augment=augment) for rank in range(world_size)]
    joined = [
        PairBatch(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("control", "treated", "condition"))
        )
        for parts in zip(*ranks, strict=True)
    ]
    assert_same_batches(joined, pairs.epoch_batches(size * world_size, 5, 1, augment=augment))


@pytest.fixture(scope="module")
def asymmetric_pairs():
    """60 treated and 40 control cells whose pixels all differ, so that flips show."""
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 2, 2), dtype=np.uint8)
    return ControlTreatedPairs(dataset_of([("P", "train", "DMSO")] * 40 + [("P", "train", "taxol")] * 60, images))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_data_loader_change_nothing(asymmetric_pairs, workers):
    batches = asymmetric_pairs.epoch_batches(8, seed=0, epoch=2)
    assert_same_batches(DataLoader(batches, batch_size=None, num_workers=workers), batches)


def test_a_batch_does_not_depend_on_those_before_it(asymmetric_pairs):
    batches = list(asymmetric_pairs.epoch_batches(8, seed=0, epoch=2))
    again = asymmetric_pairs.epoch_batches(8, seed=0, epoch=2)
    assert len(again) == 7
    assert_same_batches([again[i] for i in (6, 0, 3, -1)], [batches[i] for i in (6, 0, 3, 6)])
    with pytest.raises(IndexError):
        again[7]


def test_another_epoch_has_another_order_other_controls_and_other_flips(asymmetric_pairs):
    plain = [asymmetric_pairs.epoch_batches(60, 0, epoch, augment=False)[0] for epoch in (0, 1)]
    flipped = asymmetric_pairs.epoch_batches(60, 0, 0)[0]
    assert not torch.equal(plain[0].treated, plain[1].treated)

    def control_of(batch):
        return {tuple(t.flatten().tolist()): c for t, c in zip(batch.treated, batch.control, strict=True)}

    first, second = map(control_of, plain)
    assert first.keys() == second.keys()
    # One control in 40 is drawn again by chance: 1.5 expected among 60.
    assert sum(torch.equal(first[cell], second[cell]) for cell in first) < 10

    for name in ("control", "treated"):
        before, after = getattr(plain[0], name), getattr(flipped, name)
        assert torch.equal(before.flatten(2).sort().values, after.flatten(2).sort().values)
        # An image stays as it is in one of eight orientations: 7.5 expected among 60.
        assert sum(map(torch.equal, before, after)) < 25


def test_controls_of_an_epoch_are_drawn_uniformly(pairs):
    controls = [together(pairs.epoch_batches(4, 0, epoch))[0] for epoch in range(750)]
    share = np.bincount(np.concatenate(controls)) / 3000
    # Four standard errors of a share of 1/3 among 3,000.
    assert share == pytest.approx([1 / 3] * 3, abs=0.035)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1 for world_size=2, got 2"),
        ({"rank": -1}, r"rank must be in 0\.\.0 for world_size=1, got -1"),
    ],
)
def test_a_share_that_does_not_exist_is_refused(pairs, arguments, message):
    with pytest.raises(ValueError, match=message):
        pairs.epoch_batches(**{"batch_size": 4, "seed": 0, "epoch": 0, **arguments})


def test_what_a_worker_is_sent_holds_no_pixels(simulated_cells):
    pairs = ControlTreatedPairs(simulated_cells["train"])
    assert len(pickle.dumps(pairs.epoch_batches(4, 0, 0))) < np.prod(pairs.images.shape) / 4


# --------------------------------------------------------------------------------------------------------------------
# Draws
# --------------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(cells=cells_strategy, seed=st.integers(0, 100))
def test_the_groups_of_rl_are_of_one_plate_compound_and_concentration(cells, seed):
    cells = usable(cells)
    pairs, random = ControlTreatedPairs(dataset_of(cells)), torch.Generator().manual_seed(seed)
    groups = pairs.draw_conditions(4, random)
    controls = pairs.draw_controls(groups.repeat_interleave(3), random)
    treated = [cells[row] for row in pairs.treated_rows.tolist()]
    for group, rows in zip(groups.tolist(), torch.tensor(rows_of(controls)).view(4, 3).tolist(), strict=True):
        members = {cell for cell, c in zip(treated, pairs.treated_condition.tolist(), strict=True) if c == group}
        ((plate, split, _),) = members
        assert {cells[row] for row in rows} == {(plate, split, "DMSO")}
    assert not pairs.conditions.duplicated(["plate", "split", "compound", "concentration"]).any()


def test_a_compound_without_a_mechanism_or_concentration_is_a_condition():
    cells = dataset_of([("P", "train", c) for c in ("DMSO", "taxol", "nocodazole", "taxol")])
    unknown = cells.map(lambda row: {"moa": None, "concentration": float("nan")})
    pairs = ControlTreatedPairs(unknown)
    assert pairs.conditions["compound"].tolist() == ["nocodazole", "taxol"]
    assert pairs.treated_condition.tolist() == [1, 0, 1]


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
    stored = {image.tobytes() for image in open_images(cells)[:]}
    batch = ControlTreatedPairs(cells).draw(20, generator, augment=False)
    for images in (batch.control, batch.treated):
        assert {((i + 1) * 127.5).round().byte().numpy().tobytes() for i in images} <= stored


def test_targets_are_the_treated_cells_as_they_are(pairs):
    assert rows_of(pairs.targets(torch.tensor([3, 0]))) == pairs.treated_rows[[3, 0]].tolist()
    assert rows_of(pairs.targets(torch.arange(len(pairs)))) == pairs.treated_rows.tolist()


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


# --- brightness ---


def test_brightness_varies_by_channel_and_image_and_leaves_black_black(generator):
    images = torch.rand(400, 3, 2, 2, generator=generator) * 2 - 1
    images[:, :, 0, 0] = -1
    varied = vary_brightness(images, 0.2, generator)
    assert torch.equal(varied[:, :, 0, 0], images[:, :, 0, 0])
    gain = ((varied + 1) / (images + 1))[:, :, 1:].log()
    torch.testing.assert_close(gain[..., 0], gain[..., 1], rtol=0, atol=1e-4)  # all pixels of a channel alike
    gain = gain[..., 0, 0]
    assert float(gain.std()) == pytest.approx(0.2, rel=0.1)
    assert abs(float(gain.mean())) < 0.03
    assert float(torch.corrcoef(gain.T).triu(1).abs().max()) < 0.15  # channels are independent of each other


def test_without_spread_nothing_is_changed_or_drawn(generator):
    images, before = torch.rand(2, 3, 4, 4), generator.get_state()
    assert vary_brightness(images, 0.0, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_a_negative_spread_is_refused(generator):
    with pytest.raises(ValueError, match=r"must not be negative, got -0\.1"):
        vary_brightness(torch.zeros(1, 1, 2, 2), -0.1, generator)


def test_with_a_list_of_generators_the_brightness_does_not_depend_on_the_batch(generators):
    images = torch.rand(3, 2, 4, 4)
    together = vary_brightness(images, 0.3, generators(1, 2, 3))
    torch.testing.assert_close(together[1:2], vary_brightness(images[1:2], 0.3, generators(2)))
