"""Model cards, filled in from what is in a folder: configurations, the record of the training, measured results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FunctionLoader, StrictUndefined
from safetensors import safe_open

from cellfluxrl.hub.access import is_repo_id
from cellfluxrl.hub.download import PIPELINE_INDEX, WEIGHTS
from cellfluxrl.hub.records import read_record

LOG_NAME, RESULTS_NAME, METRICS_NAME = "log.jsonl", "results.json", "metrics.json"
RESULTS_SCHEMA = ("cellfluxrl/evaluation", 1)
TAGS = ["biology", "microscopy", "single-cell", "drug-discovery", "cellfluxrl"]
STAGES = {
    "pretrain": "Pretraining by flow matching from control to treated cells",
    "rl": "Post-training with biological rewards",
    "moa": "Training on labelled cells",
}
# Of the settings of a script, what says something about this machine or where things go, and nothing of the model.
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
NO_CITATION = "Name CellFluxRL and its version."


def pipeline_card(folder: str | Path, repo_id: str, license: str | None = None) -> str:
    """Fill in `model_cards/base.md`, or `rl.md` for a `CellFluxRLPipeline`.

    Args:
        folder: A saved pipeline. If they are there, `training.json` and `log.jsonl` of the training scripts,
            `results.json` of `cellfluxrl evaluate` and a picture, `samples.png` or the last of `samples/`, are told of
            too.
        repo_id: Where it is published.
        license: A licence identifier of the Hub; by default that of the training data.

    Returns:
        Markdown with a YAML header that the Hub reads.

    Raises:
        ValueError: If the results are of other weights, or of another version of the file.
    """
    folder = Path(folder)
    index = _read_json(folder / PIPELINE_INDEX)
    name = index["_class_name"]
    is_rl = (name[1] if isinstance(name, list) else name) == "CellFluxRLPipeline"
    unet, scheduler, encoder = (
        _read_json(folder / path)
        for path in ("unet/config.json", "scheduler/scheduler_config.json", "encoder/config.json")
    )
    compounds = encoder.get("compounds") or {}
    record = read_record(folder)
    evaluation = read_evaluation(folder)
    results = _evaluation_results(evaluation) if evaluation else None
    return _rendered(
        "rl.md" if is_rl else "base.md",
        repo_id,
        record,
        license,
        metadata={"pipeline_tag": "image-to-image", "tags": TAGS, "eval_results": results},
        methods=("CellFlux", "DiffusionNFT") if is_rl else ("CellFlux",),
        image=f"Images of {unet['sample_size']} x {unet['sample_size']} pixels and {unet['in_channels']} channels",
        parameters=_parameter_count(folder / "unet"),
        channels=unet["channel_names"],
        scheduler=scheduler,
        compounds=compounds,
        example=_example(compounds),
        moas={entry.get("moa") for entry in compounds.values()} - {None, "", "DMSO"},
        dose=", concentration=1.0" if encoder.get("log_dose") else "",
        guided=unet.get("condition_dim") is not None and unet.get("trained_unconditionally", True),
        rewards=_reward_weights(folder),
        post_trained=(record or {}).get("script") == "rl",
        picture=find_picture(folder),
        evaluation=evaluation,
        log=_last_step(folder),
    )


def classifier_card(folder: str | Path, repo_id: str, license: str | None = None) -> str:
    """Fill in `model_cards/classifier.md`.

    Args:
        folder: A saved `MoAClassifier`. If they are there, `training.json`, `log.jsonl` and `metrics.json` of
            `cellfluxrl moa` are told of too.
        repo_id: Where it is published.
        license: A licence identifier of the Hub; by default that of the training data.

    Returns:
        Markdown with a YAML header that the Hub reads.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    record = read_record(folder)
    metrics = _read_json(folder / METRICS_NAME) if (folder / METRICS_NAME).is_file() else None
    results = None
    if metrics:
        data = _data_name((record or {}).get("data", {}).get("name"))
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=_slug(data),
                dataset_name=data,
                dataset_split="test",
                metric_type=key,
                metric_name=label,
                metric_value=round(metrics[key], 4),
            )
            for key, label in CLASSIFIER_METRICS.items()
        ]
    return _rendered(
        "classifier.md",
        repo_id,
        record,
        license,
        metadata={"pipeline_tag": "image-classification", "tags": TAGS, "eval_results": results},
        methods=(),
        image=f"It works at {config['image_size']} x {config['image_size']} pixels",
        parameters=_parameter_count(folder),
        size=config["image_size"],
        channels=config["channel_names"],
        classes=config["moas"],
        metrics=metrics,
        measured=[
            (label, f"{metrics[key]:.3f}", f"{metrics['standard_errors'][key]:.3f}")
            for key, label in CLASSIFIER_METRICS.items()
            if metrics
        ],
        log=_last_step(folder),
    )


