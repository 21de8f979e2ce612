"""What the tests share; `tests/README.md` says which data they need and where they look for it."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import pytest
import torch
from small_models import IMAGE_SIZE, with_random_weights

from cellfluxrl import (
    CellFluxFlowMatchScheduler,
    CellFluxRLPipeline,
    CellFluxUNet2DModel,
    CompoundEncoder,
    MoAClassifier,
    RewardSuite,
    SimulatedCells,
)
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)
datasets.disable_progress_bars()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Weights that are drawn at random are the same whatever ran before, in whichever process."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    torch.manual_seed(0)


def folder_from_environment(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set {variable} (see tests/README.md)")
    return folder


@pytest.fixture(scope="session")
def bbbc021_dir() -> Path:
    return folder_from_environment("CELLFLUXRL_BBBC021_DIR", SHARED / "bbbc021_real")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    return folder_from_environment("CELLFLUXRL_PARITY_DIR", SHARED / "parity")


@pytest.fixture(scope="session")
def real_fields_dir() -> Path:
    return folder_from_environment("CELLFLUXRL_REAL_FIELDS_DIR", SHARED / "real_fields")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def generators():
    """Builds a fresh generator for each seed."""
    return lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="session")
def simulated_cells(tmp_path_factory) -> datasets.DatasetDict:
    builder = SimulatedCells(
        cache_dir=str(tmp_path_factory.mktemp("simulated")),
        image_size=IMAGE_SIZE,
        cells_per_moa=16,
        controls_per_plate=12,
        num_plates=2,
    )
    builder.download_and_prepare()
    return builder.as_dataset()


@pytest.fixture(scope="session")
def suite(simulated_cells) -> RewardSuite:
    torch.manual_seed(0)  # the hook above is not called for fixtures of the session
    classifier = with_random_weights(MoAClassifier(moas=[CONTROL, *MOAS], width=4))
    return RewardSuite.fit(simulated_cells["train"], classifier)


@pytest.fixture(scope="session")
def pipeline(suite) -> CellFluxRLPipeline:
    """A pipeline with random weights: what it generates means nothing, but depends on all of its inputs."""
    torch.manual_seed(0)
    pipe = CellFluxRLPipeline(
        unet=with_random_weights(CellFluxUNet2DModel.from_preset("tiny", sample_size=IMAGE_SIZE)),
        scheduler=CellFluxFlowMatchScheduler(solver="midpoint"),
        encoder=CompoundEncoder(),
        rewards=suite,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def controls(simulated_cells) -> torch.Tensor:
    """Three control cells, float32 of shape (3, 3, 16, 16) in [-1, 1]."""
    cells = simulated_cells["test"].filter(lambda row: row["is_control"]).take(3)
    return images_to_tensor(open_images(cells)[:])
