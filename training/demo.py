"""The whole chain: data, base, classifiers, rewards, post-training, evaluation, report; `--help` has examples."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate import Accelerator

from cellfluxrl.assets import SHIPPED_BASE
from cellfluxrl.data.images import to_uint8
from cellfluxrl.data.pairs import ControlTreatedPairs, images_to_tensor
from cellfluxrl.evaluation.comparison import (
    COLUMN_NOTES,
    COLUMNS,
    REWARD_COLUMNS,
    PairedDifference,
    Scored,
    choose,
    paired_difference,
    score_images,
    table_row,
)
from cellfluxrl.evaluation.report.html import format_table, write_report
from cellfluxrl.figures import best_of_n_curve, image_grid, outlined, training_curves
from cellfluxrl.hub.push import copy_records
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import moa, pretrain, rl
from cellfluxrl.training.common import load_labelled_cells, make_accelerator
from cellfluxrl.training.demo_command import DemoArguments, main
from cellfluxrl.training.options import SharedArguments, parse_arguments

CANDIDATES = 4
STAGE_FOLDERS = ("base", "classifier", "judge", "rl", "rl_shuffled", "rl_deviation", "pipeline")


T = TypeVar("T", bound=SharedArguments)


class Stages:
    """Announces each stage, and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = round(time.perf_counter() - start, 1)
        return result


def stage_arguments(cls: type[T], section: str, args: DemoArguments, config: str, folder: str, *extra: str) -> T:
    """The arguments of one script: the YAML file, then what the demo was given, then `extra`."""
    shared = ["--config", config, "--seed", str(args.seed), "--output_dir", str(Path(args.output_dir) / folder)]
    if args.data_dir:
        shared += ["--data_dir", args.data_dir]
    if args.cpu:
        shared += ["--cpu"]
    return parse_arguments(cls, section, "", [*shared, *extra])


def claim_output_dir(args: DemoArguments, config: str) -> None:
    """Mark the folder as this demo's, so that an interrupted run can go on and another one is not mixed with it.

    Raises:
        FileExistsError: If the folder holds a demo with other settings.
    """
    marker = Path(args.output_dir) / "settings.json"
    no_setting = ("overwrite", "output_dir", "cpu", "json")
    settings = {key: value for key, value in asdict(args).items() if key not in no_setting}
    settings["config"] = Path(config).read_text()
    if marker.is_file() and json.loads(marker.read_text()) != settings:
        if not args.overwrite:
            raise FileExistsError(
                f"{args.output_dir!r} holds a demo with other settings: "
                "choose another --output_dir or pass --overwrite"
            )
        for stage in STAGE_FOLDERS:
            shutil.rmtree(Path(args.output_dir) / stage, ignore_errors=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(settings, indent=2))


def classifier_of(args: moa.MoAArguments, accelerator: Accelerator, cells: datasets.DatasetDict) -> MoAClassifier:
    """Train a classifier, or load it if this demo has trained it before."""
    if (Path(args.output_dir) / "metrics.json").is_file():
        return MoAClassifier.from_pretrained(args.output_dir).eval()
    return moa.train(args, accelerator, cells)[0].eval()


def base_of(
    args: DemoArguments, config: str, accelerator: Accelerator, cells: datasets.DatasetDict
) -> CellFluxPipeline:
    """Pretrain on the data set, or take the base that ships with the package for simulated cells."""
    if args.dataset_name == "simulated":
        return CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    own = stage_arguments(
        pretrain.PretrainArguments, "pretrain", args, config, "base", "--resume_from_checkpoint", "latest"
    )
    return pretrain.train(own, accelerator, cells)


@dataclass(frozen=True)
class HeldOut:
    """Controls and treated cells of held-out plates: `controls[i]` and `treated[i]` share plate and compound."""

    controls: torch.Tensor
    treated: torch.Tensor
    reference: torch.Tensor
    compound: list[str]
    concentration: list[float]
    moa: list[str]
    reference_moa: list[str]


