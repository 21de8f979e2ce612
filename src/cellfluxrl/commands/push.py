"""`cellfluxrl push`: publish what this package has saved, whatever it is."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import read_json
from cellfluxrl.terminal import print_json

CLASSES = {"pipeline": "CellFluxPipeline", "classifier": "MoAClassifier", "reward suite": "RewardSuite"}


def repository_parser(prog: str, description: str | None, folder: str) -> CommandParser:
    """What every command that publishes takes; `folder` says what the folder holds."""
    parser = CommandParser(prog, description)
    parser.add_argument("folder", help=folder)
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--private", action="store_true", help="only for those with access; default: public")
    parser.add_argument("--token", help="default: that of `hf auth login`, or the environment variable HF_TOKEN")
    return parser


def print_address(args: argparse.Namespace, url: str) -> None:
    """Say where a repository is, as JSON with `--json`."""
    print_json({"repo_id": args.repo_id, "url": url}) if args.json else print(url)


def parser() -> CommandParser:
    """The command line of `cellfluxrl push`."""
    parser = repository_parser(
        "cellfluxrl push", inspect.getdoc(main), "a pipeline, a classifier, a reward suite or a data set"
    )
    parser.add_argument("--license", help="for the card, e.g. cc-by-4.0; default: what the training data say")
    add_json_option(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Publish a folder on the Hugging Face Hub, with a card, in one commit; repeat it after an interruption.

    A pipeline, a classifier, a reward suite or a data set: its files say which of them it is.

    Examples:
      cellfluxrl push runs/rl your-name/my-cells
      cellfluxrl push runs/moa your-name/my-classifier --private
    """
    args = parser().parse_args(argv)
    how = {"private": args.private, "token": args.token, "license": args.license}
    print_address(args, push_folder(args.folder, args.repo_id, **how))


def push_folder(
    folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None, license: str | None = None
) -> str:
    """Publish a pipeline, a classifier, a reward suite or a data set as its class does; return its address.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError, PermissionError, ConnectionError: As [`HubMixin.push_folder`] says; or if it is none of these, or
            a licence is given for a suite or a data set, which have one in their card.
    """
    import cellfluxrl
    from cellfluxrl.data.push import push_dataset
    from cellfluxrl.hub.download import check_repo_id

    check_repo_id(repo_id)
    kind = kind_of(folder)
    if license is not None and kind in ("reward suite", "data set"):
        raise ValueError(f"--license {license}: a {kind} has it in its README.md, write it there")
    if kind == "data set":
        return push_dataset(folder, repo_id, private=private, token=token)
    trained = getattr(cellfluxrl, CLASSES[kind])
    return trained.push_folder(folder, repo_id, private=private, token=token, license=license)


def kind_of(folder: str | Path) -> str:
    """What a folder holds: `"pipeline"`, `"classifier"`, `"reward suite"` or `"data set"`."""
    from cellfluxrl.data.info import REPORT_NAME
    from cellfluxrl.hub.download import PIPELINE_INDEX

    folder = Path(folder)
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(str(unknown_name(f"folder of {folder.parent}:", folder.name, siblings)))
    if (folder / PIPELINE_INDEX).is_file():
        return "pipeline"
    if (folder / REPORT_NAME).is_file():
        return "data set"
    config = folder / "config.json"
    found = read_json(config).get("_class_name") if config.is_file() else None
    for kind, name in CLASSES.items():
        if name == found:
            return kind
    held = f"a {found}" if found else ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise ValueError(
        f"{str(folder)!r} is neither a pipeline nor a classifier, a reward suite or a data set; it holds: {held}"
    )
