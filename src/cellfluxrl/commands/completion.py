"""`cellfluxrl completion`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence

from cellfluxrl.arguments import CommandParser
from cellfluxrl.errors import unknown_name

SHELLS = ("bash", "zsh")
# Options whose values are paths; of the others only the names are completed.
MODELS = ("pipeline", "base", "against", "pretrained_model_name_or_path", "suite", "rewards", "classifier", "judge")
FILES = ("config", "table", "checkpoint", "images", "controls", "compounds_file", "output")


def main(argv: Sequence[str]) -> None:
    """Print a script that lets a shell complete commands, options and paths; it runs no Python when it completes.

    Examples:
      cellfluxrl completion bash > ~/.local/share/bash-completion/completions/cellfluxrl
      cellfluxrl completion zsh > ~/.zfunc/_cellfluxrl
    """
    shell = parser().parse_args(argv).shell
    if shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    import shtab

    from cellfluxrl.commands.registry import full_parser

    every_command = full_parser()
    for action in actions_of(every_command):
        if action.dest in MODELS or action.dest.endswith(("_dir", "folder", "dataset")):
            action.complete = shtab.DIRECTORY
        elif action.dest in FILES:
            action.complete = shtab.FILE
    print(shtab.complete(every_command, shell))


def parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser("cellfluxrl completion", inspect.getdoc(main))
    parser.add_argument("shell", help="bash or zsh")
    return parser


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions_of(command)
        else:
            yield action
