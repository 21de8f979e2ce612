"""Publishing a data set: checks that it is complete, and its upload in one commit."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cellfluxrl.data.info import REPORT_NAME
from cellfluxrl.files import contained_path, read_json
from cellfluxrl.hub.cards import CARD_NAME, load_card
from cellfluxrl.hub.download import check_repo_id
from cellfluxrl.hub.push import present, push_files

SHEET_NAME = "contact_sheet.png"
NO_LICENSE = ("", "unknown", "none")


def push_dataset(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a data set to the Hugging Face Hub in one commit, so that nobody ever loads half of it.

    The Parquet files, `README.md`, `build_report.json` and, if it is there, `contact_sheet.png` are sent, after a
    check that they are complete; Parquet files of an earlier version are removed. Repeat it after an interruption:
    what has arrived at the Hub is not sent again.

    Args:
        folder: What `cellfluxrl data build` wrote.
        repo_id: `"owner/name"`; the repository is created where there is none.
        private: Whether only its owner may read a new repository.
        token: An access token with the right to write; by default the one of `hf auth login`.

    Returns:
        The repository's address.

    Raises:
        ValueError: If the data set is not complete or has no licence, its card has placeholders or is refused by the
            Hub, the repository's name is malformed, or it is public and `private` was asked for.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.

    Example:
        >>> push_dataset("my_cells", "my-lab/my-cells", private=True)                 # doctest: +SKIP
    """
    check_repo_id(repo_id)
    message = "Data set of single cells, made with CellFluxRL"
    how = {"private": private, "token": token, "replaces": ["data/*.parquet"]}
    return push_files(folder, checked_files(folder), repo_id, "dataset", message, **how)


def checked_files(folder: str | Path) -> list[str]:
    """Check that a folder holds a complete data set that may be published; return the names of its files."""
    folder = Path(folder)
    report = _finished_report(folder)
    listed = {name: rows for plate in report["plates"].values() for name, rows in plate["files"].items()}
    if not listed:
        raise ValueError(f"{str(folder)!r} lists no Parquet files in {REPORT_NAME}: there is nothing to publish")
    for name, rows in listed.items():
        _check_rows(folder, name, rows)
    unlisted = {path.relative_to(folder).as_posix() for path in folder.glob("data/**/*.parquet")} - set(listed)
    if unlisted:
        raise ValueError(f"{str(folder)!r} holds files that {REPORT_NAME} does not list: {sorted(unlisted)}")
    _check_card(folder / CARD_NAME)
    return [CARD_NAME, REPORT_NAME, *present(folder, SHEET_NAME), *sorted(listed)]


def _finished_report(folder: Path) -> dict:
    path = folder / REPORT_NAME
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no {REPORT_NAME}: it is not a data set that was built")
    try:
        report = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if report.get("complete") is not True:
        raise ValueError(f"the build of {str(folder)!r} has not finished: run the command that builds it again")
    return report


def _check_rows(folder: Path, name: str, rows: int) -> None:
    if not re.fullmatch(r"data/[^/]+/[^/]+\.parquet", name):
        raise ValueError(f"{REPORT_NAME} lists {name!r}, which is not of the form data/SPLIT/NAME.parquet")
    path = contained_path(folder, *name.split("/"), follow_links=True)
    if not path.is_file():
        raise ValueError(f"{path} is missing, {REPORT_NAME} lists it: build the data set again")
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found != rows:
        raise ValueError(f"{path} has {found} rows, {REPORT_NAME} lists {rows}: build the data set again")


def _check_card(path: Path) -> None:
    """Refuse a card that is missing, has no licence or placeholders, or does not lead to the data."""
    card = load_card(path, "dataset")
    if str(card.data.get("license") or "").lower() in NO_LICENSE:
        raise ValueError(
            f"{path} names no licence, so nobody could use the data: build with --license, for example cc-by-4.0, or "
            "write `license:` into its header"
        )
    if not card.data.get("configs"):
        raise ValueError(f"{path} has no `configs:` in its header, by which load_dataset finds the splits")
