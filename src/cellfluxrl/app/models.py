"""The pipelines that the app generates with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cellfluxrl.assets import SHIPPED_BASE
from cellfluxrl.devices import choose_device
from cellfluxrl.errors import check_found
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline

DEMO_PIPELINE = Path("runs/demo/pipeline")


@dataclass(frozen=True)
class Models:
    """What the app generates with.

    Args:
        pipe: The pipeline; it may have no rewards.
        pipe_name: Its folder, or its name on the Hub.
        base: What it was post-trained from, with the rewards of `pipe`, so that both choose and are scored alike.
        base_name: Its folder or name.
    """

    pipe: CellFluxRLPipeline
    pipe_name: str
    base: CellFluxRLPipeline | None = None
    base_name: str | None = None

    @property
    def rows(self) -> dict[str, CellFluxRLPipeline]:
        """The pipelines by the title of their row of pictures, the base first."""
        if self.base is None:
            return {"Generated": self.pipe}
        return {"Base": self.base, "After RL": self.pipe}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the rewards were fitted on."""
        fitted = self.pipe.rewards.config.image_size if self.pipe.rewards is not None else None
        return tuple(fitted) if fitted else None

    @property
    def scored_moas(self) -> list[str]:
        """The mechanisms of which the rewards know real cells."""
        suite = self.pipe.rewards
        if suite is None:
            return []
        return [moa for moa, count in zip(suite.moas, suite.count.tolist(), strict=True) if count]


def load_models(pipeline: str | None = None, base: str | None = None, cpu: bool = False) -> Models:
    """Load what the app generates with.

    Args:
        pipeline: Folder, or `"org/name"` on the Hub. By default the demo's, `runs/demo/pipeline`, or where there is
            none the base that ships with the package.
        base: Likewise; by default the one that the demo's pipeline was post-trained from.
        cpu: Stay on the CPU even where a GPU is found.

    Raises:
        ValueError: If there is no such pipeline, or the base is not for the same images and compounds.
    """
    if pipeline is None:
        pipeline = str(DEMO_PIPELINE if DEMO_PIPELINE.is_dir() else SHIPPED_BASE)
    base = base or find_base(pipeline)
    device = choose_device(cpu)
    pipe = _load(pipeline).to(device)
    if pipe.unet.config.condition_dim is None:
        raise ValueError(f"the network of {pipeline!r} is unconditional: there is no compound to choose")
    if base is None:
        return Models(pipe, pipeline)
    base_pipe = _load(base).to(device)
    _check_base(base_pipe, base, pipe)
    base_pipe.register_modules(rewards=pipe.rewards)
    return Models(pipe, pipeline, base_pipe, base)


def find_base(pipeline: str) -> str | None:
    """The base of a pipeline that `cellfluxrl demo` has made, or `None` for any other."""
    run = Path(pipeline).parent
    if not (Path(pipeline) / "model_index.json").is_file():
        return None
    if (run / "base" / "model_index.json").is_file():
        return str(run / "base")
    settings = run / "settings.json"
    if settings.is_file() and json.loads(settings.read_text()).get("dataset_name") == "simulated":
        return str(SHIPPED_BASE)
    return None


def _load(name: str) -> CellFluxRLPipeline:
    check_found("pipeline", name)
    has_rewards = not Path(name).is_dir() or "rewards" in (Path(name) / "model_index.json").read_text()
    pipe = CellFluxRLPipeline.from_pretrained(name, **({} if has_rewards else {"rewards": None}))
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_base(base: CellFluxRLPipeline, name: str, pipe: CellFluxRLPipeline) -> None:
    for what in ("channel_names", "condition_dim"):
        found, wanted = base.unet.config[what], pipe.unet.config[what]
        if found != wanted:
            raise ValueError(f"the base {name!r} has {what} {found}, the pipeline {wanted}: they cannot be compared")
    for what in ("radius", "num_bits", "log_dose"):
        found, wanted = base.encoder.config[what], pipe.encoder.config[what]
        if found != wanted:
            raise ValueError(f"the base {name!r} encodes compounds with {what}={found}, the pipeline with {wanted}")
