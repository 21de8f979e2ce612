"""Compare ways of post-training on a plate that none of them saw: rewards, KL settings, objectives, over seeds.

    python benchmarks/rl_study.py benchmarks/rl_study.yaml --base runs/base --classifier runs/classifier \
        --judge runs/judge --data_dir CROPS --output_dir runs/study

trains every variant of the YAML file with every seed, each as OUTPUT_DIR/VARIANT/seedK, evaluates all of them as
`cellfluxrl evaluate` does, and writes report.html, results.json and the tables. It resumes where it was stopped;
several of them may share the training, each with its own --only VARIANT,... or --seeds. `benchmarks/study_figures.py
OUTPUT_DIR` draws the sweeps. With --dataset_name simulated there is no --data_dir, and --base defaults to the one
that ships with the package.

Base, classifier, reward suite, held-out controls and their noise are the same for all; what differs between seeds is
everything random in post-training. OUTPUT_DIR/calibrated is the same from held-out controls at the intensities of
those of training ([`CellFluxPipeline.calibrate`]), for the base and the variants that `calibrated` names. An error is
the standard error over seeds and that of the evaluation, together.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import torch
import yaml
from accelerate import Accelerator
from results_table import markdown_table
from study_figures import Row, read_results

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier, RewardSuite
from cellfluxrl.evaluation.measuring import make_evaluators
from cellfluxrl.evaluation.study import StudySettings, run_study, write_study
from cellfluxrl.training import rl
from cellfluxrl.training.common import load_labelled_cells
from cellfluxrl.training.demo import SHIPPED_BASE
from cellfluxrl.training.runs import by_group, find_runs

CANDIDATES = (1, 4)


def over_seeds(rows: Sequence[Row]) -> Row:
    """Means over seeds; the error is that over seeds and that of the evaluation, together."""
    result = {}
    for column in [column for column in rows[0] if all(column in row for row in rows)]:
        values = torch.tensor([row[column][0] for row in rows], dtype=torch.double)
        between = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        within = sum(row[column][1] for row in rows) / len(rows)
        result[column] = (float(values.mean()), math.hypot(between, within))
    return result


def train_variant(
    args: argparse.Namespace,
    changed: Mapping,
    folder: Path,
    seed: int,
    base: CellFluxPipeline,
    suite: RewardSuite,
    cells: datasets.DatasetDict,
) -> None:
    """Post-train one variant with one seed."""
    fixed = {"dataset_name": args.dataset_name, "data_dir": args.data_dir, "image_size": 48, "mixed_precision": "bf16"}
    fixed |= {"output_dir": str(folder), "resume_from_checkpoint": "latest", "checkpoints_total_limit": 1}
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")
    rl.train(rl.RLArguments(**{**fixed, "seed": seed, **changed}), accelerator, cells, base, suite)
    accelerator.free_memory()


def summarise(rows: Mapping[str, Row], labels: Mapping[str, Sequence[str]]) -> dict[str, Row]:
    """One row for each variant, and the rows that have no seeds."""
    of_variants = {label for group in labels.values() for label in group}
    result = {name: row for name, row in rows.items() if name.split(", ")[0] not in of_variants}
    for variant, group in labels.items():
        for suffix in ("", *(f", {way} of {max(CANDIDATES)}" for way in ("best", "match"))):
            if own := [rows[label + suffix] for label in group if label + suffix in rows]:
                result[variant + suffix] = over_seeds(own)
    return result


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
    parser.add_argument("--controls", type=int, default=320, help="held-out controls")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    plan = yaml.safe_load(Path(args.variants).read_text())
    common, variants, folder = plan["common"], plan["variants"], Path(args.output_dir)
    data = {"dataset_name": args.dataset_name, "data_dir": args.data_dir, "image_size": 48}
    cells = load_labelled_cells(rl.RLArguments(**data, output_dir=args.output_dir))
    base = CellFluxPipeline.from_pretrained(args.base)
    suite = RewardSuite.fit(cells["train"], MoAClassifier.from_pretrained(args.classifier))
    for name in args.only.split(",") if args.only else variants:
        for seed in args.seeds:
            own = folder / name / f"seed{seed}"
            if not (own / "model_index.json").is_file():
                train_variant(args, common | variants[name], own, seed, base, suite, cells)

    runs = [run for run in find_runs([folder]) if (folder / run.label / "model_index.json").is_file()]
    labels = {name: [run.label for run in group] for name, group in by_group(runs).items() if name in variants}
    evaluators = make_evaluators(suite, MoAClassifier.from_pretrained(args.judge))
    for part, chosen in (("", list(labels)), ("calibrated", [n for n in plan.get("calibrated", []) if n in labels])):
        own = {name: labels[name] for name in chosen}
        every = [label for group in own.values() for label in group]
        if not every:
            continue
        matched = [label for name in plan.get("match", []) for label in own.get(name, [])]
        settings = StudySettings(
            num=args.controls,
            best_of_n=CANDIDATES,
            single=[label for label in every if label not in matched],
            num_inference_steps=rl.RLArguments(**common).num_inference_steps,
            calibrate=part == "calibrated",
        )
        models = {"base": base} | {label: CellFluxRLPipeline.from_pretrained(folder / label) for label in every}
        study = run_study(models, cells, evaluators, settings, folder / part)
        write_study(study, folder / part, f"Ways of post-training {part}", {"dataset": args.dataset_name, **plan})
        rows = summarise(read_results([folder / part / "results.json"]), own)
        for optimised in (True, False):
            columns = [name for name, column in study.results.columns.items() if column.optimised == optimised]
            print(f"\n{part}\n" + markdown_table(rows, columns))
    seconds = {label: _seconds(folder / label) for group in labels.values() for label in group}
    print("\nseconds of each run: " + json.dumps(seconds))


def _seconds(folder: Path) -> int:
    """What a run took, as its log says."""
    return round(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["seconds"])


if __name__ == "__main__":
    main()