def held_out_cells(pairs: ControlTreatedPairs, count: int, seed: int) -> HeldOut:
    """Split the treated cells of the held-out plates into a row of the table and the reference it is compared with.

    Raises:
        ValueError: If there are too few treated cells for both.
    """
    if len(pairs) < 2 * count:
        raise ValueError(
            f"eval_controls={count} needs {2 * count} treated cells on held-out plates, there are {len(pairs)}"
        )
    generator = seeded_generator(seed, "held-out cells")
    order = torch.randperm(len(pairs), generator=generator)
    row, rest = order[:count], order[count:]
    condition = pairs.treated_condition[row]
    moas, compounds, doses = (pairs.conditions[c].tolist() for c in ("moa", "compound", "concentration"))
    return HeldOut(
        controls=pairs.draw_controls(condition, generator, augment=False),
        treated=images_to_tensor(pairs.images[pairs.treated_rows[row]]),
        reference=images_to_tensor(pairs.images[pairs.treated_rows[rest]]),
        compound=[compounds[c] for c in condition],
        concentration=[doses[c] for c in condition],
        moa=[moas[c] for c in condition],
        reference_moa=[moas[c] for c in pairs.treated_condition[rest]],
    )


def generate_candidates(
    pipeline: CellFluxPipeline, cells: HeldOut, steps: int, seed: int, accelerator: Accelerator
) -> torch.Tensor:
    """`CANDIDATES` samples of each control, with the same noise for every pipeline."""
    plain = CellFluxPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler, encoder=pipeline.encoder)
    plain.set_progress_bar_config(desc="sampling")
    with accelerator.autocast():
        return plain(
            cells.controls,
            compound=cells.compound,
            concentration=cells.concentration if plain.is_conditioned_on_dose else None,
            num_inference_steps=steps,
            guidance_scale=1.0,
            num_images_per_control=CANDIDATES,
            generator=seeded_generator(seed, "evaluation noise"),
            output_type="pt",
        ).images


@dataclass(frozen=True)
class Evaluation:
    """The table, the paired differences to the base, the best-of-N curves and the images that the grids show."""

    rows: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, dict[str, PairedDifference]]
    best_of_n: dict[str, dict[int, tuple[float, float]]]
    shown: dict[str, torch.Tensor]


def evaluate(
    models: dict[str, CellFluxPipeline],
    suite: RewardSuite,
    judge: MoAClassifier,
    cells: HeldOut,
    num_inference_steps: int,
    seed: int,
    accelerator: Accelerator,
) -> Evaluation:
    """Compare models with each other, with copies of the controls and with real treated cells."""

    def scored(images: torch.Tensor, moas: Sequence[str]) -> Scored:
        return score_images(images, moas, suite, judge)

    real = scored(cells.reference, cells.reference_moa)
    rows = {
        "copy of control": table_row(scored(cells.controls, cells.moa), real),
        "real treated": table_row(scored(cells.treated, cells.moa), real),
    }
    shown = {"control": cells.controls}
    repeated = [m for m in cells.moa for _ in range(CANDIDATES)]
    candidates, differences, curves = {}, {}, {}
    for name, pipeline in models.items():
        images = generate_candidates(pipeline, cells, num_inference_steps, seed, accelerator)
        candidates[name] = scored(images, repeated)
        single = choose(candidates[name], cells.moa, 1, "best", suite)
        rows[name] = table_row(single, real)
        shown[name] = single.images
        if name != "base":
            differences[name] = {
                column: paired_difference(
                    candidates[name].rewards[column], candidates["base"].rewards[column], len(cells.moa)
                )
                for column in REWARD_COLUMNS
            }
            differences[name]["judge"] = paired_difference(
                candidates[name].judge, candidates["base"].judge, len(cells.moa)
            )
    for selection in ("best", "match"):
        for name in [n for n in models if "shuffled" not in n]:
            chosen = choose(candidates[name], cells.moa, CANDIDATES, selection, suite)
            rows[f"{name} + {selection} of {CANDIDATES}"] = table_row(chosen, real)
            shown[f"{name} + {selection} of {CANDIDATES}"] = chosen.images
    for name in [n for n in models if "shuffled" not in n]:
        numbers = range(1, CANDIDATES + 1)
        chosen = {n: choose(candidates[name], cells.moa, n, "best", suite).rewards["combined"] for n in numbers}
        curves[name] = {n: (float(c.mean()), float(c.std() / len(c) ** 0.5)) for n, c in chosen.items()}
    shown["real treated"] = cells.treated
    return Evaluation(rows, differences, curves, shown)


