"""`cellfluxrl rewards fit` and `score`."""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cellfluxrl.arguments import CommandParser, add_json_option, run_subcommand
from cellfluxrl.errors import check_found
from cellfluxrl.terminal import print_json, text_table

if TYPE_CHECKING:  # loaded where they are used, so that --help is quick
    import datasets
    import pandas as pd

    from cellfluxrl.data.image_files import ImagesToScore
    from cellfluxrl.rewards.suite import RewardSuite

logger = logging.getLogger(__name__)

NAMED_SKIPPED = 10


def fit_parser() -> CommandParser:
    """Parser of `cellfluxrl rewards fit`."""
    parser = CommandParser("cellfluxrl rewards fit", inspect.getdoc(fit))
    parser.add_argument("dataset", help="folder that `cellfluxrl data build` made, or org/name on the Hub")
    parser.add_argument("--classifier", required=True, help="folder of `cellfluxrl moa`, or org/name on the Hub")
    parser.add_argument("--output_dir", required=True, help="where the suite goes")
    parser.add_argument(
        "--rewards", nargs="*", metavar="NAME", help="default: the seven of CellFluxRL and those of --plugins"
    )
    _add_plugins_option(parser)
    parser.add_argument("--segmenter", default="watershed", help="what outlines nuclei and cells; default: watershed")
    parser.add_argument(
        "--segmenter_settings", nargs="*", default=[], metavar="KEY=VALUE", help="its settings, e.g. nucleus_sigma=1.5"
    )
    parser.add_argument("--pixel_size", type=float, help="width of a pixel in um; images of another are then refused")
    parser.add_argument("--split", default="train", help="which part of the data set; default: train")
    parser.add_argument("--seed", type=int, default=0, help="which real cells become the reference; default: 0")
    add_json_option(parser)
    return parser


def fit(argv: Sequence[str]) -> None:
    r"""Fit the rewards on real cells, for their mechanisms of action, and save the suite with its card.

    Examples:
      cellfluxrl rewards fit my_cells --classifier runs/moa --output_dir my_rewards
      cellfluxrl rewards fit my_cells --classifier runs/moa --output_dir my_rewards --segmenter watershed \
          --segmenter_settings nucleus_sigma=1.5 --pixel_size 0.5
      cellfluxrl rewards fit my_cells --classifier runs/moa --output_dir my_rewards --plugins my_module
    """
    args = fit_parser().parse_args(argv)
    settings = _parse_settings(args.segmenter_settings)
    _check_pixel_size(args.pixel_size)
    from cellfluxrl.data.loading import load_split
    from cellfluxrl.models.moa_classifier import MoAClassifier
    from cellfluxrl.rewards.suite import RewardSuite

    classifier = _load(MoAClassifier, args.classifier, "classifier")
    cells = _with_moa(load_split(args.dataset, args.split))
    suite = RewardSuite.fit(
        cells,
        classifier.eval(),
        segmenter=args.segmenter,
        segmenter_settings=settings,
        rewards=args.rewards,
        pixel_size=args.pixel_size,
        seed=args.seed,
        plugins=args.plugins,
    )
    suite.save_pretrained(args.output_dir)
    if args.json:
        print_json({**_fitted(suite), "saved": [args.output_dir]})
    else:
        print(_describe(suite))
        print(f"\nsaved: {args.output_dir}")


