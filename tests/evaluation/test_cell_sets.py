"""The sample of an evaluation: over all compounds, in two halves without a cell in common."""

import numpy as np
import pytest

from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.evaluation.cells import sample_held_out, sample_training


@pytest.fixture(scope="module")
def pairs(simulated_cells):
    return ControlTreatedPairs(simulated_cells["test"])


def as_rows(images):
    return {image.tobytes() for image in images}


def test_halves_are_of_equal_size_and_share_no_cell(pairs):
    cells = sample_held_out(pairs, 40)
    assert len(cells.table) == len(cells.control) == len(cells.real) == len(cells.reference_table) == 40
    assert not as_rows(cells.real) & as_rows(cells.reference)
    assert set(cells.table["moa"]) == set(pairs.conditions["moa"])


def test_every_compound_with_two_cells_is_in_both_halves(pairs, simulated_cells):
    cells = sample_held_out(pairs)
    table = simulated_cells["test"].remove_columns("image").to_pandas()
    counts = table[~table["is_control"]]["compound"].value_counts()
    several = set(counts.index[counts >= 2])
    assert several <= set(cells.compound)
    assert several <= set(cells.reference_table["compound"])


def test_controls_are_of_the_plate_and_real_cells_of_the_condition(pairs, simulated_cells):
    cells = sample_held_out(pairs, 40)
    table, images = (
        simulated_cells["test"].remove_columns("image").to_pandas(),
        open_images(simulated_cells["test"])[:],
    )
    of = {image.tobytes(): row for row, image in enumerate(images)}
    for kind, is_control in ((cells.control, True), (cells.real, False)):
        rows = table.iloc[[of[image.tobytes()] for image in kind]]
        assert (rows["is_control"] == is_control).all()
        assert (rows["plate"].to_numpy() == cells.table["plate"].to_numpy()).all()
    assert (rows["compound"].to_numpy() == cells.table["compound"].to_numpy()).all()


def test_the_seed_decides(pairs):
    first, again, other = (sample_held_out(pairs, 40, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.real, again.real)
    np.testing.assert_array_equal(first.control, again.control)
    assert as_rows(first.real) != as_rows(other.real)


def test_compounds_with_few_cells_are_named_with_their_counts(pairs):
    cells = sample_held_out(pairs, 40)
    few = cells.few()
    counts = cells.table["compound"].value_counts()
    assert len(few) >= (counts < 5).sum() > 0
    name = counts.index[-1]
    assert any(line.startswith(f"{name} ({counts[name]} and ") for line in few)


def test_more_cells_than_there_are_and_fewer_than_compounds_are_refused(pairs):
    with pytest.raises(ValueError, match=f"choose 1 to {len(pairs) // 2}"):
        sample_held_out(pairs, len(pairs))
    with pytest.raises(ValueError, match="cannot show all"):
        sample_held_out(pairs, 3)


def test_training_cells_are_treated_and_at_most_so_many(simulated_cells):
    train = simulated_cells["train"]
    treated = open_images(train)[np.flatnonzero(~np.array(train["is_control"]))]
    assert as_rows(sample_training(train, 50)) <= as_rows(treated)
    assert len(sample_training(train, 50)) == 50
    assert len(sample_training(train, 10_000)) == len(treated)
    controls = train.filter(lambda row: row["is_control"])
    with pytest.raises(ValueError, match="none of the 12 training cells is treated"):
        sample_training(controls, 5)
