"""`cellfluxrl push`: publish what this package has saved, whatever it is."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from cellfluxrl.arguments import CommandParser, add_json_option
from cellfluxrl.errors import unknown_name
from cellfluxrl.terminal import print_json

CLASSES = {"pipeline": "CellFluxPipeline", "classifier": "MoAClassifier", "reward suite": "RewardSuite"}


def repository_parser(prog: str, description: str | None, folder: str) -> CommandParser:
    """What every command that publishes takes.

    Args:
        folder: What the folder holds, for `--help`.
    """
    parser = CommandParser(prog, description)
    parser.add_argument("folder", help=folder)
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--private", action="store_true", help="only for those with access; default: public")
    parser.add_argument("--token", help="default: that of `hf auth login`, or the environment variable HF_TOKEN")
    return parser


def print_address(args: argparse.Namespace, url: str) -> None:
    print_json({"repo_id": args.repo_id, "url": url}) if args.json else print(url)


def parser() -> CommandParser:
    parser = repository_parser(
        "cellfluxrl push", inspect.getdoc(main), "a pipeline, a classifier, a reward suite or a data set"
    )
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
    print_address(args, push_folder(args.folder, args.repo_id, args.private, args.token, args.license))


def push_folder(
    folder: str | Path, repo_id: str, private: bool = False, token: str | None = None, license: str | None = None
) -> str:
    """Publish a pipeline, a classifier, a reward suite or a data set; which of them it is, its files tell.

    Args:
        folder: What this package has saved or built.
        repo_id: `"owner/name"`; the repository is created where there is none.
        private: Whether only its owner may read a new repository.
        token: An access token with the right to write; by default the one of `hf auth login`.
        license: A licence identifier of the Hub, for the card that is written. A suite and a data set say their
            licence themselves.

    Returns:
        The repository's address.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is none of these, or as [`push_files`] says.
        PermissionError, ConnectionError: As [`push_files`] says.
    """
    import cellfluxrl
    from cellfluxrl.data.push import push_dataset
    from cellfluxrl.hub.access import check_repo_id

    check_repo_id(repo_id)
    kind = kind_of(folder)
    if license is not None and kind in ("reward suite", "data set"):
        raise ValueError(f"--license {license}: a {kind} has it in its own README.md, write it there")
    if kind == "data set":
        return push_dataset(folder, repo_id, private, token)
    return getattr(cellfluxrl, CLASSES[kind]).push_folder(folder, repo_id, private, token, license=license)


def kind_of(folder: str | Path) -> str:
    """What a folder holds: `"pipeline"`, `"classifier"`, `"reward suite"` or `"data set"`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds nothing of the kind.
    """
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
    found = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    for kind, name in CLASSES.items():
        if name == found:
            return kind
    held = f"a {found}" if found else ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise ValueError(
        f"{str(folder)!r} is neither a pipeline nor a classifier, a reward suite or a data set; it holds: {held}"
    )
