"""The command line `cellfluxrl`; `docs/cli.md` describes what all commands have in common."""

from __future__ import annotations

import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from cellfluxrl import __version__
from cellfluxrl.arguments import filled, list_commands
from cellfluxrl.commands.registry import COMMANDS
from cellfluxrl.errors import unknown_name

EXAMPLES = """examples:
  cellfluxrl demo
  cellfluxrl data build --source folder --table plates.csv --nucleus_diameter 21 --output_dir my_cells
  cellfluxrl generate my_controls --pipeline runs/demo/pipeline --compounds taxol --output_dir generated
  cellfluxrl evaluate runs/demo/pipeline simulated --output_dir runs/evaluation"""

MISTAKE, UNEXPECTED, INTERRUPTED = 2, 1, 130


def usage() -> str:
    """The commands, and what they have in common."""
    parts = [
        "usage: cellfluxrl COMMAND [options]     (cellfluxrl COMMAND --help lists them)",
        list_commands({name: text for name, (_, text) in COMMANDS.items()}),
        filled("--debug shows the traceback of an error, --version the version."),
        filled(
            "To train on several devices: accelerate launch -m cellfluxrl.training.COMMAND [options], COMMAND being "
            "pretrain, moa or rl."
        ),
        EXAMPLES,
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status, which `docs/cli.md` explains."""
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
        pkgutil.resolve_name(f"cellfluxrl.commands.{COMMANDS[arguments[0]][0]}")(arguments[1:])
        sys.stdout.flush()  # a pipe that nobody reads any more is noticed here
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more when it ends
        return UNEXPECTED
    except KeyboardInterrupt:
        print(
            "\ncellfluxrl: interrupted; what is finished is kept: the same command resumes it (a training script with "
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
    """The message of a mistake; of an unexpected error its type, its first line, and how to see the traceback."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MISTAKES):
        return f"error: {text}"
    return f"unexpected error: {type(error).__name__}: {text.splitlines()[0]} (run with --debug for the traceback)"


if __name__ == "__main__":
    sys.exit(main())
