"""What the app computes: pipelines, controls and compounds checked, and treated cells generated and measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.images import as_model_images
from cellfluxrl.data.simulated import CHANNELS, simulate_cells
from cellfluxrl.models.compound_encoder import morgan_counts
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
from cellfluxrl.pipelines.controls import open_controls
from cellfluxrl.pipelines.treatments import Treatment, resolve_treatments
from cellfluxrl.rewards.reading import images_of_files
from cellfluxrl.rewards.segmentation import NUCLEUS_CHANNEL, Masks, make_segmenter
from cellfluxrl.rewards.suite import REAL_RANGE, Measured
from cellfluxrl.seeding import seeded_generator

DEMO_PIPELINE = Path("runs/demo/pipeline")
SHIPPED_BASE = files("cellfluxrl.assets") / "simulated_base"
EXAMPLES = 8
EXAMPLE_PLATE = 3  # of the demo's plates, one that it does not train on
MAX_IMAGES, MAX_CANDIDATES, MAX_STEPS = 8, 16, 50  # of one request
PASTED_NAME = "pasted structure"
MAX_SMILES = 500  # characters
MAX_UNPACKED = 2**26  # bytes of an uploaded .npz
MAX_SECONDS = 600.0  # of one request
BATCH_SIZE = 16
TIMES = tuple(k / 20 for k in range(21))  # of the trajectory


# --------------------------------------------------------------------------------------------------------------------
# Pipelines
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """
    What the app generates with.

    Args:
        pipe ([`CellFluxRLPipeline`]): The pipeline; it may have no rewards.
        pipe_name (`str`): Its folder, or its name on the Hub.
        base ([`CellFluxRLPipeline`], *optional*): What it was post-trained from, with the rewards of `pipe`, so that
            both choose and are scored alike.
        base_name (`str`, *optional*): Its folder or name.
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
    """
    Load what the app generates with.

    Args:
        pipeline (`str`, *optional*): Folder, or `"org/name"` on the Hub. By default the demo's, `runs/demo/pipeline`,
            or where there is none the base that ships with the package.
        base (`str`, *optional*): Likewise; by default the one that the demo's pipeline was post-trained from.
        cpu (`bool`, defaults to `False`): Stay on the CPU even where a GPU is found.

    Raises:
        ValueError: If there is no such pipeline, or the base is not for the same images and compounds.
    """
    if pipeline is None:
        pipeline = str(DEMO_PIPELINE if DEMO_PIPELINE.is_dir() else SHIPPED_BASE)
    base = base or find_base(pipeline)
    device = "cpu" if cpu or not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    pipe = _load(pipeline).to(device)
    if pipe.unet.config.condition_dim is None:
        raise ValueError(f"the network of {pipeline!r} is unconditional: there is no compound to choose")
    if base is None:
        return Models(pipe, pipeline)
    own = _load(base).to(device)
    _check_base(own, base, pipe)
    own.register_modules(rewards=pipe.rewards)
    return Models(pipe, pipeline, own, base)


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
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"there is no pipeline {name!r}: give its folder, or org/name on the Hub")
    has_rewards = not Path(name).is_dir() or "rewards" in (Path(name) / "model_index.json").read_text()
    pipe = CellFluxRLPipeline.from_pretrained(name, **({} if has_rewards else {"rewards": None}))
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_base(base: CellFluxRLPipeline, name: str, pipe: CellFluxRLPipeline) -> None:
    for what in ("channel_names", "condition_dim"):
        own, other = base.unet.config[what], pipe.unet.config[what]
        if own != other:
            raise ValueError(f"the base {name!r} has {what} {own}, the pipeline {other}: they cannot be compared")
    for what in ("radius", "num_bits", "log_dose"):
        own, other = base.encoder.config[what], pipe.encoder.config[what]
        if own != other:
            raise ValueError(f"the base {name!r} encodes compounds with {what}={own}, the pipeline with {other}")


# --------------------------------------------------------------------------------------------------------------------
# Controls
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlChoices:
    """
    Control cells of which one is chosen.

    Args:
        images (`numpy.ndarray` of shape `(N, C, H, W)`): float32 in [0, 1], channels in the network's order.
        names (`list[str]`): What each is called.
    """

    images: np.ndarray
    names: list[str]


