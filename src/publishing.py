"""Publishing what this package saves: which files of a folder go to the Hugging Face Hub, and with which card."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellfluxrl.data.info import REPORT_NAME
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import contained_path
from cellfluxrl.hub import CARD_NAME, check_repo_id, push_files
from cellfluxrl.hub_download import PIPELINE_INDEX, WEIGHTS
from cellfluxrl.model_card import (
    LOG_NAME,
    METRICS_NAME,
    RESULTS_NAME,
    classifier_card,
    find_picture,
    pipeline_card,
)
from cellfluxrl.remote_code import with_shims
from cellfluxrl.training_record import RECORD_NAME

PUSH_OPTIONS = ("private", "token", "commit_message", "license")
CLASSIFIER_WEIGHTS = f"{WEIGHTS}*.safetensors*"


def push_pipeline(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> str:
    """
    Publish a saved pipeline in one commit: its components, a card, and the files by which diffusers loads it.

    Weights are sent as they are, all variants of them. `log.jsonl` and a picture of samples go with them; checkpoints
    and everything else in the folder do not. A `README.md` in the folder is the card; without one it is written
    ([`pipeline_card`]).

    Args:
        folder (`str` or `Path`): Of a [`CellFluxPipeline`] or [`CellFluxRLPipeline`].
        repo_id (`str`): `"owner/name"`; the repository is created where there is none.
        private (`bool`, defaults to `False`): Whether only its owner may read a new repository.
        token (`str`, *optional*): An access token with the right to write; by default the one of `hf auth login`.
        commit_message (`str`, *optional*): One line.
        license (`str`, *optional*): A licence identifier of the Hub, for the card that is written.

    Returns:
        `str`: The repository's address.

    Raises:
        ValueError: If a component is missing, `results.json` is of other weights, or as [`push_files`] says.
        PermissionError, ConnectionError: As [`push_files`] says.

    Example:
        >>> push_pipeline("runs/rl", "my-lab/my-cells", private=True)                     # doctest: +SKIP
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    index, texts = with_shims(json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8")))
    texts[PIPELINE_INDEX] = json.dumps(index, indent=2) + "\n"
    entries = {name: value for name, value in index.items() if not name.startswith("_") and isinstance(value, list)}
    components = [name for name, value in entries.items() if value[0]]
    names = [name for component in components for name in _component_files(folder, component)]
    names += _present(folder, LOG_NAME, find_picture(folder))
    return _push(
        folder,
        names,
        texts,
        repo_id,
        license,
        pipeline_card,
        private=private,
        token=token,
        commit_message=commit_message or "Pipeline of CellFluxRL",
        replaces=("*.safetensors*", "*/*.json", "*.py", "samples.png", "samples/*.png", LOG_NAME),
    )


def push_classifier(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> str:
    """
    Publish a saved [`MoAClassifier`] in one commit, with a card ([`classifier_card`]) unless it has a `README.md`.

    Args:
        folder, repo_id, private, token, commit_message, license: As in [`push_pipeline`].

    Returns:
        `str`: The repository's address.

    Raises:
        ValueError, PermissionError, ConnectionError: As [`push_files`] says.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    return _push(
        folder,
        [*_component_files(folder, ""), *_present(folder, LOG_NAME, METRICS_NAME)],
        {},
        repo_id,
        license,
        classifier_card,
        private=private,
        token=token,
        commit_message=commit_message or "Classifier of the mechanism of action, trained with CellFluxRL",
        replaces=(CLASSIFIER_WEIGHTS, LOG_NAME, METRICS_NAME),
    )


def push_suite(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Publish a saved [`RewardSuite`], with the card that lies beside it; see [`RewardSuite.push_to_hub`]."""
    names = [*_component_files(Path(folder), ""), CARD_NAME]
    message = "Biological rewards, fitted with CellFluxRL"
    return push_files(folder, names, repo_id, "model", message, private, token, CLASSIFIER_WEIGHTS)


def push_folder(
    folder: str | Path, repo_id: str, private: bool = False, token: str | None = None, license: str | None = None
) -> str:
    """
    Publish a pipeline, a classifier, a reward suite or a data set; which of them it is, its files tell.

    Args:
        folder (`str` or `Path`): What this package has saved or built.
        repo_id, private, token, license: As in [`push_pipeline`]. A suite and a data set say their licence themselves.

    Returns:
        `str`: The repository's address.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is none of these, or as the functions for each of them say.
        PermissionError, ConnectionError: As [`push_files`] says.
    """
    check_repo_id(repo_id)
    kind = kind_of(folder)
    if kind in ("pipeline", "classifier"):
        push = push_pipeline if kind == "pipeline" else push_classifier
        return push(folder, repo_id, private, token, license=license)
    if license is not None:
        raise ValueError(f"--license {license}: a {kind} has it in its own {CARD_NAME}, write it there")
    if kind == "reward suite":
        return push_suite(folder, repo_id, private, token)
    from cellfluxrl.data.push import push_dataset

    return push_dataset(folder, repo_id, private, token)


def kind_of(folder: str | Path) -> str:
    """
    What a folder holds: `"pipeline"`, `"classifier"`, `"reward suite"` or `"data set"`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds nothing of the kind.
    """
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
    kinds = {"MoAClassifier": "classifier", "RewardSuite": "reward suite"}
    if found not in kinds:
        held = f"a {found}" if found else ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise ValueError(
            f"{str(folder)!r} is neither a pipeline nor a classifier, a reward suite or a data set; it holds: {held}"
        )
    return kinds[found]


def copy_records(source: str | Path | None, folder: str | Path) -> None:
    """
    Let what is saved anew keep what is recorded of it in the folder that it was loaded from.

    Args:
        source (`str` or `Path`, *optional*): That folder, if it is one.
        folder (`str` or `Path`): Where a pipeline or classifier was saved. If the weights, of a pipeline those of its
            network, are others by now, nothing is copied.
    """
    folder = Path(folder)
    source = Path(source) if source else None
    network = "unet" if (folder / PIPELINE_INDEX).is_file() else "."
    weights = [Path(network, path.name) for path in sorted((folder / network).glob("*.safetensors"))]
    if source is None or not all(_same(source / path, folder / path) for path in weights):
        return
    for name in _present(source, LOG_NAME, METRICS_NAME, RECORD_NAME, RESULTS_NAME, find_picture(source)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _push(
    folder: Path,
    names: list[str],
    texts: dict[str, str],
    repo_id: str,
    license: str | None,
    write_card: Callable[[Path, str, str | None], str],
    **options: Any,
) -> str:
    if not (folder / CARD_NAME).is_file():
        texts[CARD_NAME] = write_card(folder, repo_id, license)
    elif license is not None:
        raise ValueError(f"license={license!r}: {folder / CARD_NAME} is the card, write the licence there")
    else:
        names.append(CARD_NAME)
    for name in [name for name in names if name.endswith("config.json")]:
        texts[name] = _without_paths((folder / name).read_text(encoding="utf-8"))
    return push_files(folder, names, repo_id, "model", texts=texts, **options)


def _component_files(folder: Path, component: str) -> list[str]:
    """The configuration, weights and card of a component, relative to the folder of its pipeline."""
    own = contained_path(folder, component, follow_links=True) if component else folder
    names = [
        path.relative_to(folder).as_posix()
        for pattern in ("*.json", "*.safetensors", CARD_NAME if component else "")
        if pattern
        for path in sorted(own.glob(pattern))
        if path.name not in (RECORD_NAME, RESULTS_NAME, METRICS_NAME)
    ]
    is_scheduler = any(name.endswith("scheduler_config.json") for name in names)
    for what, ending, needed in (
        ("configuration", "config.json", True),
        ("weights", ".safetensors", not is_scheduler),
    ):
        if needed and not any(name.endswith(ending) for name in names):
            raise ValueError(f"{str(own)!r} has no {what}: save the whole of it again")
    return names


def _present(folder: Path, *names: str | None) -> list[str]:
    return [name for name in names if name and (folder / name).is_file()]


def _without_paths(config: str) -> str:
    """A configuration without the folder that it was once loaded from, which is nobody's business."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(own) for key, own in value.items() if key != "_name_or_path"}
        return value

    return json.dumps(cleaned(json.loads(config)), indent=2, sort_keys=True) + "\n"
