"""`cellfluxrl pretrain`: its options are known and checked without loading torch."""

from __future__ import annotations

from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser
from cellfluxrl.training.options import PretrainArguments, parse_script, script_parser


def parser() -> CommandParser:
    return script_parser(PretrainArguments)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_script(PretrainArguments, argv)
    from cellfluxrl.training.pretrain import launch

    launch(args)
