"""`cellfluxrl moa`: its options are known and checked without loading torch."""

from __future__ import annotations

from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser
from cellfluxrl.training.options import MoAArguments, parse_script, script_parser


def parser() -> CommandParser:
    return script_parser(MoAArguments)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script(MoAArguments, argv)
    from cellfluxrl.training.moa import launch

    launch(args)
