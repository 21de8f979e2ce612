"""What N samples buy at equal network evaluations: choosing the best, matching, rejecting, and searching.

OMP_NUM_THREADS=1 python benchmarks/test_time_scaling.py                             the shipped base, simulated cells
OMP_NUM_THREADS=1 python benchmarks/test_time_scaling.py --pipeline DIR --judge DIR --data_dir CROPS

For each seed (other held-out controls, other noise) and each N the chosen images are compared with held-out treated
cells that are neither those of the rewards nor those of the row "real treated". Every row of one N has cost the same.
Prints a table for each N, mean ± standard error over the seeds, and writes results.json and curves.png; a seed that is
done, in seedS.json, is not done again. The row "N, limit" is matched on the features of frechet_image themselves,
with the very cells that it is then compared with: about as near as any choice among N candidates can come in that
column. Several pipelines, such as those of several seeds of post-training, take turns over the seeds. A pipeline
without rewards gets a suite that is fitted on the training plates, with a classifier that is trained first (or
--classifier).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from results_table import markdown_table

from cellfluxrl import CellFluxRLPipeline, ControlTreatedPairs, MoAClassifier, RewardSuite
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.evaluation.cells import HeldOutCells, sample_held_out
from cellfluxrl.evaluation.statistics.metrics import (
    frechet_distance,
    image_features,
    mean_wasserstein,
    relative_spread,
)
from cellfluxrl.figures import COLORS, DOTS_PER_INCH, styled
from cellfluxrl.pipelines.cellflux_rl import SEARCHES
from cellfluxrl.pipelines.selection import (
    SELECTIONS,
    CandidateScores,
    choose_candidates,
    score_candidates,
    select_match,
)
from cellfluxrl.rewards.energy import pairwise
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import moa
from cellfluxrl.training.common import load_labelled_cells, make_accelerator
from cellfluxrl.training.demo import SHIPPED_BASE

COLUMNS = {
    "combined": "the combined reward, which best and the searches maximise",
    "within": "share of images within the range of real cells, in all that the rewards measure",
    "energy": "energy distance of the scaled statistics to real cells; lower is better",
    "wasserstein": "mean Wasserstein-1 distance of the shape and count statistics, in their standard deviations",
    "frechet_image": "Frechet distance on hand-made features of intensity and texture",
    "spread_image": "spread of these features over that of real cells; 1 is right",
    "judge": "probability of the true mechanism by the independent classifier (--judge)",
    "frechet_judge": "Frechet distance on its features",
    "spread_judge": "spread of its features over that of real cells; 1 is right",
}
TITLES = {
    "combined": "combined reward",
    "wasserstein": "Wasserstein distance of the statistics",
    "frechet_judge": "Frechet distance, independent classifier",
    "spread_judge": "spread over real cells', its features",
}
STATISTICS = slice(0, 6)  # of what is matched: without the features of the rewards' own classifier
SHAPES = slice(0, 5)  # and without its logit


@dataclass(frozen=True)
class Seen:
    """All that is measured on N images: rewards and statistics `(N, ...)`, and what was never optimised."""

    scores: CandidateScores
    image_features: np.ndarray
    judge: np.ndarray | None
    judge_features: np.ndarray | None

    def take(self, rows: torch.Tensor, selected: torch.Tensor) -> Seen:
        """Of the candidates `rows`, which are the `selected` ones of each control."""
        own = (None if v is None else v[rows] for v in (self.image_features, self.judge, self.judge_features))
        return Seen(self.scores.chosen(selected), *own)


@torch.no_grad()
def look(images: torch.Tensor, moas: list[str], suite: RewardSuite, judge: MoAClassifier | None, scores=None) -> Seen:
    """Measure `(M * N, C, H, W)` images, N for each of M mechanisms."""
    scores = scores or score_candidates(suite, images, moas)
    features = image_features(images.cpu()).double().numpy()
    if judge is None:
        return Seen(scores, features, None, None)
    outputs = [judge(part.to(judge.device)) for part in images.split(256)]
    own = judge.class_indices(moas).repeat_interleave(len(images) // len(moas))
    probability = torch.cat([o.logits for o in outputs]).cpu().softmax(dim=1)[torch.arange(len(own)), own]
    judged = torch.cat([o.features for o in outputs]).cpu().double().numpy()
    return Seen(scores, features, probability.numpy(), judged)


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|: 0 for equal distributions, up to the size of the samples."""
    return float(2 * pairwise(a, b).mean() - pairwise(a, a).mean() - pairwise(b, b).mean())


