"""Names of repositories, access tokens, and errors of publishing that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

GO_ON = "run the same command again: it goes on, and does not send again what has arrived"


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
