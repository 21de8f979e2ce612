"""`cellfluxrl rl`: its options are known and checked without loading torch."""

from __future__ import annotations

from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser
from cellfluxrl.training.options import RLArguments, parse_script, script_parser


def parser() -> CommandParser:
    return script_parser(RLArguments)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script(RLArguments, argv)
    from cellfluxrl.training.rl import launch

    launch(args)