def measures(seen: Seen, real: Seen) -> dict[str, float]:
    """The columns of the table for one image of each control."""
    vectors, others = seen.scores.vectors.cpu().double(), real.scores.vectors.cpu().double()
    scale = np.maximum(real.image_features.std(axis=0), 1e-6)
    ours, theirs = seen.image_features / scale, real.image_features / scale
    row = {
        "combined": float(seen.scores.rewards["combined"].mean()),
        "within": float((seen.scores.outside == 0).double().mean()),
        "energy": energy_distance(vectors[:, STATISTICS], others[:, STATISTICS]),
        "wasserstein": mean_wasserstein(vectors[:, SHAPES].numpy(), others[:, SHAPES].numpy()),
        "frechet_image": frechet_distance(ours, theirs),
        "spread_image": relative_spread(ours, theirs),
    }
    if seen.judge is not None:
        row["judge"] = float(seen.judge.mean())
        row["frechet_judge"] = frechet_distance(seen.judge_features, real.judge_features)
        row["spread_judge"] = relative_spread(seen.judge_features, real.judge_features)
    return row


def rows_of_one_seed(
    pipe: CellFluxRLPipeline,
    accelerator: Accelerator,
    judge: MoAClassifier | None,
    cells: HeldOutCells,
    controls: torch.Tensor,
    numbers: list[int],
    settings: dict,
    seed: int,
) -> dict[str, dict[str, float]]:
    """`{"N, way": measures}` for every way of spending N samples on each control."""
    suite, count = pipe.rewards, len(cells.moa)
    real = chosen_of(look(images_to_tensor(cells.reference), cells.reference_table["moa"].tolist(), suite, judge), 1)
    rows = {"real treated": measures(chosen_of(look(images_to_tensor(cells.real), cells.moa, suite, judge), 1), real)}
    settings = {**settings, "compound": cells.compound, "output_type": "pt"}
    if pipe.is_conditioned_on_dose:
        settings["concentration"] = cells.table["concentration"].tolist()

    def generate(**way) -> torch.Tensor:
        generator = seeded_generator(seed, "test-time scaling")
        with accelerator.autocast():
            return pipe(controls, moa=cells.moa, generator=generator, **settings, **way).images.float()

    most = max(numbers)
    candidates = look(generate(num_images_per_control=most), cells.moa, suite, judge)
    for number in numbers:
        first = candidates.scores.first(number)
        for selection in SELECTIONS if number > 1 else ("best",):
            selected = choose_candidates(suite, first, cells.moa, selection)
            seen = candidates.take(torch.arange(count) * most + selected, selected)
            rows[f"{number}, {selection}" if number > 1 else "1"] = measures(seen, real)
        if number > 1:
            selected = choose_by_image_features(candidates, real, number)
            seen = candidates.take(torch.arange(count) * most + selected, selected)
            rows[f"{number}, limit"] = measures(seen, real)
        for search in SEARCHES if number > 1 else ():
            images = generate(best_of_n=number, search=search)
            rows[f"{number}, {search}"] = measures(chosen_of(look(images, cells.moa, suite, judge), 1), real)
    return rows


