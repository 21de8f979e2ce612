"""`cellfluxrl convert`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

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

    config: dict[str, Any] = {}
    if args.channel_names is not None:
        config["channel_names"] = tuple(args.channel_names)
    if args.num_heads is not None:
        config["num_heads"] = args.num_heads
    summary = convert_checkpoint(args.checkpoint, args.output_dir, use_ema=not args.use_raw_weights, config=config)
    if args.json:
        print_json({**summary, "saved": [args.output_dir]})
    else:
        print("\n".join(f"{what:10}{found}" for what, found in summary.items()))


def parser() -> CommandParser:
    parser = CommandParser("cellfluxrl convert", inspect.getdoc(convert))
    parser.add_argument("checkpoint", help="file of the original CellFlux code (.pth, or .safetensors)")
    parser.add_argument("output_dir", help="new folder for the pipeline")
    parser.add_argument(
        "--use_raw_weights", action="store_true", help="not their moving average; default: the average, if it has one"
    )
    parser.add_argument(
        "--channel_names", nargs="+", help="what its channels show, in order; default: as CellFlux stores them"
    )
    parser.add_argument("--num_heads", type=int, help="attention heads, which the weights do not tell; default: 1")
    add_json_option(parser)
    return parser


main = convert