def findings(evaluation: Evaluation) -> list[str]:
    """What the table says, in sentences made from its numbers."""
    rows, sentences = evaluation.rows, []
    for name, by_column in evaluation.differences.items():
        combined = by_column["combined"]
        better = [c for c in REWARD_COLUMNS[:-1] if by_column[c].standard_errors >= 2]
        worse = [c for c in REWARD_COLUMNS[:-1] if by_column[c].standard_errors <= -2]
        sentences.append(
            f"{name} against base, same controls and noise: combined {combined.mean:+.4f} ± "
            f"{combined.standard_error:.4f} ({combined.standard_errors:+.1f} standard errors); "
            f"better by two or more standard errors on {len(better)} of 7 rewards"
            f"{' (' + ', '.join(better) + ')' if better else ''}, "
            f"worse on {len(worse)}{' (' + ', '.join(worse) + ')' if worse else ''}; "
            f"independent classifier {by_column['judge'].mean:+.4f} ± {by_column['judge'].standard_error:.4f}; "
            f"Frechet distance {rows[name]['frechet'][0] / rows['base']['frechet'][0]:.2f} times the base's, "
            f"Wasserstein distance {rows[name]['wasserstein'][0] / rows['base']['wasserstein'][0]:.2f} times."
        )
    real, real_error = rows["real treated"]["combined"]
    above = [
        n for n, row in rows.items() if row["combined"][0] - real > 2 * math.hypot(row["combined"][1], real_error)
    ]
    if above:
        sentences.append(
            "Above the real cells' combined reward by more than two standard errors, which is over-optimisation and "
            f"not biology: {'; '.join(above)}."
        )
    for name, curve in evaluation.best_of_n.items():
        values = [value for value, _ in curve.values()]
        rising = all(a <= b for a, b in pairwise(values))
        sentences.append(
            f"{name}: best-of-N on combined {'rises' if rising else 'does not rise'} "
            f"with every N from 1 to {len(values)}."
        )
        single, match = rows[name], rows[f"{name} + match of {CANDIDATES}"]
        sentences.append(
            f"{name}: match of {CANDIDATES} moves the Frechet distance from {single['frechet'][0]:.2f} to "
            f"{match['frechet'][0]:.2f}, on image features from {single['frechet_image'][0]:.2f} to "
            f"{match['frechet_image'][0]:.2f}, and Wasserstein from {single['wasserstein'][0]:.3f} to "
            f"{match['wasserstein'][0]:.3f}."
        )
    return sentences


def draw_pictures(
    folder: Path, evaluation: Evaluation, suite: RewardSuite, logs: dict[str, Path]
) -> list[tuple[str, Path]]:
    """Write the PNG grids and curves; returns their captions and paths."""
    names = ("control", "base", "RL", f"RL + best of {CANDIDATES}", f"RL + match of {CANDIDATES}", "real treated")
    first = {name: evaluation.shown[name][:12] for name in names}
    plain = {name: outlined(images) for name, images in first.items()}
    marked = {}
    for name, images in first.items():
        masks = suite.segment(to_uint8(images))
        marked[name] = outlined(images, masks.nuclei, masks.cells)
    image_grid(plain, folder / "grid.png")
    image_grid(marked, folder / "grid_outlines.png")
    best_of_n_curve(folder / "best_of_n.png", evaluation.best_of_n, evaluation.rows["real treated"]["combined"])
    curves = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in logs.items()}
    training_curves(
        folder / "training.png", curves, keys=("reward/combined", "kl", "grad_norm", "reward_std/combined")
    )
    return [
        (
            "Held-out controls and what each model makes of them; actin red, tubulin green, DNA blue",
            folder / "grid.png",
        ),
        ("The same cells with the outlines of nuclei and cells that the rewards see", folder / "grid_outlines.png"),
        ("Combined reward of the best of N samples; above real cells is over-optimisation", folder / "best_of_n.png"),
        ("Post-training, as logged", folder / "training.png"),
    ]