def choose_by_image_features(candidates: Seen, real: Seen, number: int) -> torch.Tensor:
    """Match the first `number` candidates of each control to the real cells in the features of `frechet_image`."""
    controls = len(candidates.scores.vectors)
    scale = np.maximum(real.image_features.std(axis=0), 1e-6)
    ours, theirs = (torch.from_numpy(seen.image_features / scale) for seen in (candidates, real))
    return select_match(ours.unflatten(0, (controls, -1))[:, :number], theirs)


def chosen_of(seen: Seen, per_control: int) -> Seen:
    """The first of `per_control` images of each control."""
    count = len(seen.image_features) // per_control
    return seen.take(torch.arange(count) * per_control, torch.zeros(count, dtype=torch.long))


def summary(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard error over the seeds; the latter is NaN for one seed."""

    def of(values: list[float]) -> tuple[float, float]:
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
        return float(np.mean(values)), float(error)

    first = by_seed[0]
    return {row: {c: of([seed[row][c] for seed in by_seed]) for c in columns} for row, columns in first.items()}


def differences(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Paired over the seeds: searches minus the best of as many samples, and matched sets minus real cells."""
    rows = by_seed[0]
    pairs = {row: f"{row.split(',')[0]}, best" for row in rows if row.endswith(tuple(SEARCHES))}
    pairs |= {row: "real treated" for row in rows if row.endswith("match")}

    def minus(seed: dict[str, dict[str, float]], row: str, other: str) -> dict[str, float]:
        return {column: value - seed[other][column] for column, value in seed[row].items()}

    return summary([{f"{row} - {other}": minus(seed, row, other) for row, other in pairs.items()} for seed in by_seed])


def draw(path: Path, rows: dict[str, dict[str, tuple[float, float]]], columns: list[str]) -> None:
    """Each way against N, which is what it costs; the band is of real cells."""
    figure = Figure(figsize=(3.6 * len(columns), 3.6), layout="constrained", dpi=DOTS_PER_INCH)
    ways = [*SELECTIONS, *SEARCHES]
    for panel, (column, axes) in enumerate(zip(columns, np.atleast_1d(figure.subplots(1, len(columns))), strict=True)):
        mean, error = rows["real treated"][column]
        styled(axes).axhspan(mean - error, mean + error, color="#888888", alpha=0.25, linewidth=0)
        axes.axhline(mean, color="#555555", linewidth=1.2, label="real cells")
        for way, color in zip(ways, COLORS, strict=False):
            points = {1: rows["1"][column]} if "1" in rows else {}
            points |= {int(k.split(",")[0]): v[column] for k, v in rows.items() if k.endswith(f", {way}")}
            values, errors = np.transpose(list(points.values()))
            axes.errorbar(list(points), values, errors, color=color, marker="o", ms=4, capsize=2, lw=1.2, label=way)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("N samples of each control, or as many evaluations")
        axes.set_title(TITLES[column], fontsize=9)
        if panel == 0:
            axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def load(
    arguments: argparse.Namespace,
) -> tuple[list[CellFluxRLPipeline], Accelerator, MoAClassifier | None, datasets.DatasetDict]:
    """The pipelines with rewards, where they run, the independent classifier if there is one, and the cells."""
    options = moa.MoAArguments(
        dataset_name="crops" if arguments.data_dir else arguments.dataset_name,
        data_dir=arguments.data_dir,
        test_plates=arguments.test_plates,
        image_size=arguments.image_size,
        simulated_cells_per_moa=arguments.cells_per_moa,
        max_train_steps=arguments.classifier_steps,
        output_dir=arguments.output_dir,
        mixed_precision=arguments.mixed_precision,
        cpu=arguments.cpu,
    )
    accelerator = make_accelerator(options)
    cells = load_labelled_cells(options)
    suite, pipelines = None, []
    for name in arguments.pipeline:
        own = {} if (Path(name) / "rewards").is_dir() else {"rewards": None}
        pipe = CellFluxRLPipeline.from_pretrained(name, **own).to(accelerator.device)
        if pipe.rewards is None:
            if suite is None:
                given = arguments.classifier
                classifier = (
                    MoAClassifier.from_pretrained(given) if given else moa.train(options, accelerator, cells)[0]
                )
                suite = RewardSuite.fit(cells["train"], classifier.eval())
            pipe.register_modules(rewards=suite)
        pipe.set_progress_bar_config(disable=True)
        pipelines.append(pipe)
    judge = MoAClassifier.from_pretrained(arguments.judge).eval() if arguments.judge else None
    return pipelines, accelerator, judge if judge is None else judge.to(accelerator.device), cells


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", nargs="+", default=[str(SHIPPED_BASE)], help="folders of pipelines")
    parser.add_argument("--classifier", help="folder of the classifier for a pipeline without rewards")
    parser.add_argument("--judge", help="folder of an independent classifier")
    parser.add_argument("--data_dir", help="crops, one PLATE.npz a plate; without it --dataset_name")
    parser.add_argument("--dataset_name", default="simulated", help="'simulated' or a built data set")
    parser.add_argument("--test_plates", nargs="+", help="default: the last treated plate")
    parser.add_argument("--image_size", type=int, default=48)
    parser.add_argument("--cells_per_moa", type=int, default=400, help="of simulated cells")
    parser.add_argument("--classifier_steps", type=int, default=1100, help="for a pipeline without rewards")
    parser.add_argument("--controls", type=int, default=156)
    parser.add_argument("--calibrate", action="store_true", help="controls at the intensities of those of training")
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--output_dir", default="runs/test_time_scaling", help="for results.json and prepared data")
    parser.add_argument("--mixed_precision", default="bf16", help="'no', 'bf16' or 'fp16'")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU even where a GPU is found")
    return parser.parse_args()


def main() -> None:
    arguments, start = parse(), time.perf_counter()
    logging.getLogger("cellfluxrl.pipelines.cellflux_rl").setLevel(logging.ERROR)  # the table says what is outside
    pipelines, accelerator, judge, cells = load(arguments)
    settings = {name: getattr(arguments, name) for name in ("num_inference_steps", "guidance_scale")}
    pairs, by_seed = ControlTreatedPairs(cells["test"]), []
    for number, seed in enumerate(arguments.seeds):
        path = Path(arguments.output_dir) / f"seed{seed}.json"
        if not path.is_file():
            cells_of_seed = sample_held_out(pairs, arguments.controls, seed)
            pipe = pipelines[number % len(pipelines)]
            controls = images_to_tensor(cells_of_seed.control)
            if arguments.calibrate:
                controls = pipe.calibrate(controls)
            rows = rows_of_one_seed(
                pipe, accelerator, judge, cells_of_seed, controls, arguments.numbers, settings, seed
            )
            path.write_text(json.dumps(rows, indent=2))
        by_seed.append(json.loads(path.read_text()))
        print(f"seed {seed} after {time.perf_counter() - start:.0f} s", flush=True)

    rows, cost = summary(by_seed), pipelines[0].evaluations_of(**settings)
    columns = [name for name in COLUMNS if name in rows["real treated"]]
    for number in arguments.numbers:
        shown = {k: v for k, v in rows.items() if k.split(",")[0] == str(number) or k == "real treated"}
        print(f"\nN = {number}: {number * cost} evaluations of the network an image")
        for part in (columns[:5], columns[5:]):
            print(markdown_table(shown, part))
    paired = differences(by_seed)
    print("\nDifferences, paired over the seeds")
    for part in (columns[:5], columns[5:]):
        print(markdown_table(paired, part))
    for name in columns:
        print(f"{name}: {COLUMNS[name]}")
    draw(Path(arguments.output_dir) / "curves.png", rows, [name for name in TITLES if name in columns])
    results = {
        "settings": vars(arguments),
        "evaluations_a_sample": cost,
        "summary": rows,
        "differences": paired,
        "seeds": by_seed,
    }
    (Path(arguments.output_dir) / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
