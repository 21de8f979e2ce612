"""What `training/moa.py` trains on, calibrates on and reports; test_scripts.py runs it as a process."""

import json
import logging

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl import MoAClassifier
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.training.moa import (
    MoAArguments,
    augment,
    calibration_plate,
    calibration_split,
    classification_metrics,
    fit_temperature,
    held_out_metrics,
    random_shift,
    train,
)


def cells_of(*plates: tuple[str, str]) -> datasets.Dataset:
    """Cells of `(plate, moas)`: one for each letter of `moas`."""
    rows = [(plate, moa) for plate, moas in plates for moa in moas]
    return datasets.Dataset.from_dict({"plate": [r[0] for r in rows], "moa": [r[1] for r in rows]})


# ----------------------------------------------------------------------------------------------------------------
# Augmentation
# ----------------------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_the_generator_alone_and_stays_in_range(generators):
    images = 2 * torch.rand(6, 5, 16, 16, generator=torch.Generator().manual_seed(1)) - 1
    before = images.clone()
    first, again, other = (augment(images, generator) for generator in generators(3, 3, 4))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.min() >= -1
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_copies_of_one_image_are_all_augmented_differently(generator):
    image = 2 * torch.rand(1, 3, 16, 16, generator=generator) - 1
    images = augment(image.repeat(8, 1, 1, 1), generator).flatten(1)
    assert len(images.unique(dim=0)) == 8


def test_a_shift_moves_by_at_most_a_twelfth_and_mirrors_the_border(generator):
    size, most = 24, 2
    image = torch.arange(float(size * size)).reshape(1, size, size).repeat(2, 1, 1)
    seen = set()
    for moved in random_shift(image.repeat(200, 1, 1, 1), generator):
        padded = np.pad(image.numpy(), ((0, 0), (most, most), (most, most)), mode="reflect")
        down, across = divmod(int(moved[0, 5, 5]) - int(image[0, 5, 5]) + most * (size + 1), size)
        assert np.array_equal(moved.numpy(), padded[:, down : down + size, across : across + size])
        seen.add((down - most, across - most))
    assert seen == {(y, x) for y in range(-most, most + 1) for x in range(-most, most + 1)}


# ----------------------------------------------------------------------------------------------------------------
# What is kept for calibration
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plates", "chosen"),
    [
        ([("p1", "abc"), ("p2", "abc"), ("p3", "abc")], "p1"),
        ([("p1", "abcc"), ("p2", "abbcc"), ("p3", "abc")], "p3"),
        ([("p1", "ab"), ("p2", "abc"), ("p3", "abcc")], "p2"),
        ([("p1", "abc"), ("p2", "abd"), ("p3", "ab")], "p3"),
        ([("p1", "aa"), ("p2", "ab")], None),
        ([("p1", "abc")], None),
        ([("p1", "ab"), ("p2", "cd")], None),
    ],
    ids=["by name", "fewest cells", "most MoAs", "none may be lost", "controls only", "one plate", "disjoint"],
)
def test_the_calibration_plate_is_the_fullest_that_can_be_spared(plates, chosen):
    assert calibration_plate(cells_of(*plates).to_pandas()) == chosen


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["p1", "p2", "p3"]), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_every_mechanism_stays_in_training(rows):
    cells = pd.DataFrame(rows, columns=["plate", "moa"])
    plate = calibration_plate(cells)
    if plate is not None:
        assert set(cells["moa"][cells["plate"] != plate]) == set(cells["moa"])
        assert cells["moa"][cells["plate"] == plate].nunique() >= 2
    if cells["moa"].value_counts().max() > 1:
        kept, held, _ = calibration_split(datasets.Dataset.from_pandas(cells), share=0.9, seed=0)
        assert set(cells["moa"][kept.numpy()]) == set(cells["moa"])
        assert len(held) > 0
        assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(cells)))


