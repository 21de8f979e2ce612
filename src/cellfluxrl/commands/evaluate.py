"""`cellfluxrl evaluate`."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.terminal import print_json

if TYPE_CHECKING:  # loaded where they are used, so that --help is quick
    import datasets

    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
    from cellfluxrl.rewards.suite import RewardSuite

logger = logging.getLogger(__name__)

FEATURES = ("judge", "rewards", "inception")


def evaluate(argv: Sequence[str]) -> None:
    r"""Evaluate a pipeline on the held-out plates of a data set, by its rewards and by what no reward has seen.

    Writes report.html, results.json, tables (CSV) and pictures (PNG). Generated cells and measurements are kept in
    --output_dir: the same command resumes where it was interrupted. DATASET is a folder of `cellfluxrl data build`,
    org/name on the Hub, 'simulated', or 'crops' with --data_dir.

    Examples:
      cellfluxrl evaluate runs/rl my_cells --judge runs/judge --output_dir runs/evaluation
      cellfluxrl evaluate runs/rl my_cells --against runs/base --judge runs/judge --best_of_n 1 2 4 8 \
          --output_dir runs/rl_against_base
      cellfluxrl evaluate org/name simulated --output_dir runs/evaluation --json
    """
    args = _parse(argv)
    from cellfluxrl import MoAClassifier, RewardSuite
    from cellfluxrl.evaluation.measuring import make_evaluators
    from cellfluxrl.evaluation.report.summary import summary
    from cellfluxrl.evaluation.study import SIMULATED_NOTE, StudySettings, clear_study, run_study, write_study

    if args.overwrite:
        clear_study(args.output_dir)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    pipelines = _load_pipelines(args)
    first = next(iter(pipelines.values()))
    suite = next((p.rewards for p in pipelines.values() if p.rewards is not None), None)
    if args.rewards:
        suite = RewardSuite.from_pretrained(args.rewards)
    cells = _load_cells(args, suite, first)
    suite = (suite or _fit_suite(args, cells["train"])).to(first.device).eval()
    judge = MoAClassifier.from_pretrained(args.judge).to(first.device).eval() if args.judge else None
    if judge is None:
        logger.warning("no --judge: the only classifier is that of the rewards, which is not held-out evidence")
    evaluators = make_evaluators(suite, judge, args.features, args.segmenter, args.inception_weights)

    started = time.perf_counter()
    settings = StudySettings(
        num=args.num,
        best_of_n=args.best_of_n or (),
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        calibrate=args.calibrate,
        seed=args.seed,
    )
    training = _training_cells(args.training_dataset) if args.training_dataset else None
    study = run_study(pipelines, cells, evaluators, settings, args.output_dir, training)
    if args.dataset == "simulated":
        study.results.notes.append(SIMULATED_NOTE)
    title = " against ".join(pipelines) + f" on {args.dataset}"
    details = {k: v for k, v in vars(args).items() if k not in ("output_dir", "overwrite", "cpu", "json")}
    saved = write_study(study, args.output_dir, title, details)
    if args.json:
        results = json.loads((Path(args.output_dir) / "results.json").read_text(encoding="utf-8"))
        print_json({**results, "saved": saved})
        return
    print(summary(study.results))
    print(f"\n{time.perf_counter() - started:.0f} s")
    print("\n".join(f"saved: {path}" for path in saved))


def parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser("cellfluxrl evaluate", inspect.getdoc(evaluate))
    add = parser.add_argument
    add("pipeline", help="folder of a pipeline, or org/name on the Hub")
    add("dataset", help="folder of a built data set, org/name on the Hub, 'simulated', or 'crops' with --data_dir")
    add("--output_dir", required=True, help="where everything goes")
    add("--against", help="a second pipeline, which is compared on the same controls and noise")
    add("--rewards", help="reward suite, instead of the pipeline's")
    add("--classifier", help="MoA classifier to fit a suite with, where neither the pipeline nor --rewards has one")
    add("--judge", help="a second MoA classifier, which no reward used: the held-out one")
    add("--segmenter", help="of the morphology panel; default: otsu, or watershed where the rewards use otsu")
    add("--features", choices=FEATURES, help="of the Frechet and kernel distances; default: judge, if there is one")
    add("--inception_weights", help="torch-fidelity's file, for --features inception; default: torch.hub's cache")
    add("--training_dataset", metavar="DATASET/SPLIT", help="cells that may be memorised; default: the train split")
    add("--num", type=int, help="cells of each row; default: half of the test cells, at most 1000")
    add(
        "--best_of_n",
        type=int,
        nargs="*",
        metavar="N",
        help="choose among so many candidates, e.g. 1 2 4 8: curves, and a row of the most, matched",
    )
    add("--num_inference_steps", type=int, default=10, help="steps of the solver; default: 10")
    add("--guidance_scale", type=float, default=1.0, help="default: 1, no guidance")
    add("--calibrate", action="store_true", help="bring each plate's controls to the intensities of those of training")
    add("--data_dir", help="for 'crops': folder with one PLATE.npz a plate")
    add("--test_plates", nargs="*", help="held-out plates, instead of the test split")
    add("--image_size", type=int, help="of 'simulated' and 'crops'; default: that of the rewards")
    add("--simulated_cells_per_moa", type=int, default=400, help="for 'simulated'; default: 400")
    add("--seed", type=int, default=0, help="which cells, which noise, and all resampling; default: 0")
    add("--overwrite", action="store_true", help="generate and measure again, whatever --output_dir holds")
    add("--cpu", action="store_true", help="stay on the CPU even where a GPU is found")
    add_json_option(parser)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    if args.best_of_n and min(args.best_of_n) < 1:
        raise ValueError(f"--best_of_n must be at least 1, got {min(args.best_of_n)}")
    if args.num is not None and args.num < 1:
        raise ValueError(f"--num must be at least 1, got {args.num}")
    if args.features == "judge" and not args.judge:
        raise ValueError("--features judge needs a --judge")
    return args


def _load_pipelines(args: argparse.Namespace) -> dict[str, CellFluxRLPipeline]:
    """By the name of their rows: that of the folder, or as given where both have the same."""
    from cellfluxrl.devices import choose_device
    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline

    given = [args.pipeline, *([args.against] if args.against else [])]
    short = [Path(name).name for name in given]
    names = short if len(set(short)) == len(given) else given
    if len(set(names)) < len(given):
        raise ValueError(f"{args.pipeline!r} is compared with itself")
    device = choose_device(cpu=args.cpu)
    loaded = [CellFluxRLPipeline.from_pretrained(name).to(device) for name in given]
    return dict(zip(names, loaded, strict=True))


def _load_cells(
    args: argparse.Namespace, suite: RewardSuite | None, pipeline: CellFluxRLPipeline
) -> datasets.DatasetDict:
    from cellfluxrl.training.common import load_labelled_cells
    from cellfluxrl.training.options import SharedArguments

    size = args.image_size
    if size is None:
        size = suite.config.image_size[0] if suite and suite.config.image_size else pipeline.unet.config.sample_size
    shared = SharedArguments(
        dataset_name=args.dataset,
        data_dir=args.data_dir,
        test_plates=args.test_plates,
        image_size=size,
        simulated_cells_per_moa=args.simulated_cells_per_moa,
        seed=args.seed,
        output_dir=args.output_dir,
    )
    return load_labelled_cells(shared)


def _fit_suite(args: argparse.Namespace, cells: datasets.Dataset) -> RewardSuite:
    from cellfluxrl import MoAClassifier, RewardSuite

    if not args.classifier:
        raise ValueError(
            f"the pipeline {args.pipeline!r} has no rewards: give a suite (--rewards), or a classifier to fit one on "
            "the training split with (--classifier)"
        )
    return RewardSuite.fit(cells, MoAClassifier.from_pretrained(args.classifier).eval(), seed=args.seed)


def _training_cells(given: str) -> datasets.Dataset:
    from cellfluxrl.data.loading import load_split

    name, _, split = given.rpartition("/")
    if not name:
        raise ValueError(f"--training_dataset takes DATASET/SPLIT, got {given!r}")
    return load_split(name, split)


main = evaluate
