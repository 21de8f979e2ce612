"""`cellfluxrl data build`, `info` and `push`."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellfluxrl.arguments import CommandParser, add_json_option, argument_parser, option, run_subcommand
from cellfluxrl.commands.push import print_address, repository_parser
from cellfluxrl.terminal import print_json
from cellfluxrl.training.options import parse_arguments

CONTACT_SHEET = "contact_sheet.png"
OF_EVERY_SOURCE = ("source", "output_dir", "split", "held_out", "num_proc", "license", "json")  # all others are of one


@dataclass
class BuildArguments:
    """The options of `cellfluxrl data build`; those that are `None` are left to the source."""

    source: str = option("bbbc021", "'bbbc021', 'impa', 'folder', 'crops' or 'simulated'")
    output_dir: str = option("data", "where the data set goes; an interrupted build is resumed there")
    data_dir: str | None = option(None, "what the source reads; for bbbc021 default: OUTPUT_DIR/downloads")
    table: str | None = option(None, "CSV file that describes the crops (impa) or the images (folder)")
    plates: list[str] | None = option(None, "only these plates")
    split: str = option("plate", "'plate', 'cellflux', 'leave_one_compound_out', 'leave_one_batch_out' or 'published'")
    held_out: list[str] = option([], "plates, compound or batch of the test split")
    crop_size: int | None = option(None, "height and width of a crop in pixels of the image; default: 96")
    image_size: int | None = option(None, "resize crops to this height and width; default: the size of the crop")
    nucleus_diameter: float | None = option(None, "typical diameter of a nucleus in pixels of the image")
    nucleus_channel: str | None = option(None, "folder: the channel that stains DNA; default: dna")
    control: str | None = option(None, "folder: the compound of untreated wells; default: DMSO")
    license: str | None = option(None, "folder: the data set's licence, as the Hub names it, e.g. cc-by-4.0")
    labelled_only: bool | None = option(None, "bbbc021: leave out compounds without a mechanism of action")
    base_url: str | None = option(None, "bbbc021: where the archives are published")
    checksums: str | None = option(None, "bbbc021: file of `sha256sum`'s format, to check downloads against")
    cells_per_moa: int | None = option(None, "simulated: treated cells of each mechanism of action")
    controls_per_plate: int | None = option(None, "simulated: controls of each plate")
    num_plates: int | None = option(None, "simulated: plates")
    seed: int | None = option(None, "simulated: seed of everything that is random")
    num_proc: int = option(os.cpu_count() or 1, "processes that cut and encode")
    json: bool = option(default=False, help="print the result as JSON, and nothing else")


def build_parser() -> CommandParser:
    """The options of `build`."""
    return argument_parser(BuildArguments, "cellfluxrl data build", inspect.getdoc(build))


def build(argv: Sequence[str]) -> None:
    """Write the cells of plates as Parquet, with their metadata.

    The same command resumes an interrupted build.

    Examples:
      cellfluxrl data build --source bbbc021 --plates Week4_27801 Week4_27821 --output_dir bbbc021
      cellfluxrl data build --source folder --table plates.csv --nucleus_diameter 21 --output_dir my_cells
      cellfluxrl data build --source simulated --cells_per_moa 400 --image_size 48 --output_dir simulated
    """
    args = parse_arguments(BuildArguments, "data", inspect.getdoc(build), argv, prog="cellfluxrl data build")
    from cellfluxrl.data.building.build import build_dataset
    from cellfluxrl.data.building.sources import make_source
    from cellfluxrl.data.contact_sheet import contact_sheet

    settings = {name: value for name, value in vars(args).items() if name not in OF_EVERY_SOURCE}
    folder = Path(args.output_dir)
    if args.source == "bbbc021" and args.data_dir is None:
        settings["data_dir"] = str(folder / "downloads")
    source = make_source(args.source, **settings)
    build_dataset(source, args.source, folder, args.split, args.held_out, args.num_proc, args.license)
    contact_sheet(folder, folder / CONTACT_SHEET)
    _print_contents(args.output_dir, as_json=args.json)


def _print_contents(folder: str, *, as_json: bool) -> None:
    """Print what a data set contains: tables, or every count and problem as JSON."""
    from cellfluxrl.data.info import REPORT_NAME, count_cells, problems_of, summarize

    if not as_json:
        print(summarize(folder))
        return
    path = Path(folder) / REPORT_NAME
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"complete": None, "plates": {}}
    print_json(
        {
            "folder": folder,
            "complete": report.get("complete"),
            "counts": count_cells(folder).to_dict("records"),
            "problems": problems_of(report).to_dict("records"),
        }
    )


def info_parser() -> CommandParser:
    """The options of `info`."""
    parser = CommandParser("cellfluxrl data info", inspect.getdoc(info))
    parser.add_argument("folder", help="where the data set was built")
    parser.add_argument("--contact_sheet", help=f"where the picture goes; default: FOLDER/{CONTACT_SHEET}")
    add_json_option(parser)
    return parser


def info(argv: Sequence[str]) -> None:
    """Print what a data set contains, and draw some of its cells.

    Examples:
      cellfluxrl data info my_cells
      cellfluxrl data info my_cells --json
    """
    args = info_parser().parse_args(argv)
    from cellfluxrl.data.contact_sheet import contact_sheet

    _print_contents(args.folder, as_json=args.json)
    sheet = args.contact_sheet or Path(args.folder) / CONTACT_SHEET
    contact_sheet(args.folder, sheet)
    if not args.json:
        print(f"contact sheet: {sheet}")


def push_parser() -> CommandParser:
    """The options of `push`."""
    parser = repository_parser("cellfluxrl data push", inspect.getdoc(push), "where the data set was built")
    add_json_option(parser)
    return parser


def push(argv: Sequence[str]) -> None:
    """Publish a data set on the Hugging Face Hub, in one commit; repeat it after an interruption.

    Examples:
      cellfluxrl data push my_cells your-name/my-cells
      cellfluxrl data push my_cells your-name/my-cells --private
    """
    args = push_parser().parse_args(argv)
    from cellfluxrl.data.push import push_dataset

    print_address(args, push_dataset(args.folder, args.repo_id, private=args.private, token=args.token))


COMMANDS = {"build": build, "info": info, "push": push}
PARSERS = {"data build": build_parser, "data info": info_parser, "data push": push_parser}


def main(argv: Sequence[str]) -> None:
    """Run one of the commands."""
    run_subcommand("data", COMMANDS, argv)