def test_a_whole_plate_is_kept_for_calibration(caplog):
    cells = cells_of(("p1", "aab"), ("p2", "ab"), ("p3", "abb"))
    kept, held, source = calibration_split(cells, share=0.1, seed=0)
    assert (held.tolist(), kept.tolist(), source) == ([3, 4], [0, 1, 2, 5, 6, 7], "plate p2")
    assert not caplog.records


def test_a_share_of_each_mechanism_is_kept_if_no_plate_can_be_with_a_warning(caplog):
    cells = cells_of(("p1", 40 * "a" + 20 * "b" + "c"))
    with caplog.at_level(logging.WARNING):
        kept, held, source = calibration_split(cells, share=0.1, seed=0)
    moas = np.array(cells["moa"])
    assert sorted(moas[held.numpy()]) == [*"aaaabb"]
    assert source == "cells of the training plates"
    assert "makes the calibration optimistic" in caplog.text
    assert torch.equal(held, calibration_split(cells, share=0.1, seed=0)[1])
    assert not torch.equal(held, calibration_split(cells, share=0.1, seed=1)[1])
    assert len(kept) == 55


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match=f"validation_share must lie between 0 and 1, got {share}"):
        calibration_split(cells_of(("p1", "aabb")), share=share, seed=0)


def test_too_few_cells_to_calibrate_on_are_refused():
    with pytest.raises(ValueError, match="each of the 2 MoAs has a single cell"):
        calibration_split(cells_of(("p1", "ab")), share=0.1, seed=0)


# ----------------------------------------------------------------------------------------------------------------
# Calibration and the report
# ----------------------------------------------------------------------------------------------------------------


def drawn_from(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_overconfident_and_timid_logits_is_found(temperature, generator):
    logits = 2 * torch.randn(5_000, 4, generator=generator)
    labels = drawn_from(logits, generator)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)
    metrics = classification_metrics(logits, labels, temperature)
    assert metrics["expected_calibration_error"] < 0.02
    if temperature == 1:
        assert metrics["uncalibrated_error"] == metrics["expected_calibration_error"]
    else:
        assert metrics["uncalibrated_error"] > 0.05


def test_standard_errors_are_those_of_repeated_samples(generator):
    logits = torch.randn(30, 300, 3, generator=generator)
    runs = [classification_metrics(one, drawn_from(one, generator), 1.0) for one in logits]
    for name in ("accuracy", "balanced_accuracy"):
        spread = np.std([run[name] for run in runs])
        assert np.mean([run["standard_errors"][name] for run in runs]) == pytest.approx(spread, rel=0.25)


@pytest.fixture(scope="module")
def trained(simulated_cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moa")
    cells = simulated_cells.copy()
    # Three plates: the test split's is trained on too, and reported on.
    cells["train"] = datasets.concatenate_datasets([cells["train"], cells["test"]])
    args = MoAArguments(output_dir=str(folder), width=4, max_train_steps=30, train_batch_size=16, cpu=True)
    return folder, cells, *train(args, Accelerator(cpu=True), cells)


def test_training_standardises_by_and_calibrates_without_the_other(trained):
    _, cells, classifier, metrics = trained
    plate = calibration_plate(cells["train"].select_columns(["plate", "moa"]).to_pandas())
    assert metrics["calibrated_on"] == f"plate {plate}"
    on_plate = np.array(cells["train"]["plate"]) == plate
    assert metrics["calibration"]["cells"] == on_plate.sum()
    seen = images_to_tensor(open_images(cells["train"])[np.flatnonzero(~on_plate)])
    torch.testing.assert_close(classifier.channel_mean, seen.mean((0, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(classifier.channel_std, seen.std((0, 2, 3)), rtol=0, atol=1e-4)


def test_what_was_trained_is_saved_with_its_metrics(trained):
    folder, cells, classifier, metrics = trained
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    loaded = MoAClassifier.from_pretrained(folder)
    assert float(loaded.temperature) == pytest.approx(metrics["temperature"])
    assert metrics["temperature"] != 1
    assert held_out_metrics(loaded, cells["test"]) == {
        key: metrics[key] for key in held_out_metrics(classifier, cells["test"])
    }