def _rendered(
    template: str,
    repo_id: str,
    record: Mapping[str, Any] | None,
    license: str | None,
    metadata: Mapping[str, Any],
    methods: tuple[str, ...],
    **values: Any,
) -> str:
    from cellfluxrl.data.card import ORIGINS

    data = (record or {}).get("data", {})
    origin = ORIGINS.get(data.get("source"))
    own_license = {"license": license} if license else data.get("license", {})
    cited = ["\n".join(f"- {METHODS[name]}" for name in methods), origin.citation if origin else ""]
    environment = Environment(
        loader=FunctionLoader(lambda name: (files("cellfluxrl.model_cards") / name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        metadata=ModelCardData(
            **own_license,
            library_name="diffusers",
            base_model=(record or {}).get("base_model"),
            datasets=[data["name"]] if data.get("is_on_hub") else None,
            model_name=repo_id.rpartition("/")[2] if metadata["eval_results"] else None,
            **metadata,
        ).to_yaml(),
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        training=_stages(record),
        terms=_terms(own_license, origin, license is not None),
        citation="\n\n".join(text for text in cited if text) or NO_CITATION,
        **values,
    )


# --------------------------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------------------------


def _stages(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The trainings that led to the weights, the first one first."""
    if record is None:
        return []
    settings = {name: _public(value) for name, value in record["settings"].items() if name not in PRIVATE}
    own = {
        "what": STAGES[record["script"]],
        "version": record["cellfluxrl"],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "data": _describe_data(record["data"]),
        "moas": record["data"]["moas"],
    }
    earlier = _stages(record.get("base"))
    if earlier and earlier[-1]["data"] == own["data"]:
        own |= {"data": "the same.", "moas": []}
    return [*earlier, own]


def _public(value: Any) -> Any:
    """A setting without the folders of the machine that it was made on."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _describe_data(data: Mapping[str, Any]) -> str:
    counts = [
        f"{data['cells'][split]:,} cells of {len(plates)} {'plate' if len(plates) == 1 else 'plates'} ({split})"
        for split, plates in data["plates"].items()
    ]
    return f"{_data_name(data['name'])}; {', '.join(counts)}; {data['compounds']} compounds."


def _data_name(name: str | None) -> str:
    return {"simulated": "simulated cells", "crops": "crops of BBBC021", None: "cells"}.get(name) or _public(name)


def _terms(license: Mapping[str, str], origin: Any, was_given: bool) -> str:
    if origin is not None and not was_given:
        return (
            f"{origin.terms} These are the terms of the images that it was trained on; they hold for the weights too."
        )
    if license:
        link = f" ({license['license_link']})" if license.get("license_link") else ""
        return f"{license.get('license_name') or license['license']}{link}."
    return (
        "No licence was given when this was published. The images that it was trained on may have terms of their own, "
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


# --------------------------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------------------------


def read_evaluation(folder: str | Path) -> dict[str, Any] | None:
    """What `results.json` says of the weights beside it, or `None` where there is no such file.

    Raises:
        ValueError: If it is of other weights, or of another version of the file.
    """
    folder = Path(folder)
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    results = _read_json(path)
    schema = (results.get("schema"), results.get("schema_version"))
    if schema != RESULTS_SCHEMA:
        raise ValueError(f"{path} must be a results.json of `cellfluxrl evaluate`, version 1; its schema is {schema}")
    settings = results["settings"]
    own = _weights_hash(folder)
    matching = [model for model in results["models"] if settings.get(f"weights of {model}") == own]
    if not matching:
        raise ValueError(
            f"{path} is of other weights than those beside it: evaluate this pipeline, or remove the file. "
            "A card must not show the results of another model"
        )
    model = matching[0]
    rows = results["rows"]
    return {
        "model": model,
        "cells": settings["cells"],
        "dataset": _data_name(settings["dataset"]),
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "rows": [
            {
                "name": name,
                "value": rows[model][name]["value"],
                "own": _shown(rows[model][name]),
                "control": _shown(rows["copy of control"].get(name)),
                "real": _shown(rows["real treated"].get(name)),
                "better": column["better"],
                "note": column["note"],
                "optimised": column["optimised"],
            }
            for name, column in results["columns"].items()
            if name in rows[model]
        ],
        "claims": [claim for claim in results["claims"] if claim["model"] == model],
        "notes": results["notes"],
    }


def _weights_hash(folder: Path) -> str:
    from cellfluxrl.checkpoints import weights_hash
    from cellfluxrl.models.unet import CellFluxUNet2DModel

    return weights_hash(CellFluxUNet2DModel.from_pretrained(folder / "unet", use_safetensors=True))


def _shown(interval: Mapping[str, float | None] | None) -> str:
    if interval is None or interval["value"] is None:
        return "–"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['value']:.3g}"
    return f"{interval['value']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"


def _evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """For the Hub's list of results: what was never optimised, and what was, in one number."""
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=_slug(evaluation["dataset"]),
            dataset_name=evaluation["dataset"],
            dataset_split="test",
            metric_type=row["name"],
            metric_name=f"{row['name']} ({'optimised' if row['optimised'] else 'held out'})",
            metric_value=float(f"{row['value']:.4g}"),
        )
        for row in evaluation["rows"]
        if row["value"] is not None and (not row["optimised"] or row["name"] == "combined")
    ]


# --------------------------------------------------------------------------------------------------------------------
# What is in a folder
# --------------------------------------------------------------------------------------------------------------------


def find_picture(folder: str | Path) -> str | None:
    """`samples.png`, or else the last of `samples/`, relative to the folder."""
    folder = Path(folder)
    if (folder / "samples.png").is_file():
        return "samples.png"
    pictures = sorted((folder / "samples").glob("*.png"))
    return f"samples/{pictures[-1].name}" if pictures else None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _parameter_count(folder: Path) -> str:
    """The number of weights, in thousands or millions; of one variant, should there be several."""
    paths = sorted(folder.glob(f"{WEIGHTS}.safetensors")) or sorted(folder.glob(f"{WEIGHTS}-*.safetensors"))
    paths = paths or sorted(folder.glob("*.safetensors"))[:1]
    count = 0
    for path in paths:
        with safe_open(path, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _reward_weights(folder: Path) -> dict[str, float] | None:
    path = folder / "rewards" / "config.json"
    return _read_json(path)["reward_weights"] if path.is_file() else None


def _example(compounds: Mapping[str, Any]) -> str:
    names = sorted(set(compounds) - {"DMSO"})
    return "taxol" if "taxol" in compounds or not names else names[0]


def _slug(name: str) -> str:
    return name if is_repo_id(name) else name.lower().replace(" ", "-")