def run(args: DemoArguments, config: str) -> Evaluation:
    """Run all stages; see [`DemoArguments`]."""
    started = time.perf_counter()
    folder, stages = Path(args.output_dir), Stages()
    accelerator = make_accelerator(args)
    cells = stages.run("data", load_labelled_cells, args)
    held_out = held_out_cells(ControlTreatedPairs(cells["test"]), args.eval_controls, args.seed)
    claim_output_dir(args, config)

    base = stages.run("base", base_of, args, config, accelerator, cells)
    own = stage_arguments(moa.MoAArguments, "moa", args, config, "classifier")
    classifier = stages.run("classifier of the rewards", classifier_of, own, accelerator, cells)
    other = stage_arguments(moa.MoAArguments, "moa", args, config, "judge", "--width", "24")
    other.seed = args.seed + 101
    judge = stages.run("independent classifier, for evaluation only", classifier_of, other, accelerator, cells)
    suite = stages.run("reward suite", RewardSuite.fit, cells["train"], classifier, seed=args.seed)

    variants = {"RL": ("rl", []), "RL, shuffled rewards": ("rl_shuffled", ["--shuffle_rewards"])}
    if args.dataset_name != "simulated":
        variants["RL, deviation form"] = ("rl_deviation", ["--reward_form", "deviation", "--kl_weight", "0.3"])
    models, logs = {"base": base}, {}
    for name, (subfolder, extra) in variants.items():
        resume = ["--resume_from_checkpoint", "latest"]
        own = stage_arguments(rl.RLArguments, "rl", args, config, subfolder, *extra, *resume)
        models[name] = stages.run(name, rl.train, own, accelerator, cells, base, suite)
        logs[name] = Path(own.output_dir) / "log.jsonl"
        accelerator.free_memory()
    models["RL"].save_pretrained(folder / "pipeline")
    copy_records(folder / "rl", folder / "pipeline")

    steps = own.num_inference_steps
    evaluation = stages.run("evaluation", evaluate, models, suite, judge, held_out, steps, args.seed, accelerator)
    sentences = findings(evaluation)
    if args.dataset_name == "simulated":
        sentences.append(
            "These cells are simulated, those called real too: nothing here is evidence about microscope images."
        )
    pictures = draw_pictures(folder, evaluation, suite, logs)
    stages.seconds["total"] = round(time.perf_counter() - started, 1)
    classifiers = {name: json.loads((folder / name / "metrics.json").read_text()) for name in ("classifier", "judge")}
    results = {
        "rows": evaluation.rows,
        "differences_to_base": {n: {c: asdict(d) for c, d in v.items()} for n, v in evaluation.differences.items()},
        "best_of_n": evaluation.best_of_n,
        "classifiers": classifiers,
        "seconds": stages.seconds,
        "settings": asdict(args),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    settings = {**asdict(args), **{f"seconds, {k}": v for k, v in stages.seconds.items()}}
    settings |= {f"held-out accuracy, {k}": round(v["accuracy"], 4) for k, v in classifiers.items()}
    write_report(
        folder / "report.html",
        "CellFluxRL demo: " + ("simulated cells" if args.dataset_name == "simulated" else "real BBBC021 cells"),
        evaluation.rows,
        COLUMNS,
        COLUMN_NOTES,
        pictures,
        sentences,
        settings,
        reference="real treated",
    )
    for columns in (COLUMNS[:5], COLUMNS[5:9], COLUMNS[9:]):
        print("\n" + format_table(evaluation.rows, columns))
    print()
    print("\n".join(f"- {sentence}" for sentence in sentences))
    print(
        f"\n{stages.seconds['total']:.0f} s in all; report: {folder / 'report.html'}; pipeline: {folder / 'pipeline'}"
    )
    return evaluation


if __name__ == "__main__":
    main(sys.argv[1:])
