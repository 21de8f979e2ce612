"""What guidance costs and what it is worth: CPU time an image and distances to held-out treated cells.

OMP_NUM_THREADS=1 python benchmarks/guidance.py [--guidance_scale 2] [--images 240]

takes about 5 minutes for 240 images on one quiet core.

The shipped base moves simulated controls of a plate that it has not seen, with the same noise in every row:

- unguided, and guided by one forward pass of twice the images (`CellFluxPipeline`), or by two passes;
- guided at some times only (`guidance_interval`);
- cached: the difference between the velocities with and without the compound is taken anew at every k-th evaluation
  only, and kept in between.

Rows take turns, part by part, so that other programs disturb all of them alike. Features are `image_features` in
standard deviations of the treated cells. "within" is the squared distance between the mean features of generated and
treated cells of one mechanism, averaged over the 12: what a compound does beyond what treatment does. `+-` is one
standard error, from resampled images; "minus full" are paired differences to the full guidance.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from cellfluxrl import CellFluxPipeline
from cellfluxrl.data.compounds import MOAS, known_compounds
from cellfluxrl.data.images import as_model_images
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.evaluation.statistics.intervals import bootstrap_interval
from cellfluxrl.evaluation.statistics.metrics import frechet_distance, image_features
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training.demo import SHIPPED_BASE

UNSEEN_PLATE, STEPS, BATCH_SIZE, PARTS = 3, 10, 16, 5


class TwoPasses(CellFluxPipeline):
    """Guidance by two forward passes instead of one of twice the images."""

    def _guided_velocity(self, sample, t, condition, guidance_scale):
        conditional = self.unet(sample, t, condition, return_dict=False)[0]
        unconditional = self.unet(sample, t, None, return_dict=False)[0]
        return unconditional + guidance_scale * (conditional - unconditional)


class Cached(CellFluxPipeline):
    """Guidance whose direction is taken anew at every `every`-th evaluation only."""

    every = 2

    def _guided_velocity(self, sample, t, condition, guidance_scale):
        evaluation = self.scheduler.timesteps.tolist().index(float(t))
        if evaluation % self.every:
            conditional = self.unet(sample, t, condition, return_dict=False)[0]
        else:
            mask = torch.arange(2 * len(sample)) < len(sample)
            doubled = (torch.cat([sample, sample]), t, torch.cat([condition, condition]), mask)
            conditional, unconditional = self.unet(*doubled, return_dict=False)[0].chunk(2)
            self.direction = conditional - unconditional
        return conditional + (guidance_scale - 1) * self.direction


@dataclass
class Row:
    """One way of sampling, and what it has generated so far."""

    name: str
    pipe: CellFluxPipeline
    arguments: dict
    seconds: list[float] = field(default_factory=list)
    features: list[torch.Tensor] = field(default_factory=list)


def make_rows(guidance_scale: float) -> list[Row]:
    base = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))

    def row(name: str, kind: type[CellFluxPipeline] = CellFluxPipeline, every: int = 1, **arguments) -> Row:
        pipe = kind(**base.components)
        pipe.every = every
        pipe.set_progress_bar_config(disable=True)
        return Row(name, pipe, {"guidance_scale": guidance_scale, **arguments})

    intervals = ((0.0, 0.2), (0.3, 0.5), (0.5, 0.7), (0.8, 1.0))
    return [
        row("unguided", guidance_scale=1.0),
        row("full, one pass"),
        row("full, two passes", TwoPasses),
        *(row(f"interval {low}-{high}", guidance_interval=(low, high)) for low, high in intervals),
        *(row(f"cached, every {every}th", Cached, every) for every in (2, 4)),
    ]


def cells(moas: list[str], seed: int) -> torch.Tensor:
    """Simulated cells of the unseen plate, (N, 3, 48, 48) in [-1, 1]."""
    return as_model_images(simulate_cells(moas, effect=0.9, plate=UNSEEN_PLATE, seed=seed).image, CHANNEL_NAMES)


def generate(rows: list[Row], controls: torch.Tensor, compounds: list[str]) -> None:
    """Let every row generate a part in turn, and keep its time and features."""
    for part in range(-1, PARTS):  # the first time to warm up
        own = slice(0, BATCH_SIZE) if part < 0 else slice(part, None, PARTS)
        turn = max(part, 0) % len(rows)
        for row in rows[turn:] + rows[:turn]:
            start = time.process_time()
            images = row.pipe(
                controls[own],
                compound=compounds[own],
                num_inference_steps=STEPS,
                generator=seeded_generator(0, "guidance benchmark", part + 1),
                batch_size=BATCH_SIZE,
                output_type="pt",
                **row.arguments,
            ).images
            if part >= 0:
                row.seconds.append((time.process_time() - start) / len(images))
                row.features.append(image_features(images))


def within_mechanisms(a: np.ndarray, b: np.ndarray, a_moa: np.ndarray, b_moa: np.ndarray) -> float:
    """Squared distance between the mean features of `a` and `b` in each mechanism, averaged over those of `a`."""
    shifts = [a[a_moa == k].mean(axis=0) - b[b_moa == k].mean(axis=0) for k in np.unique(a_moa)]
    return float(np.square(shifts).sum(axis=1).mean())


def print_table(rows: list[Row], moa: np.ndarray, treated: torch.Tensor, treated_moa: np.ndarray) -> None:
    """Print cost and distances of each row, and the differences of the distances to those of the full guidance."""
    reference = image_features(treated)
    scale = reference.std(dim=0)
    reference = (reference / scale).numpy()
    features = {row.name: (torch.cat(row.features) / scale).numpy() for row in rows}
    moa = np.concatenate([moa[part::PARTS] for part in range(PARTS)])
    distances = {
        "Frechet distance": lambda a, chosen: frechet_distance(a[chosen], reference),
        "within": lambda a, chosen: within_mechanisms(a[chosen], reference, moa[chosen], treated_moa),
    }
    cost = {row.name: 1000 * float(np.median(row.seconds)) for row in rows}
    print(f"{'':18} {'CPU ms':>7} {'cost':>6}" + "".join(f" {name:>18} {'minus full':>18}" for name in distances))
    for row in rows:
        line = f"{row.name:18} {cost[row.name]:7.1f} {cost[row.name] / cost['unguided']:5.2f}x"
        own, full = features[row.name], features["full, one pass"]
        for distance in distances.values():
            for statistic in (
                lambda i, d=distance, own=own: d(own, i),
                lambda i, d=distance, own=own, full=full: d(own, i) - d(full, i),
            ):
                found = bootstrap_interval(statistic, [len(own)], resamples=50)
                line += f" {found.value:+9.3f} +- {found.error:5.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="CellFlux has 1.2")
    parser.add_argument("--images", type=int, default=240, help="generated images; rounded up to all 12 mechanisms")
    arguments = parser.parse_args()
    moas = list(MOAS) * -(-arguments.images // len(MOAS))
    table = known_compounds()
    compounds = [table.index[table["moa"] == moa][0] for moa in moas]
    rows = make_rows(arguments.guidance_scale)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; {len(moas)} images, "
        f"{STEPS} steps of {rows[0].pipe.scheduler.config.solver}, guidance_scale {arguments.guidance_scale}"
    )
    generate(rows, cells(["DMSO"] * len(moas), seed=11), compounds)
    print_table(rows, np.array(moas), cells(moas * 3, seed=12), np.array(moas * 3))


if __name__ == "__main__":
    main()
