"""Compare ways of post-training on a plate that none of them saw: rewards, KL settings, objectives, over seeds.

    python benchmarks/rl_study.py benchmarks/rl_study.yaml --base runs/base --classifier runs/classifier \
        --judge runs/judge --data_dir CROPS --output_dir runs/study

trains and evaluates every variant of the YAML file with every seed, each as OUTPUT_DIR/VARIANT/seedK, and writes
results.json and the tables. It goes on where it was stopped; several of them may share the work, each with its own
--only VARIANT,... or --seeds. `training/plots.py OUTPUT_DIR` draws the sweeps. With --dataset_name simulated there
is no --data_dir, and --base defaults to the one that ships with the package.

Base, classifier, reward suite, held-out controls and their noise are the same for all; what differs between seeds is
everything random in post-training. "calibrated": from held-out controls at the intensities of those of training
([`CellFluxPipeline.calibrate`]), for the base and the variants that `calibrated` names. An error is the standard error
over seeds and that of the evaluation, together.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from results_table import markdown_table

from cellfluxrl import CellFluxPipeline, MoAClassifier, RewardSuite
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.evaluation.comparison import (
    REWARD_COLUMNS,
    Scored,
    choose,
    paired_difference,
    score_images,
    table_row,
)
from cellfluxrl.evaluation.statistics.metrics import bootstrap_error, mean_wasserstein
from cellfluxrl.training import rl
from cellfluxrl.training.common import load_labelled_cells
from cellfluxrl.training.demo import CANDIDATES, SHIPPED_BASE, HeldOut, generate_candidates, held_out_cells

Row = dict[str, tuple[float, float]]
STATISTICS = 5  # shapes and counts; the sixth is the logit of a classifier that rewards are computed from


class Evaluator:
    """Judges pipelines on the same held-out controls and noise."""

    def __init__(self, suite: RewardSuite, judge: MoAClassifier, cells: HeldOut, steps: int):
        self.suite, self.judge, self.cells, self.steps = suite, judge, cells, steps
        self.real = self.scored(cells.reference, cells.reference_moa)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")

    def scored(self, images: torch.Tensor, moa: Sequence[str]) -> Scored:
        return score_images(images, moa, self.suite, self.judge)

    def candidates(self, pipeline: CellFluxPipeline, calibrated: bool = False) -> Scored:
        cells = replace(self.cells, controls=pipeline.calibrate(self.cells.controls)) if calibrated else self.cells
        images = generate_candidates(pipeline, cells, self.steps, 0, self.accelerator)
        return self.scored(images, [m for m in self.cells.moa for _ in range(CANDIDATES)])

    def row(self, scored: Scored) -> Row:
        """The demo's table, and the distance of each statistic."""
        row = table_row(scored, self.real)
        for k, name in enumerate(self.suite.statistic_names[:STATISTICS]):
            a, b = (x.vectors[:, k : k + 1].double().numpy() for x in (scored, self.real))
            row[f"W1 {name}"] = (
                mean_wasserstein(a, b),
                bootstrap_error(lambda r, a=a, b=b: mean_wasserstein(a[r], b), len(a)),
            )
        return row

    def first(self, candidates: Scored, selection: str = "best", num: int = 1) -> Scored:
        return choose(candidates, self.cells.moa, num, selection, self.suite)


def over_seeds(rows: Sequence[Row]) -> Row:
    """Means over seeds; the error is that over seeds and that of the evaluation, together."""
    result = {}
    for column in rows[0]:
        values = torch.tensor([row[column][0] for row in rows], dtype=torch.double)
        between = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        within = sum(row[column][1] for row in rows) / len(rows)
        result[column] = (float(values.mean()), math.hypot(between, within))
    return result


