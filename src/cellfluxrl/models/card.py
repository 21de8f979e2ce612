"""Cards of trained models, filled in from what is in a folder: configurations, the training, measured results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from cellfluxrl.data.card import ORIGINS, TAGS, Origin
from cellfluxrl.data.records import read_record
from cellfluxrl.files import read_json
from cellfluxrl.hub.cards import render_card
from cellfluxrl.hub.download import WEIGHTS, is_repo_id
from cellfluxrl.hub.push import LOG_NAME, METRICS_NAME

STAGES = {
    "pretrain": "Pretraining by flow matching from control to treated cells",
    "rl": "Post-training with biological rewards",
    "moa": "Training on labelled cells",
}
# Of the settings of a script, what describes this machine or where things go, and not the model.
PRIVATE = {
    *("output_dir", "data_dir", "report_to", "cpu", "push_to_hub", "hub_model_id", "private"),
    *("resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "log_steps", "sample_steps"),
    *("dataloader_num_workers", "reward_workers", "reward_timeout"),
}
CLASSIFIER_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "expected_calibration_error": "expected calibration error",
}
METHODS = {
    "CellFlux": "Zhang et al., CellFlux: Simulating Cellular Morphology Changes via Flow Matching (2025).",
    "DiffusionNFT": "Zheng et al., DiffusionNFT: Online Diffusion Reinforcement with Forward Process (2025).",
}


def classifier_card(folder: Path, repo_id: str, license: str | None = None) -> str:
    """Fill in `model_cards/classifier.md` for the folder of a `MoAClassifier`, with what `cellfluxrl moa` recorded."""
    config = read_json(folder / "config.json")
    record = read_record(folder) or {}
    metrics = read_json(folder / METRICS_NAME) if (folder / METRICS_NAME).is_file() else {}
    measured = CLASSIFIER_METRICS.items() if metrics else ()
    return model_card(
        "classifier.md",
        folder,
        repo_id,
        license,
        task="image-classification",
        tested_on=data_name(record.get("data", {}).get("name")),
        results=[(key, label, round(metrics[key], 4)) for key, label in measured],
        image=f"It works at {config['image_size']} x {config['image_size']} pixels",
        parameters=parameter_count(folder),
        size=config["image_size"],
        channels=config["channel_names"],
        classes=config["moas"],
        metrics=metrics,
        measured=[(label, f"{metrics[key]:.3f}", f"{metrics['standard_errors'][key]:.3f}") for key, label in measured],
    )


def model_card(
    template: str,
    folder: Path,
    repo_id: str,
    license: str | None,
    task: str,
    tested_on: str,
    results: Sequence[tuple[str, str, float]],
    methods: tuple[str, ...] = (),
    **facts: Any,
) -> str:
    """Fill in a card with what is said of every trained model: how it was trained, on which data, under which terms.

    Args:
        license: A licence identifier of the Hub; by default that of the training data.
        task: A pipeline tag of the Hub.
        tested_on: The data set whose held-out cells the results are of.
        results: What the Hub shows of them: the name of each metric, its label and its value.
        methods: Keys of `METHODS`, to cite.
        **facts: Everything else that the template names.
    """
    record = read_record(folder) or {}
    data = record.get("data", {})
    origin = ORIGINS.get(data.get("source"))
    terms = {"license": license} if license else data.get("license", {})
    cited = ["\n".join(f"- {METHODS[name]}" for name in methods), origin.citation if origin else ""]
    name = repo_id.rpartition("/")[2]
    shown = [
        EvalResult(
            task_type=task,
            dataset_type=tested_on if is_repo_id(tested_on) else tested_on.lower().replace(" ", "-"),
            dataset_name=tested_on,
            dataset_split="test",
            metric_type=metric,
            metric_name=label,
            metric_value=value,
        )
        for metric, label, value in results
    ]
    header = ModelCardData(
        **terms,
        library_name="diffusers",
        pipeline_tag=task,
        tags=[*TAGS],
        base_model=record.get("base_model"),
        datasets=[data["name"]] if data.get("is_on_hub") else None,
        model_name=name if shown else None,
        eval_results=shown or None,
    )
    return render_card(
        template,
        metadata=header.to_yaml(),
        name=name,
        repo_id=repo_id,
        training=_stages(record),
        log=_last_step(folder),
        terms=_terms(terms, None if license else origin),
        citation="\n\n".join(text for text in cited if text) or "Name CellFluxRL and its version.",
        **facts,
    )


def data_name(name: str | None) -> str:
    """What a card calls the data set that was given by that name."""
    return {"simulated": "simulated cells", "crops": "crops of BBBC021", None: "cells"}.get(name) or _public(name)


def parameter_count(folder: Path) -> str:
    """The number of weights, in thousands or millions; of one variant, should there be several."""
    paths = sorted(folder.glob(f"{WEIGHTS}.safetensors")) or sorted(folder.glob(f"{WEIGHTS}-*.safetensors"))
    paths = paths or sorted(folder.glob("*.safetensors"))[:1]
    count = 0
    for path in paths:
        with safe_open(path, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _stages(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The trainings that led to the weights, the first one first."""
    if not record:
        return []
    settings = {name: _public(value) for name, value in record["settings"].items() if name not in PRIVATE}
    stage = {
        "what": STAGES[record["script"]],
        "version": record["cellfluxrl"],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "data": _describe_data(record["data"]),
        "moas": record["data"]["moas"],
    }
    earlier = _stages(record.get("base"))
    if earlier and earlier[-1]["data"] == stage["data"]:
        stage |= {"data": "the same.", "moas": []}
    return [*earlier, stage]


def _public(value: Any) -> Any:
    """A setting without the folders of the machine that it was made on."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _describe_data(data: Mapping[str, Any]) -> str:
    counts = [
        f"{data['cells'][split]:,} cells of {len(plates)} {'plate' if len(plates) == 1 else 'plates'} ({split})"
        for split, plates in data["plates"].items()
    ]
    return f"{data_name(data['name'])}; {', '.join(counts)}; {data['compounds']} compounds."


def _terms(license: Mapping[str, str], origin: Origin | None) -> str:
    if origin is not None:
        return (
            f"{origin.terms} These are the terms of the images that it was trained on; they hold for the weights too."
        )
    if license:
        link = f" ({license['license_link']})" if license.get("license_link") else ""
        return f"{license.get('license_name') or license['license']}{link}."
    return (
        "No licence was given when this was published. The images that it was trained on may have their terms, "
        "which hold for what is derived from them."
    )


def _last_step(folder: Path) -> dict[str, Any] | None:
    """The last whole line of `log.jsonl` with a loss."""
    path = folder / LOG_NAME
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [row for row in rows if "loss" in row]
    if not rows:
        return None
    shown = [name for name in ("loss", "reward/combined", "distance_to_base") if isinstance(rows[-1].get(name), float)]
    return {"step": rows[-1]["step"], "numbers": ", ".join(f"`{name}` {rows[-1][name]:.4g}" for name in shown)}
