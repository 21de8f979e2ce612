"""Which files of a folder go to the Hugging Face Hub, and their upload in one commit."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError

from cellfluxrl.files import write_whole
from cellfluxrl.hub.access import check_repo_id, check_token, readable_errors
from cellfluxrl.hub.cards import CARD_NAME, load_card, parse_card
from cellfluxrl.hub.download import PIPELINE_INDEX

# What training and evaluation leave beside the weights, for the card to say.
LOG_NAME, METRICS_NAME, RECORD_NAME, RESULTS_NAME = "log.jsonl", "metrics.json", "training.json", "results.json"


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
        replaces: Files of the repository that match one of these patterns (as in a shell) and are not sent are removed
            in the same commit: they are of an earlier version.
        texts: Files that are not in the folder, by name; they win over those that are.

    Raises:
        ValueError: If the card has placeholders or is refused by the Hub, the repository's name is malformed, or it is
            public and `private` was asked for.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    folder, texts = Path(folder), texts or {}
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


def component_files(folder: Path, component: str = "") -> list[str]:
    """The configuration, weights and card of a component, relative to the folder of its pipeline.

    Raises:
        ValueError: If it has no configuration or no weights.
    """
    patterns = ["*.json", "*.safetensors", *([CARD_NAME] if component else [])]
    records = (RECORD_NAME, RESULTS_NAME, METRICS_NAME)
    paths = [path for pattern in patterns for path in sorted((folder / component).glob(pattern))]
    names = [path.relative_to(folder).as_posix() for path in paths if path.name not in records]
    needed = {"configuration": "config.json", "weights": ".safetensors"}
    if any(name.endswith("scheduler_config.json") for name in names):
        del needed["weights"]
    for what, ending in needed.items():
        if not any(name.endswith(ending) for name in names):
            raise ValueError(f"{str(folder / component)!r} has no {what}: save the whole of it again")
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
    """Copy what is recorded of training and evaluation to where a pipeline or classifier was saved anew.

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
