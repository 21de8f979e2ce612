"""What the shipped base generates looks like cells: nearer to treated cells than copies of the controls, with nuclei
inside cells, and not at all like noise.
"""

import pytest
import torch

from cellfluxrl import CellFluxPipeline
from cellfluxrl.data.compounds import MOAS, known_compounds
from cellfluxrl.data.images import as_model_images
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.evaluation.statistics.metrics import frechet_distance, image_features
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter
from cellfluxrl.training.demo import SHIPPED_BASE

UNSEEN_PLATE = 3


def cells(moas: list[str], seed: int) -> torch.Tensor:
    return as_model_images(simulate_cells(moas, effect=0.9, plate=UNSEEN_PLATE, seed=seed).image, CHANNEL_NAMES)


@pytest.fixture(scope="module")
def images() -> dict[str, torch.Tensor]:
    moas = list(MOAS) * 8
    table = known_compounds()
    compounds = [table.index[table["moa"] == moa][0] for moa in moas]
    control = cells(["DMSO"] * len(moas), seed=11)
    pipe = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    generated = pipe(
        control, compound=compounds, num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="pt"
    ).images
    noise = torch.rand(control.shape, generator=generator) * 2 - 1
    return {"control": control, "generated": generated, "noise": noise, "treated": cells(moas * 3, seed=12)}


def test_generated_cells_are_nearer_to_treated_cells_than_their_controls(images: dict[str, torch.Tensor]) -> None:
    features = {name: image_features(batch) for name, batch in images.items()}
    scale = features["treated"].std(dim=0)
    distance = {
        name: frechet_distance((features[name] / scale).numpy(), (features["treated"] / scale).numpy())
        for name in ("control", "generated", "noise")
    }
    assert distance["generated"] < distance["control"]
    assert distance["generated"] < 0.1 * distance["noise"]


def test_generated_cells_have_nuclei_inside_cells(images: dict[str, torch.Tensor]) -> None:
    values = measure(WatershedSegmenter()(((images["generated"] + 1) / 2).numpy()))
    assert (values["nucleus_count"] >= 1).mean() > 0.95
    assert values["containment"].mean() > 0.97


def test_the_compound_decides_what_is_generated(images: dict[str, torch.Tensor]) -> None:
    nuclei = measure(WatershedSegmenter()(((images["generated"] + 1) / 2).numpy()))["nucleus_size"]
    by_moa = {moa: nuclei[k :: len(MOAS)].mean() for k, moa in enumerate(MOAS)}
    assert by_moa["Aurora kinase inhibitors"] > 1.3 * by_moa["Eg5 inhibitors"]