def example_controls(models: Models, controls: str | None = None) -> ControlChoices | None:
    """
    Controls to start with: of a folder or data set, or simulated ones for a network of their channels.

    Args:
        models ([`Models`]): Whose channels and image size.
        controls (`str`, *optional*): As [`open_controls`] takes them.

    Returns:
        [`ControlChoices`], or `None` where no control can be simulated.

    Raises:
        ValueError: If none of `controls` can be used.
    """
    names, size = models.pipe.channel_names, models.image_size
    if controls is not None:
        opened = open_controls(controls, names, max_controls=EXAMPLES, image_size=size)
        images = np.stack([opened.read(row) for row in range(len(opened.rows))])
        return ControlChoices(images, [str(name) for name in opened.rows["control"]])
    side = size[0] if size else models.pipe.unet.config.sample_size
    if sorted(names) != sorted(CHANNELS) or (size and size[0] != size[1]) or not isinstance(side, int):
        return None
    cells = simulate_cells([CONTROL] * EXAMPLES, plate=EXAMPLE_PLATE, image_size=side, seed=2).image
    images = cells[:, [CHANNELS.index(name) for name in names]].astype(np.float32) / 255
    return ControlChoices(images, [f"simulated cell {k + 1}" for k in range(EXAMPLES)])


def read_controls(path: str | Path, models: Models, channels: str = "") -> ControlChoices:
    """
    Read and check the controls of an uploaded file.

    Args:
        path (`str` or `Path`): A PNG, TIFF, `.npy` or `.npz`, as [`images_of_files`] reads them.
        models ([`Models`]): Whose channels and image size are needed.
        channels (`str`, defaults to `""`): The channels of the file, in order, with commas between them, where they
            are others than the network's.

    Returns:
        [`ControlChoices`]: All images of the file, `EXAMPLES` at most.

    Raises:
        ValueError: If the file cannot be used; says why, for somebody who has never seen the code.
    """
    path = Path(path)
    needed = models.pipe.channel_names
    own = tuple(name.strip() for name in channels.split(",") if name.strip()) or needed
    for name in needed:
        if name not in own:
            raise ValueError(
                f"this pipeline needs the channel {name!r}, and the file's were given as {', '.join(own)}"
            )
    if len(set(own)) < len(own):
        raise ValueError(f"a channel is named twice: {', '.join(own)}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path.name}: the file is empty")
    try:
        opened = images_of_files(path, own, moa=CONTROL, max_bytes=MAX_UNPACKED)
        images = [opened.read(row) for row in range(min(len(opened.rows), EXAMPLES))]
    except (ValueError, OSError, EOFError) as error:
        said = str(error).partition("files; the first: ")[2] or str(error)  # of one file there is no other
        said = said.replace(f"{path.parent}/", "")  # a folder of the server, which means nothing to its visitor
        raise ValueError(said if path.name in said else f"{path.name}: {said}") from error
    order = [own.index(name) for name in needed]
    images = [(np.float32(image) / 255 if image.dtype == np.uint8 else np.float32(image))[order] for image in images]
    for image in images:
        _check_control(image, path.name, models)
    return ControlChoices(np.stack(images), opened.rows["source"].tolist()[: len(images)])


def _check_control(image: np.ndarray, name: str, models: Models) -> None:
    height, width = image.shape[1:]
    if models.image_size and (height, width) != models.image_size:
        expected = " x ".join(map(str, models.image_size))
        raise ValueError(
            f"{name}: the image is {height} x {width} pixels, and this pipeline is for crops of {expected} "
            "around one cell, at the magnification that it was trained on. `cellfluxrl data build` cuts such crops."
        )
    config = models.pipe.unet.config
    factor = config.patch_size * 2 ** (len(config.channel_mult) - 1)
    if height % factor or width % factor:
        raise ValueError(f"{name}: height and width must be multiples of {factor}, the image is {height} x {width}")
    if image.max() == image.min():
        raise ValueError(f"{name}: every pixel has the same value: there is no cell in the image")


# --------------------------------------------------------------------------------------------------------------------
# Compounds
# --------------------------------------------------------------------------------------------------------------------


def compound_choices(models: Models) -> list[tuple[str, str]]:
    """What is shown of each known compound and its name, those of one mechanism together."""
    table = models.pipe.encoder.config.compounds
    moas = {name: entry.get("moa") or "mechanism not known" for name, entry in table.items()}
    return [(f"{name} ({moas[name]})", name) for name in sorted(table, key=lambda n: (moas[n], n.lower()))]


def check_smiles(smiles: str, models: Models) -> str | None:
    """
    See that a structure can be read.

    Returns:
        The name of the known compound that it is, or `None`.

    Raises:
        ValueError: If it cannot be read; says why, and points at the character where it can.
    """
    if not smiles.strip():
        raise ValueError("there is no SMILES yet: paste one, such as CC(=O)Oc1ccccc1C(=O)O for aspirin")
    if len(smiles) > MAX_SMILES:
        raise ValueError(f"the SMILES has {len(smiles):,} characters; at most {MAX_SMILES} are taken")
    morgan_counts(smiles)
    from rdkit import Chem

    canonical = Chem.CanonSmiles(smiles.strip())
    for name, entry in models.pipe.encoder.config.compounds.items():
        if canonical == Chem.CanonSmiles(entry["smiles"]):
            return name
    return None


