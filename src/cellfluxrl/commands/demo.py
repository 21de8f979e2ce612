"""`cellfluxrl demo`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from cellfluxrl.arguments import CommandParser
from cellfluxrl.terminal import print_json
from cellfluxrl.training.options import CONFIGS, DemoArguments, parse_script, script_parser


def parser() -> CommandParser:
    return script_parser(DemoArguments)


def main(argv: Sequence[str]) -> None:
    argv = list(argv)
    if "--config" not in argv:
        name = "bbbc021.yaml" if any(a.split("=")[0] == "--data_dir" for a in argv) else "simulated.yaml"
        argv = ["--config", str(CONFIGS / name), *argv]
    config = argv[argv.index("--config") + 1]
    args = parse_script(DemoArguments, argv)
    from cellfluxrl.training.demo import run

    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        run(args, config)
    if args.json:
        print_json(json.loads((Path(args.output_dir) / "results.json").read_text()))
