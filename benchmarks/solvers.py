"""Quality of generated cells against the number of network evaluations, for every solver and time grid.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py --plot docs/solvers.png [--num_images 480] [--evaluations 4 6 8 10]

All samplers get the same held-out controls and the same noise, so that differences between them are paired. The
reference is the original sampler of CellFlux: Heun, 50 steps of the EDM grid, 100 evaluations. Columns:

- `frechet`, `frechet_image`: Frechet distance to real cells of the same plate and compounds in the features of a
  classifier that took no part in training the network, and in hand-made image features; each with its ratio to the
  reference, and the standard error of that ratio under resampling of the images, the same for both samplers;
- `rms`: root mean square difference (images are in [-1, 1]) to the solution of the same flow, rk4 with many steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxPipeline, MoAClassifier
from cellfluxrl.data.images import images_to_tensor, to_uint8
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.evaluation.cells import HeldOutCells, sample_held_out
from cellfluxrl.evaluation.statistics.intervals import bootstrap_interval
from cellfluxrl.evaluation.statistics.metrics import frechet_distance, image_features
from cellfluxrl.schedulers.grids import TIME_GRIDS
from cellfluxrl.schedulers.solvers import SOLVERS
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import moa
from cellfluxrl.training.common import load_cells
from cellfluxrl.training.demo import SHIPPED_BASE


@dataclass(frozen=True)
class Sampler:
    """A solver on a grid with a number of steps."""

    solver: str
    time_grid: str
    steps: int

    @property
    def evaluations(self) -> int:
        return self.steps * CellFluxFlowMatchScheduler(solver=self.solver).order


REFERENCE = Sampler("heun", "edm", 50)


def samplers(budgets: list[int]) -> list[Sampler]:
    """Every solver and grid at every number of evaluations that it can have."""
    found = []
    for solver in SOLVERS:
        order = CellFluxFlowMatchScheduler(solver=solver).order
        found += [Sampler(solver, g, n // order) for g in TIME_GRIDS for n in budgets if n % order == 0]
    return found


def generate(
    pipe: CellFluxPipeline, cells: HeldOutCells, count: int, sampler: Sampler, args: argparse.Namespace
) -> torch.Tensor:
    """One sample of each of the first controls, `(N, C, H, W)`; its noise depends on seed and control alone."""
    pipe.scheduler = CellFluxFlowMatchScheduler.from_config(
        pipe.scheduler.config, solver=sampler.solver, time_grid=sampler.time_grid
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
        return pipe(
            images_to_tensor(cells.control[:count]),
            compound=cells.compound[:count],
            num_inference_steps=sampler.steps,
            guidance_scale=args.guidance_scale,
            generator=[seeded_generator(args.seed, "noise", i) for i in range(count)],
            output_type="pt",
        ).images


def train_judge(cells, seed: int) -> MoAClassifier:
    """The independent classifier of the demo: twice as wide as that of the rewards, and of another seed."""
    with tempfile.TemporaryDirectory() as folder:
        args = moa.MoAArguments(output_dir=folder, width=32, max_train_steps=600, seed=seed + 101, cpu=True)
        return moa.train(args, Accelerator(cpu=True), cells)[0].eval()


def feature_sets(judge: MoAClassifier, real: torch.Tensor) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
    """The two feature extractors, from images to `(N, D)`."""
    scale = image_features(real).std(dim=0)
    return {
        "frechet": lambda images: moa.predict(judge, torch.from_numpy(to_uint8(images)))[1].numpy(),
        "frechet_image": lambda images: (image_features(images) / scale).numpy(),
    }


def frechet_ratio(own: np.ndarray, reference: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Frechet distance of `own` to `real`, its ratio to that of `reference`, and the paired error of the ratio."""

    def ratio(rows: np.ndarray) -> float:
        return frechet_distance(own[rows], real) / frechet_distance(reference[rows], real)

    found = bootstrap_interval(ratio, [len(own)], resamples=50)
    return {"distance": frechet_distance(own, real), "ratio": found.value, "ratio_error": found.error}


