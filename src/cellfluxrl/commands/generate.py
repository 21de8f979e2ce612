"""`cellfluxrl generate`."""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.errors import check_found
from cellfluxrl.terminal import print_json, text_table

if TYPE_CHECKING:  # loaded where they are used, so that --help is quick
    import pandas as pd

    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
    from cellfluxrl.rewards.suite import RewardSuite

logger = logging.getLogger(__name__)

NAMED_SKIPPED = 10


def generate(argv: Sequence[str]) -> None:
    """Generate treated cells: every control under every compound.

    CONTROLS is a folder of images or one file (PNG in RGB: red is the last channel; TIFF, .npy and .npz: channels,
    rows, columns), or a data set (a folder of `cellfluxrl data build`, one of save_to_disk, or org/name on the Hub),
    of which the controls are taken.

    Images go to --output_dir, beside generated.parquet (control, compound, seed and rewards of each) and
    provenance.json (pipeline, settings and versions). The same command goes on where it was interrupted.

    Examples:
      cellfluxrl generate my_controls --pipeline runs/rl --compounds taxol nocodazole --output_dir generated
      cellfluxrl generate my_cells --pipeline runs/rl --compounds_file compounds.csv --max_controls 100 \\
          --best_of_n 4 --selection match --format parquet --output_dir generated_cells
      cellfluxrl generate cell.png --pipeline org/name --compounds taxol --output_dir generated --json
    """
    args = _parse(argv)
    from cellfluxrl.pipelines.generation.controls import open_controls
    from cellfluxrl.pipelines.generation.run import GenerationSettings, generate_images
    from cellfluxrl.pipelines.generation.treatments import parse_treatments, read_treatments, resolve_treatments

    same = [field.name for field in fields(GenerationSettings) if hasattr(args, field.name)]
    settings = GenerationSettings(num_inference_steps=args.steps, **{name: getattr(args, name) for name in same})
    given = read_treatments(args.compounds_file) if args.compounds_file else parse_treatments(args.compounds)
    pipe, revision = _load_pipeline(args.pipeline, args.cpu)
    treatments, conditions = resolve_treatments(given, pipe)
    fitted = pipe.rewards.config.image_size if any(treatment.is_scored for treatment in treatments) else None
    controls = open_controls(
        args.controls,
        pipe.channel_names,
        channels=args.channels,
        split=args.split,
        max_controls=args.max_controls,
        image_size=tuple(fitted) if fitted else None,
    )
    _warn_of_skipped(controls.skipped)
    origin = {
        "pipeline": args.pipeline,
        "revision": revision,
        "controls": args.controls,
        "split": args.split,
        "max_controls": args.max_controls,
    }
    table = generate_images(
        pipe, controls, treatments, conditions, settings, args.output_dir, origin, overwrite=args.overwrite
    )
    places = ("images", "data", "generated.parquet", "provenance.json")
    saved = [path for path in (Path(args.output_dir, name) for name in places) if path.exists()]
    if args.json:
        print_json({**_result(table), "skipped": list(controls.skipped), "saved": saved})
    else:
        print(_summary(table, pipe.rewards))
        print("\n".join(f"saved: {path}" for path in saved))


def parser() -> CommandParser:
    parser = CommandParser("cellfluxrl generate", inspect.getdoc(generate))
    add = parser.add_argument
    add("controls", help="folder or file of images, or a data set")
    add("--pipeline", required=True, help="folder of a pipeline, or org/name on the Hub")
    compounds = parser.add_mutually_exclusive_group(required=True)
    compounds.add_argument("--compounds", nargs="+", metavar="NAME[:UM]", help="names, with concentrations in uM")
    compounds.add_argument("--compounds_file", help="CSV file: compound and, if wanted, concentration, smiles, moa")
    add("--output_dir", required=True, help="where everything goes")
    add("--num_per_control", type=int, default=1, help="images of each control and compound; default: 1")
    add("--best_of_n", type=int, default=1, help="samples of which each image is one; default: 1")
    add("--selection", default="best", help="which one: best (default), match or reject")
    add("--search", help="steer or noise: draw the samples by a search; default: independently")
    add("--steps", type=int, default=10, help="steps of the solver; default: 10")
    add("--guidance_scale", type=float, default=1.2, help="1 is no guidance; default: 1.2")
    add("--seed", type=int, default=0, help="decides the noise; default: 0")
    add("--format", default="tiff", help="tiff (default), png, npy, or parquet: a data set")
    add("--batch_size", type=int, default=16, help="images at a time; default: 16")
    add("--channels", nargs="+", help="channels of the files, in order; default: those of the network")
    add("--split", help="which part of a data set; default: test")
    add("--max_controls", type=int, help="take at most so many, evenly spread over all")
    add("--calibrate", action="store_true", help="bring each plate's controls to the intensities of those of training")
    add("--overwrite", action="store_true", help="delete what an earlier run has left in --output_dir")
    add("--cpu", action="store_true", help="stay on the CPU even where a GPU is found")
    add_json_option(parser)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    if args.max_controls is not None and args.max_controls < 1:
        raise ValueError(f"--max_controls must be at least 1, got {args.max_controls}")
    return args


def _load_pipeline(name: str, cpu: bool) -> tuple[CellFluxRLPipeline, str | None]:
    """The pipeline and, of one on the Hub, the commit."""
    from diffusers.utils import logging as diffusers_logging

    from cellfluxrl.devices import choose_device
    from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline

    diffusers_logging.disable_progress_bar()
    check_found("pipeline", name)
    folder, revision = Path(name), None
    if not folder.is_dir():
        folder = Path(CellFluxRLPipeline.download(name))  # .../snapshots/COMMIT
        revision = folder.name
    pipe = CellFluxRLPipeline.from_pretrained(folder).to(choose_device(cpu))
    pipe.unet.eval()
    return pipe, revision


def _warn_of_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        more = [f"... and {len(skipped) - NAMED_SKIPPED} more"] if len(skipped) > NAMED_SKIPPED else []
        named = "\n  ".join([*skipped[:NAMED_SKIPPED], *more])
        logger.warning("%d controls cannot be used, and are skipped:\n  %s", len(skipped), named)


def _result(table: pd.DataFrame) -> dict[str, Any]:
    """What was generated, in numbers: by compound, the images and the mean of each reward."""
    rewards = [name for name in table.columns if name.startswith("reward_") or name == "combined"]
    compounds = {
        compound: {
            "images": len(images),
            "rewards": {name.removeprefix("reward_"): images[name].mean() for name in rewards},
            "within_range": images["within_range"].astype(float).mean() if rewards else None,
        }
        for compound, images in table.groupby("compound")
    }
    return {"images": len(table), "controls": table["control"].nunique(), "compounds": compounds}


def _summary(table: pd.DataFrame, suite: RewardSuite | None) -> str:
    """What was generated of each compound and, where it was scored, how that compares with real cells."""
    lines = [f"{len(table):,} images of {table['control'].nunique():,} controls"]
    if suite is None or "combined" not in table:
        return lines[0]
    from cellfluxrl.rewards.scoring import summarize_scores

    scored = table[table["combined"].notna()]
    scored.attrs["form"] = "deviation"
    inside = scored["within_range"].astype(bool).mean()
    lines.append(f"{inside:.0%} of {len(scored):,} scored images are within the range of real cells")
    return "\n".join([*lines, "", text_table(summarize_scores(scored, suite)), ""])


main = generate
