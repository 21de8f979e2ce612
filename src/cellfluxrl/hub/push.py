"""Which files of a folder go to the Hugging Face Hub, their upload in one commit, and readable errors."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import HfHubHTTPError

from cellfluxrl.files import contained_path, write_whole
from cellfluxrl.hub.cards import CARD_NAME, load_card, parse_card
from cellfluxrl.hub.download import PIPELINE_INDEX, check_repo_id, first_line

# What training and evaluation leave beside the weights, for the card to say.
LOG_NAME, METRICS_NAME, RECORD_NAME, RESULTS_NAME = "log.jsonl", "metrics.json", "training.json", "results.json"
RETRY = "run the same command again: it resumes, and does not send again what has arrived"


def push_files(
    folder: str | Path,
    files: Sequence[str],
    repo_id: str,
    repo_type: str,
    commit_message: str,
    *,
    private: bool = False,
    token: str | None = None,
    replaces: Sequence[str] = (),
    texts: Mapping[str, str] | None = None,
) -> str:
    """Upload files to a repository in one commit, so that nobody ever loads half of them; return its address.

    Args:
        files: Names relative to the folder. A card, `README.md`, is among them or `texts`.
        repo_type: `"dataset"` or `"model"`.
        replaces: Patterns, as in a shell, of files of an earlier version, which are removed unless sent.
        texts: Files that are not in the folder, by name; they win over those that are.
    """
    folder, texts = Path(folder), texts or {}
    check_repo_id(repo_id)
    text = texts.get(CARD_NAME)
    card = parse_card(text, f"the card of {folder}", repo_type) if text else load_card(folder / CARD_NAME, repo_type)
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
        others = set(api.list_repo_files(repo_id, repo_type=repo_type)) - {*files, *texts}
        stale = sorted(name for name in others if any(fnmatch(name, pattern) for pattern in replaces))
        operations = additions + [CommitOperationDelete(name) for name in stale]
        # Not upload_folder, which may spread a large folder over several commits.
        api.create_commit(repo_id, operations, commit_message=commit_message, repo_type=repo_type)
    return str(url)


def _refusal(card: RepoCard) -> str | None:
    """What the Hub has against a card."""
    try:
        card.validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        return str(error)
    return None


def check_token(token: str | None = None) -> None:
    """Raise a `PermissionError` if there is no access token, given or of `hf auth login`."""
    if not (token or get_token()):
        raise PermissionError("there is no access token for the Hub: run `hf auth login`, or set HF_TOKEN")


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


def component_files(folder: Path, component: str = "") -> list[str]:
    """The configuration, weights and card of a component, relative to the folder of its pipeline."""
    patterns = ["*.json", "*.safetensors", *([CARD_NAME] if component else [])]
    records = (RECORD_NAME, RESULTS_NAME, METRICS_NAME)
    place = contained_path(folder, component, follow_links=True) if component else folder
    paths = [path for pattern in patterns for path in sorted(place.glob(pattern))]
    names = [path.relative_to(folder).as_posix() for path in paths if path.name not in records]
    needed = {"configuration": "config.json", "weights": ".safetensors"}
    if any(name.endswith("scheduler_config.json") for name in names):
        del needed["weights"]
    for what, ending in needed.items():
        if not any(name.endswith(ending) for name in names):
            raise ValueError(f"{str(place)!r} has no {what}: save the whole of it again")
    return names


def present(folder: Path, *names: str | None) -> list[str]:
    """Those of the files that are there."""
    return [name for name in names if name and (folder / name).is_file()]


def find_picture(folder: Path) -> str | None:
    """`samples.png`, or else the last of `samples/`, relative to the folder."""
    if (folder / "samples.png").is_file():
        return "samples.png"
    pictures = sorted((folder / "samples").glob("*.png"))
    return f"samples/{pictures[-1].name}" if pictures else None


def without_paths(config: str) -> str:
    """A configuration without the folder that it was once loaded from, which is nobody's business."""

    def cleaned(entries: dict) -> dict:
        return {key: value for key, value in entries.items() if key != "_name_or_path"}

    return json.dumps(json.loads(config, object_hook=cleaned), indent=2, sort_keys=True) + "\n"


def copy_records(source: str | Path | None, folder: str | Path) -> None:
    """Copy what is recorded of training and evaluation to where a pipeline or classifier was saved again.

    Nothing is copied if the `source` that it was loaded from is not a folder, or its weights (of a pipeline those of
    the network) are others by now.
    """
    folder = Path(folder)
    source = Path(source) if source else None
    network = "unet" if (folder / PIPELINE_INDEX).is_file() else "."
    weights = [Path(network, path.name) for path in sorted((folder / network).glob("*.safetensors"))]
    if source is None or not all(_same(source / path, folder / path) for path in weights):
        return
    for name in present(source, LOG_NAME, METRICS_NAME, RECORD_NAME, RESULTS_NAME, find_picture(source)):
        write_whole(folder / name, lambda path, name=name: shutil.copyfile(source / name, path))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)
