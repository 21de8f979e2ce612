"""The files by which diffusers finds the classes of this package from a folder or a repository of the Hub alone.

`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` looks for a component's class in a file of the
component's folder. Each of ours is one line that imports the class from the installed package, so that nothing is
ever run from a copy of the code, and what is loaded is saved again as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellfluxrl.files import contained_path, read_json, write_whole
from cellfluxrl.hub.download import PIPELINE_INDEX

COMPONENTS = {
    "CellFluxFlowMatchScheduler": "cellfluxrl.schedulers.flow_match",
    "CellFluxUNet2DModel": "cellfluxrl.models.unet",
    "CompoundEncoder": "cellfluxrl.models.compound_encoder",
    "RewardSuite": "cellfluxrl.rewards.suite",
}
PIPELINES = {
    "CellFluxPipeline": "cellfluxrl.pipelines.cellflux",
    "CellFluxRLPipeline": "cellfluxrl.pipelines.cellflux_rl",
}
# diffusers copies the files of all components into one folder: each needs another name.
PIPELINE_FILE = "cellfluxrl_pipeline"


def _component_file(class_name: str) -> str:
    return f"cellfluxrl_{COMPONENTS[class_name].rpartition('.')[2]}"


def _import_line(module: str, class_name: str) -> str:
    return f'"""Needs the package cellfluxrl."""\n\nfrom {module} import {class_name}  # noqa: F401\n'


def with_shims(index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Let a pipeline's `model_index.json` point to files beside the components; return it, and the files by name.

    Example:
        >>> index = {"_class_name": "CellFluxPipeline", "unet": ["cellfluxrl.models.unet", "CellFluxUNet2DModel"]}
        >>> index, files = with_shims(index)
        >>> index["unet"], sorted(files)
        (['cellfluxrl_unet', 'CellFluxUNet2DModel'], ['cellfluxrl_pipeline.py', 'unet/cellfluxrl_unet.py'])
    """
    index = with_modules(index)
    index.pop("_name_or_path", None)  # where it was once loaded from
    texts = {}
    for name, value in index.items():
        if name == "_class_name" and value in PIPELINES:
            texts[f"{PIPELINE_FILE}.py"] = _import_line(PIPELINES[value], value)
            index[name] = [PIPELINE_FILE, value]
        elif _is_component(name, value) and value[1] in COMPONENTS and value[0] == COMPONENTS[value[1]]:
            file = _component_file(value[1])
            texts[f"{name}/{file}.py"] = _import_line(*value)
            index[name] = [file, value[1]]
    return index, texts


def with_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """Let a pipeline's `model_index.json` point to the installed modules, so that no file of a repository is run.

    Example:
        >>> with_modules({"_class_name": ["cellfluxrl_pipeline", "CellFluxPipeline"]})
        {'_class_name': 'CellFluxPipeline'}
    """
    index = dict(index)
    for name, value in index.items():
        if name == "_class_name" and isinstance(value, (list, tuple)) and value[1] in PIPELINES:
            index[name] = value[1]
        elif _is_component(name, value) and value[1] in COMPONENTS and value[0] == _component_file(value[1]):
            index[name] = [COMPONENTS[value[1]], value[1]]
    return index


def _is_component(name: str, value: Any) -> bool:
    return not name.startswith("_") and isinstance(value, (list, tuple)) and len(value) == 2


def shims_of(folder: Path) -> dict[str, str]:
    """The files by which diffusers alone loads a saved pipeline, and at last its index, by name."""
    index, texts = with_shims(read_json(folder / PIPELINE_INDEX))
    return {**texts, PIPELINE_INDEX: json.dumps(index, indent=2) + "\n"}


def write_shims(folder: str | Path) -> None:
    """Make a saved pipeline one that `DiffusionPipeline.from_pretrained` loads with `trust_remote_code=True`."""
    folder = Path(folder)
    for name, text in shims_of(folder).items():
        path = contained_path(folder, *name.split("/"))
        write_whole(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