def plot(results: list[dict], path: Path) -> None:
    """Ratio of the Frechet distances, and distance to the converged solution, against evaluations."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = {
        "frechet": "Frechet distance, classifier's features,\nrelative to Heun, 50 EDM steps",
        "frechet_image": "Frechet distance, image features,\nrelative to Heun, 50 EDM steps",
        "rms": "RMS difference\nto the converged samples",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for k, solver in enumerate(SOLVERS):
            for grid, style in zip(TIME_GRIDS, ("-o", "--s"), strict=True):
                own = [r for r in results if (r["solver"], r["time_grid"]) == (solver, grid)]
                own = sorted((r for r in own if r["label"] != "reference"), key=lambda r: r["evaluations"])
                x = [r["evaluations"] for r in own]
                label = f"{solver}, {grid}"
                if key == "rms":
                    ax.plot(x, [r["rms"] for r in own], style, color=f"C{k}", label=label, markersize=4)
                else:
                    y, error = [r[key]["ratio"] for r in own], [r[key]["ratio_error"] for r in own]
                    ax.errorbar(x, y, error, fmt=style, color=f"C{k}", label=label, markersize=4, capsize=2)
        ax.set(title=title, xlabel="evaluations of the network", xscale="log", yscale="log")
        if key != "rms":
            ax.axhspan(1 / 1.02, 1.02, color="0.8", zorder=0)
            ax.axvline(10, color="0.6", linewidth=0.8)
        ticks = sorted({r["evaluations"] for r in results if r["label"] != "reference"})
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.set_xticks([], minor=True)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained_model_name_or_path", default=str(SHIPPED_BASE))
    parser.add_argument("--num_images", type=int, default=480, help="controls, one sample of each by each sampler")
    parser.add_argument("--num_converged", type=int, default=48, help="of these, compared with the converged samples")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 6, 8, 10])
    parser.add_argument("--converged_steps", type=int, default=50, help="of rk4, four evaluations each")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--bf16", action="store_true", help="faster; rounding shows in `rms` from about 0.003 down")
    parser.add_argument("--judge", help="folder of a trained MoAClassifier instead of training one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="where to write the PNG")
    parser.add_argument("--results", type=Path, help="where to write the numbers as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = moa.MoAArguments(output_dir=folder, simulated_cells_per_moa=max(400, args.num_images), seed=args.seed)
        data_set = load_cells(data)
        cells = sample_held_out(ControlTreatedPairs(data_set["test"]), args.num_images, args.seed)
        judge = MoAClassifier.from_pretrained(args.judge).eval() if args.judge else train_judge(data_set, args.seed)
    pipe = CellFluxPipeline.from_pretrained(args.pretrained_model_name_or_path)
    pipe.set_progress_bar_config(disable=True)
    converged = generate(pipe, cells, args.num_converged, Sampler("rk4", "uniform", args.converged_steps), args)

    treated = images_to_tensor(cells.reference)
    extract = feature_sets(judge, treated)
    real = {name: features(treated) for name, features in extract.items()}
    reference: dict[str, np.ndarray] = {}
    results = []
    for sampler in [REFERENCE, *samplers(args.evaluations)]:
        start = time.perf_counter()
        images = generate(pipe, cells, len(cells.control), sampler, args)
        seconds = time.perf_counter() - start
        own = {name: features(images) for name, features in extract.items()}
        reference = reference or own
        row = {
            "label": "reference" if sampler == REFERENCE else "",
            **vars(sampler),
            "evaluations": sampler.evaluations,
            "rms": float((images[: args.num_converged] - converged).square().mean().sqrt()),
            "seconds": round(seconds, 1),
            **{name: frechet_ratio(own[name], reference[name], real[name]) for name in extract},
        }
        results.append(row)
        columns = "  ".join(
            "{} {distance:7.4f}, ratio {ratio:.3f} +- {ratio_error:.3f}".format(name, **row[name]) for name in extract
        )
        print(
            f"{sampler.evaluations:4d} evaluations  {sampler.solver:16s} {sampler.time_grid:8s} {sampler.steps:3d} "
            f"steps  {columns}  rms {row['rms']:.4f}  {seconds:.0f} s",
            flush=True,
        )
    if args.results:
        args.results.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": results}))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
