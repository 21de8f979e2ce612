"""`cellfluxrl convert`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.terminal import print_json


def convert(argv: Sequence[str]) -> None:
    """Turn a checkpoint of the original CellFlux code into a pipeline folder of safetensors.

    Only tensors and plain values are read: what else a pickle asks for is refused, and not executed.

    Examples:
      cellfluxrl convert checkpoint.pth runs/cellflux
      cellfluxrl convert checkpoint.pth runs/cellflux --use_raw_weights --channel_names actin tubulin dna
    """
    args = parser().parse_args(argv)
    from cellfluxrl.pipelines.convert import convert_checkpoint

    channel_names = None if args.channel_names is None else tuple(args.channel_names)
    given = {"channel_names": channel_names, "num_heads": args.num_heads}
    config = {name: value for name, value in given.items() if value is not None}
    summary = convert_checkpoint(args.checkpoint, args.output_dir, use_ema=not args.use_raw_weights, config=config)
    if args.json:
        print_json({**summary, "saved": [args.output_dir]})
    else:
        print("\n".join(f"{what:10}{found}" for what, found in summary.items()))


def parser() -> CommandParser:
    """The options of `cellfluxrl convert`."""
    parser = CommandParser("cellfluxrl convert", inspect.getdoc(convert))
    add = parser.add_argument
    add("checkpoint", help="file of the original CellFlux code (.pth, or .safetensors)")
    add("output_dir", help="new folder for the pipeline")
    add("--use_raw_weights", action="store_true", help="not their moving average; default: the average, if it has one")
    add("--channel_names", nargs="+", help="what its channels show, in order; default: as CellFlux stores them")
    add("--num_heads", type=int, help="attention heads, which the weights do not show; default: 1")
    add_json_option(parser)
    return parser


main = convert
