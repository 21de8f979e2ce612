"""Publishing a data set: checks that it is complete, and its upload in one commit."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from cellfluxrl.data.info import REPORT_NAME

CARD_NAME = "README.md"
SHEET_NAME = "contact_sheet.png"
# What is left where a card's template was not filled in.
PLACEHOLDER = re.compile(
    r"\[More Information Needed\]|\{\{.*?\}\}|\{%.*?%\}|\b(TODO|TBD|FIXME)\b|\[your [^\]]*\]", re.I
)
NO_LICENSE = ("", "unknown", "none")
GO_ON = "run the same command again: it goes on, and does not send again what has arrived"


def push_dataset(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """
    Upload a data set to the Hugging Face Hub in one commit, so that nobody ever loads half of it.

    The Parquet files, `README.md`, `build_report.json` and, if it is there, `contact_sheet.png` are sent, after a
    check that they are complete; other files in the folder are not. Parquet files of an earlier version that are no
    longer part of the data set are removed in the same commit. After an interruption call it again: what has arrived
    at the Hub is not sent again.

    Args:
        folder (`str` or `Path`): What `cellfluxrl data build` wrote.
        repo_id (`str`): `"owner/name"`; the repository is created where there is none.
        private (`bool`, defaults to `False`): Whether only its owner may read a new repository.
        token (`str`, *optional*): An access token with the right to write; by default the one of `hf auth login`.

    Returns:
        `str`: The repository's address.

    Raises:
        ValueError: If the data set is not complete or has no licence, its card has placeholders or is refused by the
            Hub, the repository's name is malformed, or it is public and `private` was asked for.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.

    Example:
        >>> push_dataset("my_cells", "my-lab/my-cells", private=True)                 # doctest: +SKIP
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    files = checked_files(folder)
    if not (token or get_token()):
        raise PermissionError("there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with _readable_errors(repo_id):
        refusal = _card_refusal(folder / CARD_NAME)
    if refusal:
        raise ValueError(f"the Hub refuses {folder / CARD_NAME}: {refusal}")
    with _readable_errors(repo_id):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        is_public = not api.dataset_info(repo_id).private
    if private and is_public:
        raise ValueError(f"{repo_id} is there already and is public: make it private first, or choose another name")
    with _readable_errors(repo_id):
        present = api.list_repo_files(repo_id, repo_type="dataset")
        stale = [n for n in present if n.startswith("data/") and n.endswith(".parquet") and n not in files]
        # Not upload_folder, which may spread a large folder over several commits.
        api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in files] + [CommitOperationDelete(n) for n in stale],
            commit_message="Data set of single cells, made with CellFluxRL",
            repo_type="dataset",
        )
    return str(url)


def checked_files(folder: str | Path) -> list[str]:
    """
    Check that a folder holds a complete data set.

    Returns:
        `list[str]`: The files to publish, relative to the folder.

    Raises:
        ValueError: If the build did not finish, or files are missing, unreadable, have another number of rows than
            the report says or are not listed in it, or the card cannot be published.
    """
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
    sheet = [SHEET_NAME] if (folder / SHEET_NAME).is_file() else []
    return [CARD_NAME, REPORT_NAME, *sheet, *sorted(listed)]


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        well_formed = repo_id.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise ValueError(
            f"repository {repo_id!r} must be named 'owner/name', of letters, digits, '-', '_' and '.', at most 96"
        )


def _finished_report(folder: Path) -> dict:
    path = folder / REPORT_NAME
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no {REPORT_NAME}: it is not a data set that was built")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if report.get("complete") is not True:
        raise ValueError(f"the build of {str(folder)!r} has not finished: run the command that builds it again")
    return report


def _check_rows(folder: Path, name: str, rows: int) -> None:
    path = folder / name
    if not re.fullmatch(r"data/[^/]+/[^/]+\.parquet", name) or ".." in name:
        raise ValueError(f"{REPORT_NAME} lists {name!r}, which is not of the form data/SPLIT/NAME.parquet")
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
    if not path.is_file():
        raise ValueError(f"{path} is missing: build the data set again")
    try:
        card = DatasetCard.load(path)
    except Exception as error:  # of yaml, or whatever its header makes huggingface_hub do
        raise ValueError(f"{path} cannot be read as a card: {error}") from error
    if placeholder := PLACEHOLDER.search(card.content):
        raise ValueError(f"{path} still has the placeholder {placeholder[0]!r}: fill it in")
    if str(card.data.get("license") or "").lower() in NO_LICENSE:
        raise ValueError(
            f"{path} names no licence, so nobody could use the data: build with --license, for example cc-by-4.0, or "
            "write `license:` into its header"
        )
    if not card.data.get("configs"):
        raise ValueError(f"{path} has no `configs:` in its header, by which load_dataset finds the splits")


def _card_refusal(path: Path) -> str | None:
    """What the Hub has against a card."""
    try:
        DatasetCard.load(path).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def _readable_errors(repo_id: str):
    """Turn what goes wrong between here and the Hub into one sentence that says what to do."""
    try:
        yield
    except Exception as error:  # requests, httpx and its successor share no base class
        response = _response_of(error)
        if response is None:
            raise ConnectionError(f"the Hub cannot be reached ({_first_line(error)}); {GO_ON}") from error
        status = response.status_code
        if status == 401:
            raise PermissionError(
                "the Hub does not accept the access token (401): run `hf auth login` with one that may write to "
                f"{repo_id}"
            ) from error
        if status in (403, 404):
            raise PermissionError(
                f"the access token may not write to {repo_id}, or the owner does not exist ({status}): "
                "check the name, and that the token has the right to write"
            ) from error
        raise ConnectionError(f"the Hub failed with status {status} ({_first_line(error)}); {GO_ON}") from error


def _response_of(error: BaseException | None):
    """The Hub's answer, which may be wrapped in other errors."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response
        error = error.__cause__
    return None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
