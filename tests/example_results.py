"""A `results.json` of `cellfluxrl evaluate`, without the hours that it takes."""

from typing import Any

from cellfluxrl.checkpoints import weights_hash


def example_results(unet: Any, other: Any = None) -> dict[str, Any]:
    """Of the network `unet`, compared with `other`; the numbers are made up."""

    def value(number: float, half_width: float | None = 0.1) -> dict[str, float | None]:
        low, high = (None, None) if half_width is None else (number - half_width, number + half_width)
        return {"value": number, "low": low, "high": high, "error": None}

    models = {"pipeline": unet} | ({"base": other} if other is not None else {})
    columns = {
        "moa": {"note": "reward 'moa' of the suite", "better": "as real", "optimised": True},
        "combined": {"note": "weighted mean of the rewards", "better": "as real", "optimised": True},
        "kernel": {"note": "kernel distance to real cells", "better": "lower", "optimised": False},
        "frechet_infinity": {"note": "extrapolated Frechet distance", "better": "lower", "optimised": False},
        "judge": {"note": "probability by a second classifier", "better": "as real", "optimised": False},
    }
    numbers = {"moa": 0.5, "combined": 0.75, "kernel": 17.375, "frechet_infinity": 84.0}

    def row(shift: float) -> dict[str, dict]:
        own = {name: value(number + shift, None if "infinity" in name else 0.1) for name, number in numbers.items()}
        return own | {"judge": value(None, None)}

    claim = {"model": "pipeline", "against": "", "column": "kernel", "optimised": False, "null": 0.0}
    return {
        "schema": "cellfluxrl/evaluation",
        "schema_version": 1,
        "settings": {
            "pipeline": "/home/somebody/runs/rl",
            "dataset": "/home/somebody/my_cells",
            "cells": 240,
            "num_inference_steps": 10,
            "guidance_scale": 1.2,
            **{f"weights of {name}": weights_hash(network) for name, network in models.items()},
        },
        "models": list(models),
        "columns": columns,
        "rows": {
            **{name: row(-i) for i, name in enumerate(models)},
            "copy of control": row(1),
            "real treated": row(2),
        },
        "claims": [
            {**claim, "text": "The cells are closer to real ones than the controls are.", "verdict": "holds"},
            {**claim, "text": "The cells are as diverse as real cells.", "verdict": "fails"},
            {**claim, "model": "base", "text": "The base is closer to real cells.", "verdict": "holds"},
        ],
        "notes": ["2 compounds have fewer than 5 cells."],
    }