def _parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE`, values as in YAML: numbers, true, null, [1, 2], text."""
    settings = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not (key and sign):
            raise ValueError(f"--segmenter_settings takes KEY=VALUE, got {pair!r}")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--segmenter_settings {key}: {value!r} is not a number, text or a list") from error
    return settings


def _add_plugins_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugins", nargs="*", default=[], metavar="MODULE", help="modules that hold custom rewards or segmenters"
    )


def _check_pixel_size(pixel_size: float | None) -> None:
    if pixel_size is not None and not 0 < pixel_size < float("inf"):
        raise ValueError(f"--pixel_size must be above 0, got {pixel_size:g}")


def _load(cls: type, name: str, what: str) -> Any:
    """`cls.from_pretrained`, with one line for what goes wrong."""
    from diffusers.utils import logging as diffusers_logging

    folder = Path(name)
    check_found(what, name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name!r} has no config.json: it is not a {what} that was saved with save_pretrained")
    diffusers_logging.set_verbosity_error()  # it would list every weight that is missing
    try:
        class_name = cls.load_config(name).get("_class_name")
        if class_name != cls.__name__:
            raise ValueError(f"{name!r} is not a {what}: it holds a {class_name}")
        model, loaded = cls.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    except OSError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise OSError(f"the {what} {name!r} cannot be loaded: {lines[0]}") from error
    if loaded["missing_keys"] or loaded["unexpected_keys"]:
        raise ValueError(f"the weights of the {what} {name!r} are those of another version: fit or train it again")
    return model


def _with_moa(cells: datasets.Dataset) -> datasets.Dataset:
    if "moa" not in cells.column_names:
        raise ValueError(f"the data set has no column 'moa'; its columns: {cells.column_names}")
    known = [i for i, moa in enumerate(cells["moa"]) if moa]
    if len(known) == len(cells):
        return cells
    logger.warning("%d of %d cells have no mechanism of action: left out", len(cells) - len(known), len(cells))
    return cells.select(known)


def _fitted(suite: RewardSuite) -> dict[str, Any]:
    """What was fitted, in numbers: by MoA, the images and the mean and spread of each statistic."""
    fitted = {}
    for k, moa in enumerate(suite.moas):
        if count := int(suite.count[k]):
            mean, std = (dict(zip(suite.statistic_names, x[k].tolist(), strict=True)) for x in (suite.mean, suite.std))
            fitted[moa] = {"images": count, "mean": mean, "std": std}
    return {"moas": fitted, "weights": suite.weights, "separability": suite.separability()}


def _describe(suite: RewardSuite) -> str:
    import pandas as pd

    from cellfluxrl.rewards.card import separability_text, statistics_text
    from cellfluxrl.rewards.statistics import FEW_IMAGES

    counts = {moa: count for moa, count in zip(suite.moas, suite.count.tolist(), strict=True) if count}
    fitted = pd.DataFrame(
        [[moa + "*" * (n < FEW_IMAGES), f"{n:,}", *statistics_text(suite, moa)] for moa, n in counts.items()],
        columns=["MoA", "images", *suite.statistic_names],
    )
    separability = separability_text(suite)
    rewards = pd.DataFrame(
        [[name, f"{weight:.3f}", separability.get(name, "-")] for name, weight in suite.weights.items()],
        columns=["reward", "weight", "separability"],
    )
    units = "; ".join(f"{reward.name}: {reward.unit}" for reward in suite.rewards if reward.unit)
    parts = [f"real cells, mean ± standard deviation{f' ({units})' if units else ''}", text_table(fitted)]
    if min(counts.values()) < FEW_IMAGES:
        parts.append(f"* fewer than {FEW_IMAGES} images: shrunk towards all MoAs")
    parts += ["", "separability: 0, alike in every MoA, to 1, identifies the MoA", text_table(rewards)]
    return "\n".join(parts)


def score_parser() -> CommandParser:
    """Parser of `cellfluxrl rewards score`."""
    parser = CommandParser("cellfluxrl rewards score", inspect.getdoc(score))
    parser.add_argument("images", help="data set, folder or file")
    parser.add_argument("--suite", required=True, help="folder of `cellfluxrl rewards fit`, or org/name on the Hub")
    parser.add_argument("--output", required=True, help="Parquet file; the pictures are put beside it")
    parser.add_argument(
        "--moa", help="mechanism of action of all images; default: the data set's, or one sub-folder for each"
    )
    parser.add_argument("--table", help="CSV file with the columns file and moa, for a folder; others are kept")
    parser.add_argument("--split", help="which part of a data set; default: test")
    _add_plugins_option(parser)
    parser.add_argument("--form", default="deviation", help="deviation (default) or energy")
    parser.add_argument(
        "--group_by", nargs="*", default=[], metavar="COLUMN", help="energy: compare images that agree in these"
    )
    parser.add_argument("--pixel_size", type=float, help="width of a pixel in um, checked against the suite's")
    parser.add_argument("--batch_size", type=int, default=256, help="images in memory at once; default: 256")
    add_json_option(parser)
    return parser


def score(argv: Sequence[str]) -> None:
    """Score images of cells, generated ones or others, beside real cells: a table, violins and a contact sheet.

    IMAGES is a data set (a folder of `cellfluxrl data build`, one that was saved with save_to_disk, or org/name on the
    Hub), a folder of images, or one file: PNG (RGB: red is the last channel, blue the first), TIFF (channels, rows,
    columns), or .npy and .npz, also of many images.

    Examples:
      cellfluxrl rewards score generated/ --suite my_rewards --output scores.parquet
      cellfluxrl rewards score cells.npy --moa "Eg5 inhibitors" --suite my-lab/my-rewards --output scores.parquet
      cellfluxrl rewards score my_cells --split test --suite my_rewards --output scores.parquet --json
    """
    args = score_parser().parse_args(argv)
    _check_score_arguments(args)
    from cellfluxrl.rewards.plugins import load_plugins
    from cellfluxrl.rewards.scoring import mean_scores, score_images, summarize_scores, write_parquet
    from cellfluxrl.rewards.suite import RewardSuite

    load_plugins(args.plugins)
    suite = _load(RewardSuite, args.suite, "suite")
    images = _open_images(args, suite)
    output = Path(args.output)

    def rescue(table: pd.DataFrame) -> None:
        unfinished = output.with_name(f"{output.stem}_unfinished.parquet")
        write_parquet(table, unfinished)
        logger.warning("%d of %d images are scored: %s", len(table), len(images.rows), unfinished)

    table = score_images(
        images,
        suite,
        form=args.form,
        group_by=args.group_by,
        pixel_size=args.pixel_size,
        batch_size=args.batch_size,
        rescue=rescue,
    )
    table.attrs["suite"] = args.suite
    write_parquet(table, output)
    pictures = _draw(table, images, suite, output)
    if args.json:
        print_json({**mean_scores(table, suite), "skipped": table.attrs["skipped"], "saved": [output, *pictures]})
        return
    print(text_table(summarize_scores(table, suite)))
    if args.form == "deviation":
        print("  A reward above that of real cells by more than its error is over-optimised, not a better cell.")
    _report_skipped(table.attrs["skipped"])
    print("\n" + "\n".join(f"saved: {path}" for path in (output, *pictures)))


def _check_score_arguments(args: argparse.Namespace) -> None:
    _check_pixel_size(args.pixel_size)
    if args.group_by and args.form != "energy":
        raise ValueError("--group_by says which images are compared with each other, which only --form energy does")
    if Path(args.output).suffix != ".parquet":
        raise ValueError(f"--output must end in .parquet, got {args.output!r}")
    if Path(args.output).is_dir():
        raise ValueError(f"--output {args.output!r} is a folder, but must be a file")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)  # what fails here fails before the work


def _open_images(args: argparse.Namespace, suite: RewardSuite) -> ImagesToScore:
    from cellfluxrl.data.image_files import images_of_dataset, images_of_files
    from cellfluxrl.data.loading import is_dataset, load_split

    path = Path(args.images)
    if path.exists() and not is_dataset(path):
        if args.split:
            raise ValueError(f"--split is for data sets; {args.images!r} holds images")
        return images_of_files(path, suite.channel_names, moa=args.moa, table=args.table)
    if args.table:
        raise ValueError(f"--table is for folders of images; {args.images!r} is a data set")
    cells = load_split(args.images, args.split or "test")
    images, left_out = images_of_dataset(cells, suite.channel_names, moa=args.moa)
    if left_out:
        logger.warning("%d images have no mechanism of action: left out; --moa compares all with one", left_out)
    return images


def _draw(table: pd.DataFrame, images: ImagesToScore, suite: RewardSuite, output: Path) -> list[Path]:
    from cellfluxrl.rewards.figures import score_sheet, score_violins, worst_and_best

    violins, sheet = (output.with_name(f"{output.stem}_{name}.png") for name in ("violins", "sheet"))
    drawn = []
    if suite.statistic_names:
        score_violins(table, suite, violins)
        drawn.append(violins)
    chosen = worst_and_best(table)
    row_of = {source: row for row, source in enumerate(images.rows["source"])}
    shown = [images.read(row_of[source]) for source in table["source"].iloc[chosen]]
    score_sheet(table, chosen, shown, suite, sheet)
    return [*drawn, sheet]


def _report_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        more = [f"  ... and {len(skipped) - NAMED_SKIPPED} more"] if len(skipped) > NAMED_SKIPPED else []
        lines = [f"  {reason}" for reason in skipped[:NAMED_SKIPPED]]
        print("\n".join([f"\n{len(skipped)} images or files were skipped:", *lines, *more]))


COMMANDS = {"fit": fit, "score": score}
PARSERS = {"fit": fit_parser, "score": score_parser}


def main(argv: Sequence[str]) -> None:
    """Run one of the commands."""
    run_subcommand("rewards", COMMANDS, argv)