def run_variant(
    args: argparse.Namespace, changed: dict, folder: Path, seed: int, base: CellFluxPipeline, suite: RewardSuite, cells
) -> tuple[CellFluxPipeline, float]:
    """Post-train one variant with one seed; the pipeline, and the seconds it took."""
    own = rl.RLArguments(
        **{
            "dataset_name": args.dataset_name,
            "data_dir": args.data_dir,
            "image_size": 48,
            "mixed_precision": "bf16",
            "output_dir": str(folder),
            "seed": seed,
            "resume_from_checkpoint": "latest",
            "checkpoints_total_limit": 1,
            **changed,
        }
    )
    started = time.perf_counter()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")
    pipeline = rl.train(own, accelerator, cells, base, suite)
    accelerator.free_memory()
    return pipeline, time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", help="YAML file: `common` settings of training/rl.py, and those of each variant")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--base", default=str(SHIPPED_BASE))
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--judge", required=True, help="a classifier that no reward is computed from")
    parser.add_argument("--dataset_name", default="crops")
    parser.add_argument("--data_dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", help="names of variants, separated by commas")
    parser.add_argument("--controls", type=int, default=320, help="held-out controls, each with 4 samples")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    study = yaml.safe_load(Path(args.variants).read_text())
    common, variants = study["common"], study["variants"]
    folder = Path(args.output_dir)
    cells = load_labelled_cells(
        rl.RLArguments(
            dataset_name=args.dataset_name, data_dir=args.data_dir, image_size=48, output_dir=args.output_dir
        )
    )
    base = CellFluxPipeline.from_pretrained(args.base)
    suite = RewardSuite.fit(cells["train"], MoAClassifier.from_pretrained(args.classifier))
    judge = MoAClassifier.from_pretrained(args.judge)
    held_out = held_out_cells(ControlTreatedPairs(cells["test"]), args.controls, seed=0)
    evaluator = Evaluator(suite, judge, held_out, rl.RLArguments(**common).num_inference_steps)
    base_candidates = evaluator.candidates(base)

    for name in args.only.split(",") if args.only else variants:
        for seed in args.seeds:
            own = folder / name / f"seed{seed}"
            if (own / "evaluation.json").is_file():
                continue
            pipeline, seconds = run_variant(args, common | variants[name], own, seed, base, suite, cells)
            candidates = evaluator.candidates(pipeline)
            columns = {c: (candidates.rewards[c], base_candidates.rewards[c]) for c in REWARD_COLUMNS}
            columns["judge"] = (candidates.judge, base_candidates.judge)
            differences = {c: paired_difference(ours, theirs, args.controls) for c, (ours, theirs) in columns.items()}
            evaluation = {
                "row": evaluator.row(evaluator.first(candidates)),
                "match": evaluator.row(evaluator.first(candidates, "match", CANDIDATES)),
                "minus base": {c: (d.mean, d.standard_error) for c, d in differences.items()},
                "seconds": seconds,
            }
            if name in study.get("calibrated", []):
                candidates = evaluator.candidates(pipeline, calibrated=True)
                evaluation["calibrated"] = evaluator.row(evaluator.first(candidates))
                evaluation["calibrated, match"] = evaluator.row(evaluator.first(candidates, "match", CANDIDATES))
            (own / "evaluation.json").write_text(json.dumps(evaluation, indent=2))
            print(
                f"\n{name}, seed {seed}: {seconds:.0f} s", {k: v[0] for k, v in evaluation["row"].items()}, flush=True
            )

    rows = {
        "copy of control": evaluator.row(evaluator.scored(held_out.controls, held_out.moa)),
        "real treated": evaluator.row(evaluator.scored(held_out.treated, held_out.moa)),
        "base": evaluator.row(evaluator.first(base_candidates)),
        "base, best of 4": evaluator.row(evaluator.first(base_candidates, "best", CANDIDATES)),
        "base, match of 4": evaluator.row(evaluator.first(base_candidates, "match", CANDIDATES)),
    }
    if study.get("calibrated"):
        calibrated = evaluator.candidates(base, calibrated=True)
        rows["base, calibrated"] = evaluator.row(evaluator.first(calibrated))
        rows["base, calibrated, match of 4"] = evaluator.row(evaluator.first(calibrated, "match", CANDIDATES))
    seconds, more, single = {}, {}, {}
    for name in variants:
        paths = sorted((folder / name).glob("seed*/evaluation.json"))
        done = [json.loads(path.read_text()) for path in paths]
        if done:
            single |= {f"{name}/{path.parent.name}": e["row"] for path, e in zip(paths, done, strict=True)}
            rows[name] = over_seeds([e["row"] for e in done])
            if name in study.get("match", []):
                more[f"{name}, match of 4"] = over_seeds([e["match"] for e in done])
            if name in study.get("calibrated", []):
                more[f"{name}, calibrated"] = over_seeds([e["calibrated"] for e in done])
                more[f"{name}, calibrated, match of 4"] = over_seeds([e["calibrated, match"] for e in done])
            seconds[name] = [round(e["seconds"]) for e in done]
    rows |= more
    (folder / "results.json").write_text(json.dumps({"rows": rows | single, "seconds": seconds}, indent=2))
    columns = list(rows["base"])
    for part in (columns[:8], columns[8:]):
        print("\n" + markdown_table(rows, part))
    print("\nseconds of each seed: " + ", ".join(f"{name} {values}" for name, values in seconds.items()))


if __name__ == "__main__":
    main()
