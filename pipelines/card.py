"""The card of a pipeline, filled in from what is in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellfluxrl.checkpoints import weights_hash
from cellfluxrl.data.records import read_record
from cellfluxrl.files import read_json
from cellfluxrl.hub.download import PIPELINE_INDEX
from cellfluxrl.hub.push import RESULTS_NAME, find_picture
from cellfluxrl.models.card import data_name, model_card, parameter_count
from cellfluxrl.models.unet import CellFluxUNet2DModel

RESULTS_SCHEMA = ("cellfluxrl/evaluation", 1)


def pipeline_card(folder: Path, repo_id: str, license: str | None = None) -> str:
    """Fill in `model_cards/base.md`, or `rl.md` for a `CellFluxRLPipeline`, from the folder of a pipeline.

    It reports `training.json` and `log.jsonl` of the training scripts, `results.json` of `cellfluxrl evaluate` and a
    picture, `samples.png` or the last of `samples/`, as far as they are there.

    Raises:
        ValueError: As [`read_evaluation`] says.
    """
    class_name = read_json(folder / PIPELINE_INDEX)["_class_name"]
    is_rl = (class_name[1] if isinstance(class_name, list) else class_name) == "CellFluxRLPipeline"
    unet = read_json(folder / "unet/config.json")
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    encoder = read_json(folder / "encoder/config.json")
    compounds = encoder.get("compounds") or {}
    names = sorted(set(compounds) - {"DMSO"})
    suite = folder / "rewards" / "config.json"
    evaluation = read_evaluation(folder)
    return model_card(
        "rl.md" if is_rl else "base.md",
        folder,
        repo_id,
        license,
        task="image-to-image",
        tested_on=evaluation["dataset"] if evaluation else "",
        results=_shown_by_the_hub(evaluation["rows"]) if evaluation else [],
        methods=("CellFlux", "DiffusionNFT") if is_rl else ("CellFlux",),
        image=f"Images of {unet['sample_size']} x {unet['sample_size']} pixels and {unet['in_channels']} channels",
        parameters=parameter_count(folder / "unet"),
        channels=unet["channel_names"],
        scheduler=scheduler,
        compounds=compounds,
        example="taxol" if "taxol" in compounds or not names else names[0],
        moas={entry.get("moa") for entry in compounds.values()} - {None, "", "DMSO"},
        dose=", concentration=1.0" if encoder.get("log_dose") else "",
        guided=unet.get("condition_dim") is not None and unet.get("trained_unconditionally", True),
        rewards=read_json(suite)["reward_weights"] if suite.is_file() else None,
        post_trained=(read_record(folder) or {}).get("script") == "rl",
        picture=find_picture(folder),
        evaluation=evaluation,
    )


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """What `results.json` says of the weights beside it, or `None` where there is no such file.

    Raises:
        ValueError: If it is of other weights, or of another version of the file.
    """
    path = folder / RESULTS_NAME
    if not path.is_file():
        return None
    results = read_json(path)
    schema = (results.get("schema"), results.get("schema_version"))
    if schema != RESULTS_SCHEMA:
        raise ValueError(f"{path} must be a results.json of `cellfluxrl evaluate`, version 1; its schema is {schema}")
    settings = results["settings"]
    weights = weights_hash(CellFluxUNet2DModel.from_pretrained(folder / "unet", use_safetensors=True))
    matching = [model for model in results["models"] if settings.get(f"weights of {model}") == weights]
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
        "dataset": data_name(settings["dataset"]),
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "rows": [
            {
                **column,
                "name": name,
                "value": rows[model][name]["value"],
                "shown": _shown(rows[model][name]),
                "control": _shown(rows["copy of control"].get(name)),
                "real": _shown(rows["real treated"].get(name)),
            }
            for name, column in results["columns"].items()
            if name in rows[model]
        ],
        "claims": [claim for claim in results["claims"] if claim["model"] == model],
        "notes": results["notes"],
    }


def _shown(interval: Mapping[str, float | None] | None) -> str:
    if interval is None or interval["value"] is None:
        return "–"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['value']:.3g}"
    return f"{interval['value']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"


def _shown_by_the_hub(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """What was never optimised, and what was, in one number."""
    shown = [row for row in rows if row["value"] is not None and (not row["optimised"] or row["name"] == "combined")]
    kinds = {True: "optimised", False: "held out"}
    return [(r["name"], f"{r['name']} ({kinds[r['optimised']]})", float(f"{r['value']:.4g}")) for r in shown]
