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
    """A pipeline and, if there is one, the base that it was post-trained from; each with its folder or name."""

    pipe: CellFluxRLPipeline  # with rewards or without
    pipe_name: str
    base: CellFluxRLPipeline | None = None  # has the rewards of `pipe`, so that both choose and are scored alike
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
        counts = {} if suite is None else dict(zip(suite.moas, suite.count.tolist(), strict=True))
        return [moa for moa, count in counts.items() if count]


def load_models(pipeline: str | None = None, base: str | None = None, *, cpu: bool = False) -> Models:
    """Load a pipeline and its base, each a folder or `"org/name"` on the Hub.

    Args:
        pipeline: By default the demo's, `runs/demo/pipeline`, or where there is none the base in the package.
        base: By default the one that the demo's pipeline was post-trained from.
        cpu: Stay on the CPU even where a GPU is found.

    Raises:
        ValueError: If there is no such pipeline, or the base is not for the same images and compounds.
    """
    if pipeline is None:
        pipeline = str(DEMO_PIPELINE if DEMO_PIPELINE.is_dir() else SHIPPED_BASE)
    base = base or find_base(pipeline)
    device = choose_device(cpu=cpu)
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
    for component, keys in (
        ("unet", ("channel_names", "condition_dim")),
        ("encoder", ("radius", "num_bits", "log_dose")),
    ):
        for key in keys:
            found, wanted = getattr(base, component).config[key], getattr(pipe, component).config[key]
            if found != wanted:
                raise ValueError(
                    f"the {component} of the base {name!r} has {key}={found!r}, that of the pipeline {wanted!r}: "
                    "they cannot be compared"
                )