def moa_of_smiles(smiles: str, models: Models) -> str | None:
    """The mechanism of the known compound that a structure is, or `None`."""
    try:
        known = check_smiles(smiles, models)
    except ValueError:
        return None
    return models.pipe.encoder.moa(known) if known else None


# --------------------------------------------------------------------------------------------------------------------
# Generation
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How many images are generated, and how; as in [`CellFluxRLPipeline.__call__`]."""

    num_images: int = 4
    best_of_n: int = 4
    selection: str = "best"
    num_inference_steps: int = 10
    guidance_scale: float = 1.2
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"num_images": MAX_IMAGES, "best_of_n": MAX_CANDIDATES, "num_inference_steps": MAX_STEPS}
        for name, limit in limits.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be 1 to {limit}, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"the seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Row:
    """
    Cells that one pipeline has generated, or the control.

    Args:
        images (`torch.Tensor` of shape `(N, C, H, W)`): In [-1, 1].
        masks ([`Masks`], *optional*): Their nuclei and cells, where there is something to find them with.
        trajectory (`torch.Tensor` of shape `(T, N, C, H, W)`, *optional*): At `TIMES`.
        measured ([`Measured`], *optional*): What the rewards see in them.
        rewards (`dict[str, torch.Tensor]`, *optional*): Each reward and `"combined"`, of shape `(N,)`.
        within_range (`torch.Tensor` of shape `(N,)`, *optional*): Whether each is within the range of real cells.
        selected (`torch.Tensor` of shape `(N,)`, *optional*): Which of its candidates each is.
    """

    images: torch.Tensor
    masks: Masks | None = None
    trajectory: torch.Tensor | None = None
    measured: Measured | None = None
    rewards: dict[str, torch.Tensor] | None = None
    within_range: torch.Tensor | None = None
    selected: torch.Tensor | None = None


@dataclass(frozen=True)
class Result:
    """
    Everything about one generation.

    Args:
        control ([`Row`]): The one control.
        rows (`dict[str, Row]`): What was generated of it, by the titles of [`Models.rows`].
        treatment ([`Treatment`]): What the cells are treated with, with all that is known of it.
        sampling ([`Sampling`]): How many images were generated, and how.
        control_name (`str`): What the control is called.
    """

    control: Row
    rows: dict[str, Row]
    treatment: Treatment
    sampling: Sampling
    control_name: str

    @property
    def moa(self) -> str | None:
        """The mechanism that the cells are compared with; `None` if they are not scored."""
        return self.treatment.moa if self.treatment.is_scored else None


def generate(
    models: Models,
    control: np.ndarray,
    control_name: str,
    treatment: Treatment,
    sampling: Sampling,
    on_progress: Callable[[float], None] = lambda share: None,
    max_seconds: float = math.inf,
) -> Result:
    """
    Generate treated cells with every pipeline, from the same noise, and measure them.

    Args:
        models ([`Models`]): The pipelines.
        control (`numpy.ndarray` of shape `(C, H, W)`): In [0, 1].
        control_name (`str`): What it is called.
        treatment ([`Treatment`]): A compound by name, or `PASTED_NAME` with a `smiles` and, if wanted, a `moa`.
        sampling ([`Sampling`]): How many images, and how.
        on_progress (`Callable[[float], None]`, *optional*): Called with the share of the work that is done.
        max_seconds (`float`): Time for it, which is looked at after each step of the solver.

    Raises:
        ValueError: For a compound, dose or choice that the pipeline cannot serve, or if it takes longer than
            `max_seconds`; says what to do.
    """
    deadline = time.monotonic() + max_seconds
    treatment, condition = _resolve(models, treatment)
    moa = treatment.moa if treatment.is_scored else None
    if sampling.best_of_n > 1 and moa is None:
        raise ValueError(
            "choosing among several candidates compares them with real cells, and there are none to compare with: "
            + ("set the candidates to 1, or choose a mechanism" if models.scored_moas else "set the candidates to 1")
        )
    batches = math.ceil(sampling.num_images * sampling.best_of_n / BATCH_SIZE)
    rows: dict[str, Row] = {}
    for title, pipe in models.rows.items():
        pipe.scheduler.set_timesteps(sampling.num_inference_steps)
        evaluations = batches * len(pipe.scheduler.timesteps)
        done = 0

        def count(_pipe: Any, _i: int, _t: torch.Tensor, _tensors: Mapping, evaluations: int = evaluations) -> dict:
            nonlocal done
            done += 1
            if time.monotonic() > deadline:
                raise ValueError(
                    f"this takes longer than the {max_seconds:g} seconds that one request may take: ask for fewer "
                    "images, candidates or steps"
                )
            on_progress((len(rows) + min(0.98, done / evaluations)) / len(models.rows))
            return {}

        rows[title] = _generate_row(pipe, control, condition, moa, sampling, count)
    images = as_model_images(control[None], models.pipe.channel_names)
    measured = None if moa is None else models.pipe.rewards.measure(images, [moa])
    return Result(
        control=Row(images, masks=_segment(models.pipe, images), measured=measured),
        rows=rows,
        treatment=treatment,
        sampling=sampling,
        control_name=control_name,
    )


def _generate_row(
    pipe: CellFluxRLPipeline,
    control: np.ndarray,
    condition: torch.Tensor,
    moa: str | None,
    sampling: Sampling,
    on_step: Callable[..., dict],
) -> Row:
    total = sampling.num_images * sampling.best_of_n
    output = pipe(
        control,
        compound_embeds=condition,
        moa=moa,
        num_images_per_control=sampling.num_images,
        best_of_n=sampling.best_of_n,
        selection=sampling.selection,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        generator=[seeded_generator(sampling.seed, "app", k) for k in range(total)],
        output_type="pt",
        trajectory_times=TIMES,
        callback_on_step_end=on_step,
        batch_size=BATCH_SIZE,
    )
    images = output.images.cpu()
    trajectory = output.trajectory.cpu().clamp(-1, 1)
    masks = _segment(pipe, images)
    if moa is None:
        return Row(images, masks, trajectory)
    measured = pipe.rewards.measure(images, [moa] * len(images))
    rewards = {name: values.cpu() for name, values in output.rewards.items()}
    return Row(images, masks, trajectory, measured, rewards, output.within_range.cpu(), output.selected)


def _segment(pipe: CellFluxRLPipeline, images: torch.Tensor) -> Masks | None:
    if pipe.rewards is not None:
        return pipe.rewards.segment(images)
    if NUCLEUS_CHANNEL not in pipe.channel_names or len(pipe.channel_names) < 2:
        return None
    return make_segmenter("watershed", channel_names=pipe.channel_names)(((images + 1) / 2).numpy())


def _resolve(models: Models, treatment: Treatment) -> tuple[Treatment, torch.Tensor]:
    """The treatment with all that is known of it, and its condition of shape `(1, D)`."""
    if treatment.smiles is not None:
        check_smiles(treatment.smiles, models)
        treatment = replace(treatment, smiles=treatment.smiles.strip())
    if models.pipe.is_conditioned_on_dose and treatment.concentration is None:
        raise ValueError("this pipeline was trained with doses: give the concentration in µM")
    (resolved,), condition = resolve_treatments([treatment], models.pipe)
    return resolved, condition


# --------------------------------------------------------------------------------------------------------------------
# Comparison with real cells
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """
    One statistic of real cells of a mechanism, and of the generated ones.

    Args:
        name (`str`): As in [`RewardSuite.statistic_names`].
        real (`numpy.ndarray` of shape `(400,)`): Of real cells.
        low, high (`float`): What 95 % of them lie between.
        values (`dict[str, numpy.ndarray]`): Of the cells of each row, and of `"Control"`; NaN where there is nothing
            to measure.
    """

    name: str
    real: np.ndarray
    low: float
    high: float
    values: dict[str, np.ndarray]


def compare_statistics(models: Models, result: Result) -> list[Statistic]:
    """The statistics of a scored result beside those of real cells of its mechanism, in the units of measurement."""
    suite = models.pipe.rewards
    k = suite.moas.index(result.moa)
    real = (suite.mean[k] + suite.std[k] * suite.reference[k]).cpu().numpy()
    measured = {"Control": result.control.measured, **{title: row.measured for title, row in result.rows.items()}}
    return [
        Statistic(
            name,
            real[:, column],
            *np.quantile(real[:, column], REAL_RANGE).tolist(),
            {title: own.values[:, column].cpu().numpy() for title, own in measured.items()},
        )
        for column, name in enumerate(suite.statistic_names)
    ]


def compare_rewards(models: Models, result: Result) -> dict[str, dict[str, float]]:
    """Of a scored result: by reward and `"combined"`, the mean of each row, and of `"Real cells"`."""
    real = models.pipe.rewards.real_means([result.moa])
    return {
        name: {**{title: float(row.rewards[name].mean()) for title, row in result.rows.items()}, "Real cells": mean}
        for name, mean in real.items()
    }


def above_real(comparison: Mapping[str, Mapping[str, float]], title: str) -> Sequence[str]:
    """The rewards in which a row is above real cells, by more than rounding shows."""
    return [name for name, means in comparison.items() if round(means[title], 2) > round(means["Real cells"], 2)]
