"""The command line `cellfluxrl`; `docs/cli.md` describes what all commands have in common."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from cellfluxrl import __version__
from cellfluxrl.arguments import CommandParser, filled, list_commands
from cellfluxrl.errors import unknown_name

# The modules load torch only where a command begins to work. Each has `main(argv)`, and `parser()` or, if its commands
# are two words, `PARSERS` by the second one.
COMMANDS = {
    "data": ("cellfluxrl.commands.data", "build, look at and publish data sets of cells"),
    "demo": ("cellfluxrl.commands.demo", "the whole chain on simulated or real cells, ending with a report"),
    "pretrain": (
        "cellfluxrl.training.pretrain_command",
        "pretrain the network from control to treated cells",
    ),
    "moa": ("cellfluxrl.training.moa_command", "train a classifier of the mechanism of action"),
    "rewards": ("cellfluxrl.commands.rewards", "fit the biological rewards on real cells, and score images with them"),
    "rl": ("cellfluxrl.training.rl_command", "post-train a pipeline with the biological rewards"),
    "generate": ("cellfluxrl.commands.generate", "treated cells of a folder or data set of controls"),
    "evaluate": ("cellfluxrl.commands.evaluate", "compare a pipeline's cells with real ones, on held-out evidence"),
    "app": ("cellfluxrl.commands.app", "a web page to generate treated cells and compare them with real ones"),
    "push": ("cellfluxrl.commands.push", "publish a pipeline, classifier, suite or data set on the Hugging Face Hub"),
    "convert": ("cellfluxrl.commands.convert", "turn a published CellFlux checkpoint into a pipeline folder"),
    "completion": ("cellfluxrl.commands.completion", "print what completes these commands in bash or zsh"),
}

EXAMPLES = """examples:
  cellfluxrl demo
  cellfluxrl data build --source folder --table plates.csv --nucleus_diameter 21 --output_dir my_cells
  cellfluxrl generate my_controls --pipeline runs/demo/pipeline --compounds taxol --output_dir generated
  cellfluxrl evaluate runs/demo/pipeline simulated --output_dir runs/evaluation"""

MISTAKE, UNEXPECTED, INTERRUPTED = 2, 1, 130


def usage() -> str:
    parts = [
        "usage: cellfluxrl COMMAND [options]     (cellfluxrl COMMAND --help tells them)",
        list_commands({name: text for name, (_, text) in COMMANDS.items()}),
        filled("--debug shows the traceback of an error, --version the version."),
        filled(
            "To train on several devices: accelerate launch -m cellfluxrl.training.COMMAND [options], COMMAND being "
            "pretrain, moa or rl."
        ),
        EXAMPLES,
    ]
    return "\n\n".join(parts)


def parsers() -> dict[str, Callable[[], CommandParser]]:
    """What builds the parser of each command, of one word or two; no torch is loaded."""
    found = {}
    for name, (module_name, _) in COMMANDS.items():
        module = importlib.import_module(module_name)
        if hasattr(module, "PARSERS"):
            found |= {f"{name} {word}": make for word, make in module.PARSERS.items()}
        else:
            found[name] = module.parser
    return found


def full_parser() -> argparse.ArgumentParser:
    """One parser of all commands, for completion."""
    parser = argparse.ArgumentParser(prog="cellfluxrl")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands, groups = parser.add_subparsers(), {}
    for command, make in parsers().items():
        name, _, word = command.partition(" ")
        if not word:
            commands.add_parser(name, help=COMMANDS[name][1], parents=[make()], add_help=False)
            continue
        if name not in groups:
            groups[name] = commands.add_parser(name, help=COMMANDS[name][1]).add_subparsers()
        own = make()
        groups[name].add_parser(word, help=own.description.split("\n\n")[0], parents=[own], add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 2 after a mistake of the user's and 1 after anything else that went wrong, either with one
        line on standard error (and the traceback with `--debug`); 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else MISTAKE
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
        sys.stdout.flush()  # a pipe that nobody reads any more is noticed here
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
        return UNEXPECTED
    except KeyboardInterrupt:
        print(
            "\ncellfluxrl: interrupted; what is finished is kept: the same command goes on (a training script with "
            "--resume_from_checkpoint latest)",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"cellfluxrl: {described(error)}", file=sys.stderr)
        return MISTAKE if isinstance(error, MISTAKES) else UNEXPECTED
    return 0


# A package that is missing says how to install it; FloatingPointError is a training that diverged.
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError)


def described(error: Exception) -> str:
    """A mistake as it is told; of what nobody foresaw the first line, its type, and how to see where it was."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MISTAKES):
        return f"error: {text}"
    return f"unexpected error: {type(error).__name__}: {text.splitlines()[0]} (run with --debug for the traceback)"


if __name__ == "__main__":
    sys.exit(main())
