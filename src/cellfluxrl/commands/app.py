"""`cellfluxrl app`."""

from __future__ import annotations

import importlib.util
import inspect
import socket
from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser


def main(argv: Sequence[str]) -> None:
    r"""Open a web page on which treated cells are generated from a control and a compound.

    The page shows the cells with the outlines of nuclei and cells, how they compare with real ones, the way from the
    control to the result, and the base beside the pipeline; it serves this machine only, until it is interrupted with
    Ctrl-C. Needs gradio: pip install "cellfluxrl[app]".

    Examples:
      cellfluxrl app
      cellfluxrl app --pipeline runs/rl --base runs/base --controls my_controls
      cellfluxrl app --pipeline org/name --base org/base-name \
          --host 0.0.0.0 --port 8000
    """
    args = parser().parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the app needs gradio, which is not installed: pip install "cellfluxrl[app]"')
    if not args.max_seconds > 0:
        raise ValueError(f"--max_seconds must be above 0, got {args.max_seconds:g}")
    if args.port is not None:
        _check_port(args.host, args.port)
    from diffusers.utils import logging as diffusers_logging

    from cellfluxrl.app.layout import build_app, launch
    from cellfluxrl.app.models import load_models

    diffusers_logging.disable_progress_bar()
    models = load_models(args.pipeline, args.base, cpu=args.cpu)
    print(f"pipeline: {models.pipe_name}\nbase: {models.base_name or 'none; --base FOLDER_OR_ID shows one beside it'}")
    page = build_app(models, args.controls, args.max_seconds)
    launch(page, args.host, args.port, browser=args.browser, hosts=args.allowed_hosts)


def parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser("cellfluxrl app", inspect.getdoc(main))
    add = parser.add_argument
    add(
        "--pipeline",
        metavar="FOLDER_OR_ID",
        help="folder of a pipeline, or org/name on the Hub; default: runs/demo/pipeline, else the shipped base",
    )
    add(
        "--base",
        metavar="FOLDER_OR_ID",
        help="what the pipeline was post-trained from, shown beside it; default: that of the demo's pipeline",
    )
    add(
        "--controls", metavar="PATH", help="controls to start with: folder, file or data set; default: simulated cells"
    )
    add("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine only")
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add(
        "--allowed_hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names that the page may be asked for by, such as that of a proxy; default: those of this machine",
    )
    add(
        "--max_seconds",
        type=float,
        default=600,
        metavar="N",
        help="a generation that takes longer ends without a result; default: 600",
    )
    add("--browser", action="store_true", help="open the page in a browser")
    add("--cpu", action="store_true", help="stay on the CPU even where a GPU is found")
    return parser


def _check_port(host: str, port: int) -> None:
    """Before the pipelines are loaded: gradio would say it after."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
            ) from None
