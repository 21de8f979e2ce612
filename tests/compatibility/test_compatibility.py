"""What an earlier revision saved, loaded today: everything gives what it gave then."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from compatibility.make import COMPOUNDS, CONCENTRATIONS, RUN_OPTIONS, generators
from diffusers import DiffusionPipeline

import cellfluxrl
from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, ControlTreatedPairs, MoAClassifier, RewardSuite
from cellfluxrl.commands import cli
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.pairs import images_to_tensor

SAVED = Path(__file__).parent / "4710fb6"
SETTINGS = {"num_inference_steps": 3, "output_type": "pt", "guidance_scale": 1.5}
LOADERS = {"trusting": (DiffusionPipeline, {"trust_remote_code": True}), "ours": (None, {})}
PUBLIC_NAMES = {
    *("BBBC021", "CellFluxFlowMatchScheduler", "CellFluxPipeline", "CellFluxRLPipeline", "CellFluxUNet2DModel"),
    *("CompoundEncoder", "ControlTreatedPairs", "MoAClassifier", "Reward", "RewardSuite", "SimulatedCells"),
    "__version__",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in np.load(SAVED / "expected.npz").items()}


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> datasets.DatasetDict:
    return datasets.load_dataset(str(SAVED / "dataset"), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def images(cells) -> torch.Tensor:
    """The test split, float32 of shape (48, 3, 16, 16) in [-1, 1]."""
    return images_to_tensor(open_images(cells["test"])[:])


def load(kind: type, name: str, loader: str = "ours"):
    base, options = LOADERS[loader]
    pipe = (base or kind).from_pretrained(str(SAVED / name), **options)
    assert type(pipe) is kind
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)


def test_every_public_name_is_still_there():
    assert set(cellfluxrl.__all__) >= PUBLIC_NAMES
    for name in PUBLIC_NAMES:
        getattr(cellfluxrl, name)


# --------------------------------------------------------------------------------------------------------------------
# Data set
# --------------------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_data_set(cells):
    rows = []
    for split in cells.values():
        for row, image in zip(split.remove_columns("image"), open_images(split)[:], strict=True):
            rows.append(row | {"image_sha256": hashlib.sha256(np.asarray(image).tobytes()).hexdigest()})
    assert [json.dumps(row) for row in rows] == (SAVED / "dataset_rows.jsonl").read_text().splitlines()


def test_the_pairs_of_the_data_set(cells):
    pairs = ControlTreatedPairs(cells["train"])
    assert pairs.channel_names == ("dna", "tubulin", "actin")
    assert len(pairs.treated_rows) == 24


def test_the_same_build_command_finds_nothing_to_do(tmp_path, capsys):
    folder = tmp_path / "dataset"
    shutil.copytree(SAVED / "dataset", folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    settings = json.loads((folder / "build_report.json").read_text())["settings"]
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    cli.main(["data", "build", "--source", "simulated", "--output_dir", str(folder), "--num_proc", "1", *options])
    assert "problems: none" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


# --------------------------------------------------------------------------------------------------------------------
# Classifier and rewards
# --------------------------------------------------------------------------------------------------------------------


def test_the_logits_of_the_classifier(images, expected):
    with torch.no_grad():
        output = MoAClassifier.from_pretrained(SAVED / "classifier")(images)
    same(output.logits, expected["classifier/logits"])
    same(output.features, expected["classifier/features"])


@pytest.mark.parametrize(("name", "folder"), [("suite", "pipeline/rewards"), ("few_rewards", "few_rewards")])
def test_the_rewards_of_a_suite(name, folder, cells, images, expected):
    suite, moas = RewardSuite.from_pretrained(SAVED / folder), list(cells["test"]["moa"])
    for form in ("deviation", "energy"):
        rewards = suite(images, moas, form=form)
        assert {f"{name}/{form}/{key}" for key in rewards} == {k for k in expected if k.startswith(f"{name}/{form}/")}
        for key, values in rewards.items():
            same(values, expected[f"{name}/{form}/{key}"])
    measured = suite.measure(images, moas)
    same(suite.outside_real_range(measured, moas), expected[f"{name}/outside_real_range"])
    same(suite.appearance(measured, moas), expected[f"{name}/appearance"])


# --------------------------------------------------------------------------------------------------------------------
# Pipelines
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
def test_the_images_of_a_base(loader, images, expected):
    pipe = load(CellFluxPipeline, "base", loader)
    controls = expected["controls"]
    same(pipe.encoder.encode(["taxol", "DMSO"]), expected["base/condition"])
    same(pipe(controls, "taxol", generator=generators(2), **SETTINGS).images, expected["base/images"])
    same(pipe(controls, "taxol", direction="reverse", **SETTINGS).images, expected["base/reverse"])
    same(pipe.calibrate(images)[:2], expected["base/calibrated"])


@pytest.mark.parametrize("loader", LOADERS)
def test_the_images_and_rewards_of_a_post_trained_pipeline(loader, expected):
    pipe = load(CellFluxRLPipeline, "pipeline", loader)
    same(pipe.encoder.encode(COMPOUNDS, concentrations=CONCENTRATIONS), expected["pipeline/condition"])
    out = pipe(expected["controls"], COMPOUNDS, CONCENTRATIONS, best_of_n=3, generator=generators(6), **SETTINGS)
    assert torch.equal(out.selected, expected["pipeline/selected"])
    same(out.images, expected["pipeline/images"])
    for name, values in out.rewards.items():
        same(values, expected[f"pipeline/rewards/{name}"])


def test_what_is_saved_again_is_loaded_again(tmp_path, expected):
    load(CellFluxRLPipeline, "pipeline").save_pretrained(tmp_path)
    pipe = CellFluxRLPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(expected["controls"], COMPOUNDS, CONCENTRATIONS, best_of_n=3, generator=generators(6), **SETTINGS)
    same(out.images, expected["pipeline/images"])


@pytest.mark.slow
def test_a_run_resumes_from_its_checkpoint(tmp_path, expected):
    """What is drawn depends on the seed and the iteration alone, so it comes to what the whole run came to."""
    shutil.copytree(SAVED / "run", tmp_path / "run")
    options = [str(part) for name, value in RUN_OPTIONS.items() for part in (f"--{name}", value)]
    command = [
        *(sys.executable, "-m", "cellfluxrl.commands.cli", "rl", "--cpu", "--output_dir", tmp_path / "run", *options),
        *("--dataset_name", SAVED / "dataset", "--pretrained_model_name_or_path", SAVED / "base"),
        *("--rewards", SAVED / "pipeline/rewards", "--resume_from_checkpoint", "latest"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    combined = torch.tensor([row["reward/combined"] for row in log], dtype=torch.float64)
    torch.testing.assert_close(combined, expected["run/combined"], atol=1e-3, rtol=1e-3)
    pipe = CellFluxRLPipeline.from_pretrained(tmp_path / "run")
    images = pipe(expected["controls"], "taxol", generator=generators(2), **SETTINGS).images
    torch.testing.assert_close(images, expected["run/images"], atol=1e-3, rtol=0)
