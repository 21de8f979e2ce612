"""The command line `cellfluxrl`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from cellfluxrl import __version__
from cellfluxrl.errors import unknown_name

COMMANDS = {
    "data": ("cellfluxrl.data.command", "build, look at and publish data sets of cells"),
    "demo": ("cellfluxrl.training.demo", "the whole chain on simulated or real cells, ending with a report"),
    "pretrain": ("cellfluxrl.training.pretrain", "pretrain the velocity network from control to treated cells"),
    "moa": ("cellfluxrl.training.moa", "train a classifier of the mechanism of action"),
    "rewards": ("cellfluxrl.rewards.command", "fit the biological rewards on real cells, and score images with them"),
    "rl": ("cellfluxrl.training.rl", "post-train a pipeline with the biological rewards"),
    "generate": ("cellfluxrl.pipelines.generate_command", "treated cells of a folder or data set of controls"),
    "evaluate": ("cellfluxrl.evaluation.command", "compare a pipeline's cells with real ones, on held-out evidence"),
    "convert": ("cellfluxrl.pipelines.convert", "turn a published CellFlux checkpoint into a pipeline folder"),
}


def usage() -> str:
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cellfluxrl COMMAND [options]     (cellfluxrl COMMAND --help tells them)",
            "",
            *lines,
            "",
            "To train on several devices: accelerate launch -m cellfluxrl.training.COMMAND [options]",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a mistake of the user's ends with one line on standard error and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    # Threads that wait for each other in a busy loop make torch ten times slower beside any other busy process. Read
    # when torch is loaded, which is below.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        if arguments[0] not in COMMANDS:
            raise unknown_name("command", arguments[0], COMMANDS)
        importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"cellfluxrl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ncellfluxrl: interrupted; what is finished is kept: the same command goes on (a training script with "
            "--resume_from_checkpoint latest)",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
