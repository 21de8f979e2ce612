"""Names of repositories, access tokens, and errors of publishing that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

RETRY = "run the same command again: it resumes, and does not send again what has arrived"


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
        raise _explained(error, repo_id) from error


def _explained(error: Exception, repo_id: str) -> Exception:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        return ConnectionError(f"the Hub cannot be reached ({first_line(error)}); {RETRY}")
    status = cause.response.status_code
    if status == 400:
        return ValueError(f"the Hub refuses what was sent to {repo_id}: {' '.join(str(error).split())}")
    if status == 401:
        advice = f"run `hf auth login` with one that may write to {repo_id}"
        return PermissionError(f"the Hub does not accept the access token (401): {advice}")
    if status in (403, 404):
        return PermissionError(
            f"the access token may not write to {repo_id}, or the owner does not exist ({status}): "
            "check the name, and that the token has the right to write"
        )
    return ConnectionError(f"the Hub failed with status {status} ({first_line(error)}); {RETRY}")


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
