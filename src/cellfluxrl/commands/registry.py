"""The commands of `cellfluxrl`, each by the function that runs it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from cellfluxrl.arguments import CommandParser

# `MODULE:FUNCTION` in this package. The modules load torch only when a command begins to work. Each has `parser()`, or
# `PARSERS` by the words of its commands.
COMMANDS = {
    "data": ("data:main", "build, look at and publish data sets of cells"),
    "demo": ("training:demo", "the whole chain on simulated or real cells, ending with a report"),
    "pretrain": ("training:pretrain", "pretrain the network from control to treated cells"),
    "moa": ("training:moa", "train a classifier of the mechanism of action"),
    "rewards": ("rewards:main", "fit the biological rewards on real cells, and score images with them"),
    "rl": ("training:rl", "post-train a pipeline with the biological rewards"),
    "generate": ("generate:main", "treated cells of a folder or data set of controls"),
    "evaluate": ("evaluate:main", "compare a pipeline's cells with real ones, on held-out evidence"),
    "app": ("app:main", "a web page to generate treated cells and compare them with real ones"),
    "push": ("push:main", "publish a pipeline, classifier, suite or data set on the Hugging Face Hub"),
    "convert": ("convert:main", "turn a published CellFlux checkpoint into a pipeline folder"),
    "completion": ("completion:main", "print what completes these commands in bash or zsh"),
}


def parsers() -> dict[str, Callable[[], CommandParser]]:
    """The functions that build the parser of each command, by its one or two words; no torch is loaded."""
    found = {}
    for name, (function, _) in COMMANDS.items():
        module = importlib.import_module(f"cellfluxrl.commands.{function.partition(':')[0]}")
        makers = module.PARSERS if hasattr(module, "PARSERS") else {name: module.parser}
        found |= {command: make for command, make in makers.items() if command.split()[0] == name}
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
        summary = make().description.split("\n\n")[0]
        groups[name].add_parser(word, help=summary, parents=[make()], add_help=False)
    return parser
