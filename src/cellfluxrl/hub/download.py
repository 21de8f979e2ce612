"""Loading from the Hugging Face Hub: what of a pipeline is fetched, names of repositories, and readable errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from cellfluxrl.errors import unknown_name
from cellfluxrl.files import contained_path, read_json

PIPELINE_INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
LOG_IN = "run `hf auth login`, or set HF_TOKEN"
# huggingface_hub has used one after the other; an error of theirs that it lets through is one of the network.
HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def download_pipeline(
    repo_id: str,
    passed: Collection[str] = (),
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Path:
    """Fetch a pipeline's configurations and weights, and none of the code that lies beside them, into the cache.

    Everything is of one commit, whatever is published meanwhile.

    Args:
        passed: Components that are not needed.
        variant: Weights of this kind, such as `"fp16"`, of all components that have them.
        **options: `cache_dir` and `force_download` of `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: As [`readable_download_errors`] says.
        ValueError: If the revision or the variant is unknown, with the nearest one.
    """
    options |= {"token": token, "local_files_only": local_files_only}
    with readable_download_errors(
        repo_id, "pipeline", revision=revision, token=token, local_files_only=local_files_only
    ):
        index = Path(hf_hub_download(repo_id, PIPELINE_INDEX, revision=revision, **options))
        components = [name for name in components_of(read_json(index)) if name not in passed]
        for name in components:  # each is the name of a folder
            contained_path(index.parent, name, follow_links=True)
        commit = index.parent.name

        def fetch(names: list[str], variant: str | None) -> Path:
            stem = WEIGHTS + (f".{variant}" if variant else "")
            files = ("*.json", f"{stem}.safetensors", f"{stem}-*.safetensors")  # whole, or in shards
            patterns = [PIPELINE_INDEX, *(f"{name}/{file}" for name in names for file in files)]
            return Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns, **options))

        folder = fetch(components, variant)
        if variant:
            without = [name for name in components if not list((folder / name).glob(f"*.{variant}*.safetensors"))]
            if len(without) == len(components):
                raise unknown_name(f"variant of {repo_id}:", variant, _variants(HfApi(token=token), repo_id, commit))
            fetch(without, None)
    return folder


def components_of(index: dict[str, Any]) -> list[str]:
    """The components that a pipeline's index says it has."""
    return [n for n, value in index.items() if not n.startswith("_") and isinstance(value, list) and value[0]]


def check_pipeline_folder(folder: Path, overridden: Collection[str], optional: Collection[str]) -> None:
    """Raise a `FileNotFoundError` unless a folder holds a pipeline with all components that are not `overridden`.

    If only `optional` ones are missing, the message says how to load it without them.
    """
    index = folder / PIPELINE_INDEX
    if not index.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{str(folder)!r} is not a pipeline: it has no {PIPELINE_INDEX}; it holds: {found}")
    components = components_of(read_json(index))
    folders = {name: contained_path(folder, name, follow_links=True) for name in components}
    missing = [name for name in components if name not in overridden and not list(folders[name].glob("*.json"))]
    if missing:
        hint = "; pass " + ", ".join(f"{m}=None" for m in missing) + " to load without it"
        raise FileNotFoundError(
            f"the pipeline in {str(folder)!r} lacks {missing} of its components {sorted(components)}"
            + (hint if set(missing) <= set(optional) else "")
        )


def _variants(api: HfApi, repo_id: str, revision: str) -> set[str]:
    """The `"fp16"` of `diffusion_pytorch_model.fp16.safetensors`, and the like."""
    names = [name.rpartition("/")[2] for name in api.list_repo_files(repo_id, revision=revision)]
    parts = [name.split(".") for name in names if name.startswith(f"{WEIGHTS}.") and name.endswith(".safetensors")]
    return {middle[0].partition("-")[0] for _, *middle, _ in parts if len(middle) == 1}


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


def check_name(name: str | Path) -> None:
    """Raise a `FileNotFoundError` for what is neither a folder nor could be a repository."""
    if not Path(name).exists() and not is_repo_id(str(name)):
        raise FileNotFoundError(f"there is no folder {str(name)!r}, and a repository of the Hub is named 'owner/name'")


@contextmanager
def readable_download_errors(
    repo_id: str | Path,
    kind: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Iterator[None]:
    """Turn what goes wrong on loading a pipeline, suite or classifier into a sentence that says what to do.

    Raises:
        FileNotFoundError: If there is no such folder or repository, a file of it is missing, or it is not in the cache
            and must not be fetched.
        PermissionError: If its terms have to be accepted, or the token is missing or not valid.
        ValueError: If the revision is unknown, with the nearest one.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    check_name(repo_id)
    try:
        yield
    except Exception as error:
        cause = _hub_error(error)
        if cause is None:
            raise
        how = {"revision": revision, "token": token, "local_files_only": local_files_only}
        raise _explained(cause, str(repo_id), kind, **how) from error


def _hub_error(error: BaseException | None) -> BaseException | None:
    """What huggingface_hub raised, which diffusers may have wrapped in other errors."""
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    absent = [e for e in chain if isinstance(e, LocalEntryNotFoundError)]
    known = (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled)
    causes = [e for e in chain if isinstance(e, known) and e not in absent]
    of_network = [e for e in chain if type(e).__module__.partition(".")[0] in HTTP_LIBRARIES]
    # Why a file could not be fetched says more than that it is not in the cache.
    return next(iter([*causes, *of_network, *absent]), None)


def _explained(
    cause: BaseException,
    repo_id: str,
    kind: str,
    *,
    revision: str | None,
    token: str | bool | None,
    local_files_only: bool,
) -> Exception:
    """The error that the user sees."""
    if isinstance(cause, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo_id}"
        return PermissionError(f"{repo_id} is only for those who accept its terms: do so at {page}")
    has_token = token is not False and bool(token or get_token())
    if isinstance(cause, RepositoryNotFoundError):
        advice = "your access token may not read it" if has_token else LOG_IN
        return FileNotFoundError(
            f"there is no folder {repo_id!r} and no such {kind} on the Hub; if it is private there, {advice}"
        )
    if isinstance(cause, RevisionNotFoundError):
        return _unknown_revision(HfApi(token=token), repo_id, revision)
    response: Any = getattr(cause, "response", None)
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        missing = str(response.url).rpartition("/")[2] if response is not None else first_line(cause)
        return FileNotFoundError(f"{repo_id} on the Hub is not a {kind}: a file of it is missing ({missing})")
    if local_files_only or constants.HF_HUB_OFFLINE or isinstance(cause, OfflineModeIsEnabled):
        what = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
        return FileNotFoundError(
            f"{what} is not, or not wholly, in the cache, and nothing may be fetched (HF_HUB_OFFLINE or "
            "local_files_only): load it once while online"
        )
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        advice = f"run `hf auth login` with one that may read {repo_id}" if has_token else LOG_IN
        what = "the Hub does not accept the access token" if has_token else "the Hub asks for an access token"
        return PermissionError(f"{what} ({status}): {advice}")
    what_happened = f"the Hub failed with status {status}" if status else "the Hub cannot be reached"
    return ConnectionError(
        f"{what_happened} ({first_line(cause)}), and {repo_id!r} is not, or not wholly, in the cache; "
        "try again: what has arrived is kept"
    )


def _unknown_revision(api: HfApi, repo_id: str, revision: str | None) -> Exception:
    try:
        refs = api.list_repo_refs(repo_id)
    except Exception:  # the list is a courtesy: without it the message is still true
        return ValueError(f"{repo_id} has no revision {revision!r}")
    return unknown_name(f"revision of {repo_id}:", revision, [ref.name for ref in (*refs.branches, *refs.tags)])


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
