"""`cellfluxrl pretrain`, `moa`, `rl` and `demo`: their options are known and checked without loading torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path

from cellfluxrl.terminal import print_json
from cellfluxrl.training import options
from cellfluxrl.training.options import parse_script, script_parser

PARSERS = {
    "pretrain": partial(script_parser, options.PretrainArguments),
    "moa": partial(script_parser, options.MoAArguments),
    "rl": partial(script_parser, options.RLArguments),
    "demo": partial(script_parser, options.DemoArguments),
}


def pretrain(argv: Sequence[str]) -> None:
    """Train the velocity network."""
    args = parse_script(options.PretrainArguments, argv)
    from cellfluxrl.training.pretrain import launch

    launch(args)


def moa(argv: Sequence[str]) -> None:
    """Train a classifier of the mechanism of action."""
    args = parse_script(options.MoAArguments, argv)
    from cellfluxrl.training.moa import launch

    launch(args)


def rl(argv: Sequence[str]) -> None:
    """Post-train a pipeline."""
    args = parse_script(options.RLArguments, argv)
    from cellfluxrl.training.rl import launch

    launch(args)


def demo(argv: Sequence[str]) -> None:
    """Run the whole chain; without `--config` on the settings for simulated or, with `--data_dir`, for real cells."""
    argv = list(argv)
    if "--config" not in argv:
        name = "bbbc021.yaml" if any(a.split("=")[0] == "--data_dir" for a in argv) else "simulated.yaml"
        argv = ["--config", str(options.CONFIGS / name), *argv]
    config = argv[argv.index("--config") + 1]
    args = parse_script(options.DemoArguments, argv)
    from cellfluxrl.training.demo import run

    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        run(args, config)
    if args.json:
        print_json(json.loads((Path(args.output_dir) / "results.json").read_text()))
