"""`cellfluxrl data build`, `info` and `push`."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cellfluxrl.arguments import option, parse_arguments
from cellfluxrl.errors import unknown_name

USAGE = """usage: cellfluxrl data COMMAND [options]     (cellfluxrl data COMMAND --help tells them)

  build     write the cells of plates as Parquet, with their metadata
  info      what is in a data set, with a contact sheet
  push      publish a data set on the Hugging Face Hub"""

CONTACT_SHEET = "contact_sheet.png"


@dataclass
class BuildArguments:
    source: str = option("bbbc021", "'bbbc021', 'impa', 'folder', 'crops' or 'simulated'")
    output_dir: str = option("data", "where the data set goes; an interrupted build goes on there")
    data_dir: str | None = option(None, "what the source reads; for bbbc021 default: OUTPUT_DIR/downloads")
    table: str | None = option(None, "CSV file that describes the crops (impa) or the images (folder)")
    plates: list[str] | None = option(None, "only these plates")
    split: str = option("plate", "'plate', 'cellflux', 'leave_one_compound_out', 'leave_one_batch_out' or 'published'")
    held_out: list[str] = option([], "plates, compound or batch of the test split")
    crop_size: int | None = option(None, "height and width of a crop in pixels of the image; default: 96")
    image_size: int | None = option(None, "resize crops to this height and width; default: as they are cut")
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


def build(argv: Sequence[str]) -> None:
    """Write the cells of plates as Parquet."""
    args = parse_arguments(BuildArguments, "data", inspect.getdoc(build), argv)
    from cellfluxrl.data.build import build_dataset
    from cellfluxrl.data.info import contact_sheet, summarize
    from cellfluxrl.data.sources import make_source

    settings = asdict(args)
    output_dir, source_name = settings.pop("output_dir"), settings.pop("source")
    split, held_out, num_proc = settings.pop("split"), settings.pop("held_out"), settings.pop("num_proc")
    license = settings.pop("license")
    if source_name == "bbbc021" and args.data_dir is None:
        settings["data_dir"] = str(Path(output_dir) / "downloads")
    source = make_source(source_name, **settings)
    build_dataset(source, source_name, output_dir, split, held_out, num_proc, license)
    contact_sheet(output_dir, Path(output_dir) / CONTACT_SHEET)
    print(summarize(output_dir))


def info(argv: Sequence[str]) -> None:
    """Print what is in a data set, and draw some of its cells."""
    parser = argparse.ArgumentParser(prog="cellfluxrl data info", description=inspect.getdoc(info))
    parser.add_argument("folder", help="where the data set was built")
    parser.add_argument("--contact_sheet", help=f"where the picture goes; default: FOLDER/{CONTACT_SHEET}")
    args = parser.parse_args(argv)
    from cellfluxrl.data.info import contact_sheet, summarize

    print(summarize(args.folder))
    sheet = args.contact_sheet or Path(args.folder) / CONTACT_SHEET
    contact_sheet(args.folder, sheet)
    print(f"contact sheet: {sheet}")


def push(argv: Sequence[str]) -> None:
    """Publish a data set on the Hugging Face Hub, in one commit; repeat it after an interruption."""
    parser = argparse.ArgumentParser(prog="cellfluxrl data push", description=inspect.getdoc(push))
    parser.add_argument("folder", help="where the data set was built")
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--private", action="store_true", help="only for those with access; default: public")
    parser.add_argument("--token", help="default: that of `hf auth login`, or the environment variable HF_TOKEN")
    args = parser.parse_args(argv)
    from cellfluxrl.data.push import push_dataset

    print(push_dataset(args.folder, args.repo_id, private=args.private, token=args.token))


COMMANDS = {"build": build, "info": info, "push": push}


def main(argv: Sequence[str]) -> None:
    """Run one of the commands."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        raise SystemExit(0 if argv else 2)
    if argv[0] not in COMMANDS:
        raise unknown_name("data command", argv[0], COMMANDS)
    COMMANDS[argv[0]](argv[1:])
