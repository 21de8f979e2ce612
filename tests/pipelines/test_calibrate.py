"""Pipelines that bring the controls of another plate to the intensities of those of their training."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from test_generate import images_of

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, ControlTreatedPairs
from cellfluxrl.commands import cli
from cellfluxrl.data.builders.simulated_cells import SimulatedCells
from cellfluxrl.data.calibration import control_levels
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import to_uint8
from cellfluxrl.evaluation.generating import calibrated


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two plates of training."""
    folder = str(tmp_path_factory.mktemp("cells"))
    builder = SimulatedCells(cache_dir=folder, image_size=16, cells_per_moa=6, controls_per_plate=24, num_plates=3)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


@pytest.fixture(scope="module")
def levels(cells):
    return control_levels(ControlTreatedPairs(cells))


@pytest.fixture(scope="module")
def pipe(pipeline, levels):
    pipe = CellFluxRLPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder, pipeline.rewards, levels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def training_controls(cells) -> np.ndarray:
    return open_images(cells)[np.flatnonzero(cells["is_control"])]


def darker(images: np.ndarray) -> np.ndarray:
    """As on a plate with less of the second stain."""
    images = images.copy()
    images[:, 1] = images[:, 1] // 2
    return images


def test_a_darker_plate_gives_what_the_plate_of_training_gives(pipe, generate, training_controls):
    dark = darker(training_controls)
    expected, uncalibrated, ours = (
        generate(images[:4], pipe=pipe).images
        for images in (training_controls, dark, pipe.calibrate(dark[:4], plate_controls=dark))
    )
    assert float((ours - expected).abs().mean()) < 0.2 * float((uncalibrated - expected).abs().mean())


def test_a_whole_plate_is_its_own_measure(pipe, training_controls):
    dark = darker(training_controls)
    ours = pipe.calibrate(dark)
    torch.testing.assert_close(ours[:3], pipe.calibrate(dark[:3], dark))
    assert ours.dtype == torch.float32
    assert ours.shape == dark.shape
    assert float((ours - (torch.from_numpy(training_controls) / 127.5 - 1)).abs().mean()) < 0.02


@pytest.mark.parametrize("kind", [CellFluxPipeline, CellFluxRLPipeline, DiffusionPipeline])
def test_the_levels_are_saved_and_loaded(pipe, levels, kind, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, **({"trust_remote_code": True} if kind is DiffusionPipeline else {}))
    assert loaded.config.control_levels == levels
    np.testing.assert_array_equal(loaded.training_levels(), pipe.training_levels())


def test_a_pipeline_without_levels_says_so(pipeline, training_controls, tmp_path):
    for levels in (None, {}):
        old = CellFluxRLPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder, None, levels)
        old.save_pretrained(tmp_path)
        loaded = CellFluxRLPipeline.from_pretrained(tmp_path, rewards=None)
        with pytest.raises(ValueError, match="does not know the intensities of the controls"):
            loaded.calibrate(training_controls)


def test_a_few_cells_need_their_plate(pipe, training_controls):
    with pytest.raises(ValueError, match="20 of its controls or more, got 4"):
        pipe.calibrate(training_controls[:4])


def test_an_evaluation_calibrates_each_plate_by_itself(pipe, training_controls):
    both = np.concatenate([training_controls, darker(training_controls)])
    plates = np.repeat(["A", "B"], len(training_controls))
    mixed = np.random.default_rng(0).permutation(len(both))
    ours = np.empty_like(both)
    ours[mixed] = calibrated(pipe, both[mixed], plates[mixed])
    for plate in "AB":
        np.testing.assert_array_equal(ours[plates == plate], to_uint8(pipe.calibrate(both[plates == plate])))
    with pytest.raises(ValueError, match=r"plate 'B' cannot be calibrated: .* got 3"):
        calibrated(pipe, both[: len(training_controls) + 3], plates[: len(training_controls) + 3])


@pytest.mark.parametrize("known", [True, False], ids=["a plate each", "files"])
def test_generate_calibrates_plate_by_plate(pipe, cells, tmp_path, monkeypatch, capsys, known):
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("pipe")
    controls = cells.filter(lambda row: row["is_control"])
    assert len(controls) == 48
    if known:
        datasets.DatasetDict(train=controls).save_to_disk("controls")
    else:
        np.save("controls.npy", open_images(controls)[:])
    name = "controls --split train" if known else "controls.npy"
    common = "--pipeline pipe --compounds taxol --steps 1 --guidance_scale 1 --batch_size 12"
    for folder, option in (("plain", ""), ("out", "--calibrate")):
        assert cli.main(f"generate {name} {common} --output_dir {folder} {option}".split()) == 0, capsys.readouterr()
    plain, ours = (pd.read_parquet(f"{folder}/generated.parquet") for folder in ("plain", "out"))
    assert plain["seed"].equals(ours["seed"])
    assert not np.array_equal(images_of(plain, "plain"), images_of(ours, "out"))
    assert cli.main(f"generate {name} {common} --output_dir out".split()) == 2
    assert "calibrate True instead of False" in capsys.readouterr().err
