"""`cellfluxrl demo`: its options, which are known and checked without loading torch."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cellfluxrl.arguments import CommandParser, argument_parser, option
from cellfluxrl.terminal import print_json
from cellfluxrl.training.options import SharedArguments, parse_arguments

CONFIGS = files("cellfluxrl.training") / "configs"


@dataclass
class DemoArguments(SharedArguments):
    """The whole chain: data, base, classifiers, rewards, post-training, evaluation, report.

    Without --data_dir the cells are simulated, and the base is the one that ships with the package; with it they are
    real BBBC021 crops, one PLATE.npz a plate. Ends with a table, PNG grids and report.html in --output_dir, and a
    pipeline that CellFluxRLPipeline.from_pretrained loads. Run it again to go on where it was interrupted.

    Examples:
      cellfluxrl demo
      cellfluxrl demo --data_dir path/to/crops --output_dir runs/real
    """

    output_dir: str = option("runs/demo", "where the results go")
    eval_controls: int = option(320, "held-out controls that are evaluated, each with 4 samples of each model")
    overwrite: bool = option(False, "start again even if --output_dir holds a demo with other settings")
    json: bool = option(False, "print the result as JSON, and nothing else")


def parser() -> CommandParser:
    return argument_parser(DemoArguments, "cellfluxrl demo", inspect.getdoc(DemoArguments))


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--config" not in argv:
        name = "bbbc021.yaml" if any(a.split("=")[0] == "--data_dir" for a in argv) else "simulated.yaml"
        argv = ["--config", str(CONFIGS / name), *argv]
    config = argv[argv.index("--config") + 1]
    args = parse_arguments(DemoArguments, "demo", inspect.getdoc(DemoArguments), argv, prog="cellfluxrl demo")
    from cellfluxrl.training.demo import run

    with redirect_stdout(sys.stderr) if args.json else nullcontext():
        run(args, config)
    if args.json:
        print_json(json.loads((Path(args.output_dir) / "results.json").read_text()))
