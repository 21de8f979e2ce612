"""The commands of `cellfluxrl`, each by the module that runs it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from cellfluxrl.arguments import CommandParser

# The modules load torch only where a command begins to work. Each has `main(argv)`, and `parser()` or, if its commands
# are two words, `PARSERS` by the second one.
COMMANDS = {
    "data": ("cellfluxrl.commands.data", "build, look at and publish data sets of cells"),
    "demo": ("cellfluxrl.commands.demo", "the whole chain on simulated or real cells, ending with a report"),
    "pretrain": ("cellfluxrl.commands.pretrain", "pretrain the network from control to treated cells"),
    "moa": ("cellfluxrl.commands.moa", "train a classifier of the mechanism of action"),
    "rewards": ("cellfluxrl.commands.rewards", "fit the biological rewards on real cells, and score images with them"),
    "rl": ("cellfluxrl.commands.rl", "post-train a pipeline with the biological rewards"),
    "generate": ("cellfluxrl.commands.generate", "treated cells of a folder or data set of controls"),
    "evaluate": ("cellfluxrl.commands.evaluate", "compare a pipeline's cells with real ones, on held-out evidence"),
    "app": ("cellfluxrl.commands.app", "a web page to generate treated cells and compare them with real ones"),
    "push": ("cellfluxrl.commands.push", "publish a pipeline, classifier, suite or data set on the Hugging Face Hub"),
    "convert": ("cellfluxrl.commands.convert", "turn a published CellFlux checkpoint into a pipeline folder"),
    "completion": ("cellfluxrl.commands.completion", "print what completes these commands in bash or zsh"),
}


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
        command_parser = make()
        groups[name].add_parser(
            word, help=command_parser.description.split("\n\n")[0], parents=[command_parser], add_help=False
        )
    return parser
