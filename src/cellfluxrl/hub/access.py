"""Publishing a folder on the Hugging Face Hub: in one commit, and with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    ModelCard,
    RepoCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

CARD_NAME = "README.md"
CARDS: dict[str, type[RepoCard]] = {"dataset": DatasetCard, "model": ModelCard}
# What is left where a card's template was not filled in.
PLACEHOLDER = re.compile(
    r"\[More Information Needed\]|\{\{.*?\}\}|\{%.*?%\}|\b(TODO|TBD|FIXME)\b|\[your [^\]]*\]", re.I
)
GO_ON = "run the same command again: it goes on, and does not send again what has arrived"


def push_files(
    folder: str | Path,
    files: Sequence[str],
    repo_id: str,
    repo_type: str,
    commit_message: str,
    private: bool = False,
    token: str | None = None,
    replaces: str | Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> str:
    """Upload files to the Hugging Face Hub in one commit, so that nobody ever loads half of them.

    After an interruption call it again: what has arrived at the Hub is not sent again.

    Args:
        folder: Where the files are.
        files: Their names, relative to the folder. A card, `README.md`, is among them or `texts`.
        repo_id: `"owner/name"`; the repository is created where there is none.
        repo_type: `"dataset"` or `"model"`.
        commit_message: One line.
        private: Whether only its owner may read a new repository.
        token: An access token with the right to write; by default the one of `hf auth login`.
        replaces: Files of the repository whose names match one of these patterns (as in a shell) and that are not sent
            are removed in the same commit: they are of an earlier version.
        texts: Files that are not in the folder, by name; they win over those that are.

    Returns:
        The repository's address.

    Raises:
        ValueError: If the card has placeholders or is refused by the Hub, the repository's name is malformed, or it is
            public and `private` was asked for.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.

    Example:
        >>> push_files("cells", ["README.md"], "my-lab/cells", "dataset", "A card")   # doctest: +SKIP
    """
    folder, texts = Path(folder), texts or {}
    patterns = [replaces] if isinstance(replaces, str) else replaces
    check_repo_id(repo_id)
    if CARD_NAME in texts:
        card = parse_card(texts[CARD_NAME], f"the card of {folder}", repo_type)
    else:
        card = load_card(folder / CARD_NAME, repo_type)
    check_token(token)
    api = HfApi(token=token)
    with readable_errors(repo_id):
        refusal = _refusal(card)
    if refusal:
        raise ValueError(f"the Hub refuses {folder / CARD_NAME}: {refusal}")
    with readable_errors(repo_id):
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        is_public = not api.repo_info(repo_id, repo_type=repo_type).private
    if private and is_public:
        raise ValueError(f"{repo_id} is there already and is public: make it private first, or choose another name")
    additions = [CommitOperationAdd(name, folder / name) for name in files if name not in texts]
    additions += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    with readable_errors(repo_id):
        present = set(api.list_repo_files(repo_id, repo_type=repo_type)) - {*files, *texts}
        stale = sorted(name for name in present if any(fnmatch(name, pattern) for pattern in patterns))
        # Not upload_folder, which may spread a large folder over several commits.
        api.create_commit(
            repo_id,
            additions + [CommitOperationDelete(name) for name in stale],
            commit_message=commit_message,
            repo_type=repo_type,
        )
    return str(url)


def check_token(token: str | None = None) -> None:
    """Raise a `PermissionError` if there is no access token, given or of `hf auth login`."""
    if not (token or get_token()):
        raise PermissionError("there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN")


def is_repo_id(repo_id: str) -> bool:
    """Whether a repository could be named so: `"owner/name"`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return repo_id.count("/") == 1


def check_repo_id(repo_id: str) -> None:
    """Raise a `ValueError` unless a repository is named `"owner/name"`, as the Hub wants it."""
    if not is_repo_id(repo_id):
        raise ValueError(
            f"repository {repo_id!r} must be named 'owner/name', of letters, digits, '-', '_' and '.', at most 96"
        )


def load_card(path: Path, repo_type: str) -> RepoCard:
    """Read the card of a repository.

    Raises:
        ValueError: If it is missing, cannot be read, or still has placeholders.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: a repository needs a card")
    return parse_card(path.read_text(encoding="utf-8"), str(path), repo_type)


def parse_card(content: str, where: str, repo_type: str) -> RepoCard:
    """Read a card from text.

    Raises:
        ValueError: If it cannot be read or still has placeholders; `where` says which card it is.
    """
    try:
        card = CARDS[repo_type](content)
    except Exception as error:  # of yaml, or whatever its header makes huggingface_hub do
        raise ValueError(f"{where} cannot be read as a card: {error}") from error
    if placeholder := PLACEHOLDER.search(card.content):
        raise ValueError(f"{where} still has the placeholder {placeholder[0]!r}: fill it in")
    return card


def _refusal(card: RepoCard) -> str | None:
    """What the Hub has against a card."""
    try:
        card.validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        return str(error)
    return None


@contextmanager
def readable_errors(repo_id: str) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into one sentence that says what to do."""
    try:
        yield
    except Exception as error:  # requests, httpx and its successor share no base class
        response = _response_of(error)
        if response is None:
            raise ConnectionError(f"the Hub cannot be reached ({first_line(error)}); {GO_ON}") from error
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
        if status == 400:
            raise ValueError(f"the Hub refuses what was sent to {repo_id}: {' '.join(str(error).split())}") from error
        raise ConnectionError(f"the Hub failed with status {status} ({first_line(error)}); {GO_ON}") from error


def _response_of(error: BaseException | None):
    """The Hub's answer, which may be wrapped in other errors."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response
        error = error.__cause__
    return None


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
