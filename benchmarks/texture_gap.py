"""Which hand-made features of generated cells differ from real ones, on the plate of training and on another.

    OMP_NUM_THREADS=1 python benchmarks/texture_gap.py runs/base runs/rl --data_dir CROPS

Rows: real cells and controls of the two plates against each other, and one sample for each of --controls controls of
either plate against real treated cells of the same plate. Columns, in standard deviations of the real cells: the
Frechet distance on `image_features`, the part of it that the means make up, the shift of each channel's brightness,
and the spread of the finest detail over that of real cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from datasets import Dataset

from cellfluxrl import CellFluxPipeline, ControlTreatedPairs
from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.evaluation.cells import sample_held_out
from cellfluxrl.evaluation.statistics.metrics import frechet_distance, image_features
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import rl
from cellfluxrl.training.common import load_labelled_cells

FINEST = 4  # of the features of a channel: mean, deviation, skewness, upper 5 %, then three octaves of detail


def gap(ours: torch.Tensor, real: torch.Tensor, channels: Sequence[str]) -> dict[str, float]:
    """One row of the table, of two sets of `(N, C, H, W)` images in [-1, 1]."""
    theirs = image_features(real).double()
    scale = theirs.std(dim=0).clamp(min=1e-6)
    a, b = image_features(ours).double() / scale, theirs / scale
    shift, spread = a.mean(dim=0) - b.mean(dim=0), a.std(dim=0) / b.std(dim=0)
    row = {"frechet_image": frechet_distance(a.numpy(), b.numpy()), "of the means": float(shift.square().sum())}
    row |= {f"{name} brightness": float(shift[k]) for k, name in enumerate(channels)}
    finest = FINEST * len(channels)
    return row | {f"{name} detail": float(spread[finest + k]) for k, name in enumerate(channels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", help="folders of pipelines, post-trained or not")
    parser.add_argument("--data_dir", required=True, help="crops, one PLATE.npz a plate")
    parser.add_argument("--output_dir", default="runs/texture_gap", help="for prepared data")
    parser.add_argument("--controls", type=int, default=320)
    parser.add_argument("--num_inference_steps", type=int, default=6)
    args = parser.parse_args()
    options = rl.RLArguments(dataset_name="crops", data_dir=args.data_dir, image_size=48, output_dir=args.output_dir)
    plates: dict[str, Dataset] = dict(load_labelled_cells(options))
    channels = ControlTreatedPairs(plates["train"]).channel_names

    def images(plate: str, control: bool) -> torch.Tensor:
        rows = [i for i, moa in enumerate(plates[plate]["moa"]) if (moa == CONTROL) == control]
        return images_to_tensor(open_images(plates[plate])[rows])

    rows = {
        "controls of the training plate, against the other's": gap(
            images("train", True), images("test", True), channels
        ),
        "real treated, the same": gap(images("train", False), images("test", False), channels),
    }
    for plate in ("train", "test"):
        cells = sample_held_out(ControlTreatedPairs(plates[plate]), args.controls, seed=0)
        for name in args.pipelines:
            pipeline = CellFluxPipeline.from_pretrained(name)
            samples = pipeline(
                images_to_tensor(cells.control),
                compound=cells.compound,
                concentration=cells.table["concentration"].tolist() if pipeline.is_conditioned_on_dose else None,
                num_inference_steps=args.num_inference_steps,
                guidance_scale=1.0,
                generator=seeded_generator(0, "texture gap"),
                output_type="pt",
            ).images
            rows[f"{name}, {plate} plate"] = gap(samples, images_to_tensor(cells.reference), channels)
    columns = list(rows["real treated, the same"])
    print("\n| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.2f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
