"""What a training script did, as `training.json` beside what it saved: the card that is published says it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, try_to_load_from_cache

import cellfluxrl
from cellfluxrl.data.card import LICENSE_FIELDS, ORIGINS
from cellfluxrl.data.info import REPORT_NAME
from cellfluxrl.files import read_json, write_whole
from cellfluxrl.hub.cards import CARD_NAME
from cellfluxrl.hub.download import is_repo_id
from cellfluxrl.hub.push import RECORD_NAME


def write_record(output_dir: str | Path, script: str, args: Any, splits: Mapping[str, Any]) -> None:
    """Write `training.json` of the `script` `"pretrain"`, `"moa"` or `"rl"`, with its arguments and its cells."""
    settings = dataclasses.asdict(args)
    base = settings.get("pretrained_model_name_or_path")
    record = {
        "script": script,
        "cellfluxrl": cellfluxrl.__version__,
        "settings": settings,
        "data": describe_data(args.dataset_name, splits),
        "base": read_record(base) if base else None,
        "base_model": base if base and _is_on_hub(base) else None,
    }
    text = json.dumps(record, indent=2) + "\n"
    write_whole(Path(output_dir) / RECORD_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record of a folder, or `None` where there is none."""
    path = Path(folder) / RECORD_NAME
    return read_json(path) if path.is_file() else None


def describe_data(dataset_name: str, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of a data set's cells, what it was built from, and its licence as far as its card says it."""
    report = Path(dataset_name) / REPORT_NAME
    built_from = read_json(report).get("source") if report.is_file() else None
    source = dataset_name if dataset_name in ("crops", "simulated") else built_from
    columns = ["plate", "compound", "moa", "is_control"]
    tables = {name: split.select_columns(columns).to_pandas() for name, split in splits.items()}
    treated = [table[~table["is_control"]] for table in tables.values()]
    return {
        "name": dataset_name,
        "source": source,
        "is_on_hub": _is_on_hub(dataset_name),
        "license": _license_of(dataset_name, source),
        "cells": {name: len(table) for name, table in tables.items()},
        "plates": {name: sorted(set(table["plate"])) for name, table in tables.items()},
        "compounds": len({compound for table in treated for compound in table["compound"]}),
        "moas": sorted({moa for table in treated for moa in table["moa"] if moa}),
    }


def _is_on_hub(name: str) -> bool:
    """Whether that is a repository and not a folder, which is known only where the script runs."""
    return is_repo_id(name) and not Path(name).exists()


def _license_of(dataset_name: str, source: str | None) -> dict[str, str]:
    """Of the data set's card where it has one, else of what it was built from."""
    card = Path(dataset_name) / CARD_NAME
    if _is_on_hub(dataset_name):
        cached = try_to_load_from_cache(dataset_name, CARD_NAME, repo_type="dataset")
        card = Path(cached) if isinstance(cached, str) else card
    if card.is_file():
        data = DatasetCard.load(card).data.to_dict()
        return {name: data[name] for name in LICENSE_FIELDS if data.get(name)}
    return dict(ORIGINS[source].license) if source in ORIGINS else {}
