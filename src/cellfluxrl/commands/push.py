"""`cellfluxrl push`: publish what this package has saved, whatever it is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.terminal import print_json


def parser() -> CommandParser:
    parser = CommandParser("cellfluxrl push", inspect.getdoc(main))
    parser.add_argument("folder", help="a pipeline, a classifier, a reward suite or a data set")
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--private", action="store_true", help="only for those with access; default: public")
    parser.add_argument("--token", help="default: that of `hf auth login`, or the environment variable HF_TOKEN")
    parser.add_argument("--license", help="for the card, e.g. cc-by-4.0; default: what the training data say")
    add_json_option(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Publish a folder on the Hugging Face Hub, with a card, in one commit; repeat it after an interruption.

    A pipeline, a classifier, a reward suite or a data set: which of them it is, its files tell.

    Examples:
      cellfluxrl push runs/rl your-name/my-cells
      cellfluxrl push runs/moa your-name/my-classifier --private
    """
    args = parser().parse_args(argv)
    from cellfluxrl.hub.push import push_folder

    url = push_folder(args.folder, args.repo_id, args.private, args.token, args.license)
    if args.json:
        print_json({"repo_id": args.repo_id, "url": url})
    else:
        print(url)
