"""`cellfluxrl completion`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence

from cellfluxrl.arguments import CommandParser
from cellfluxrl.errors import unknown_name

SHELLS = ("bash", "zsh")
# What these name lies in the file system; of the others only options are completed.
FOLDERS = (
    "pipeline",
    "base",
    "pretrained_model_name_or_path",
    "suite",
    "rewards",
    "classifier",
    "judge",
    "against",
    "dataset",
)
FILES = ("config", "table", "checkpoint", "dataset", "images", "controls", "compounds_file", "output")


def completion(argv: Sequence[str]) -> None:
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

    everything = full_parser()
    for action in actions_of(everything):
        if action.dest in FOLDERS or action.dest.endswith(("_dir", "folder")):
            action.complete = shtab.DIRECTORY
        elif action.dest in FILES:
            action.complete = shtab.FILE
    print(shtab.complete(everything, shell))


def parser() -> CommandParser:
    parser = CommandParser("cellfluxrl completion", inspect.getdoc(completion))
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


main = completion
