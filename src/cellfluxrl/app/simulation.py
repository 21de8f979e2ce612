"""What the app computes: treated cells, generated, measured and compared with real ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cellfluxrl.app.inputs import check_smiles, example_controls
from cellfluxrl.app.models import Models, load_models
from cellfluxrl.data.images import as_model_images, to_unit
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
from cellfluxrl.pipelines.generation.treatments import Treatment, resolve_treatments
from cellfluxrl.rewards.context import Context
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.real_range import REAL_RANGE
from cellfluxrl.rewards.segmentation.protocol import NUCLEUS_CHANNEL, Masks, make_segmenter
from cellfluxrl.seeding import seeded_generator

# `example_controls` and `load_models` are here for scripts and Spaces that import them from this module.
__all__ = ["Result", "Row", "Sampling", "Statistic", "example_controls", "generate", "load_models"]

MAX_IMAGES, MAX_CANDIDATES, MAX_STEPS = 8, 16, 50  # of one request
MAX_SECONDS = 600.0  # of one request
PASTED_NAME = "pasted structure"
BATCH_SIZE = 16
TIMES = tuple(k / 20 for k in range(21))  # of the trajectory


@dataclass(frozen=True)
class Sampling:
    """How many images are generated, and how, as in [`CellFluxRLPipeline.__call__`]."""

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
    """Cells that one pipeline has generated, or the control."""

    images: torch.Tensor  # (N, C, H, W), in [-1, 1]
    masks: Masks | None = None  # where there is something to find nuclei and cells with
    trajectory: torch.Tensor | None = None  # (T, N, C, H, W), at `TIMES`
    measured: Measured | None = None  # by the rewards
    rewards: dict[str, torch.Tensor] | None = None  # each reward and "combined", (N,)
    within_range: torch.Tensor | None = None  # (N,), whether each is within the range of real cells
    selected: torch.Tensor | None = None  # (N,), which of its candidates each is


@dataclass(frozen=True)
class Result:
    """Everything about one generation."""

    control: Row  # one image
    rows: dict[str, Row]  # what was generated of it, by the titles of [`Models.rows`]
    treatment: Treatment  # with all that is known of the compound
    sampling: Sampling
    control_name: str

    @property
    def every_row(self) -> dict[str, Row]:
        """The control and what was generated of it, by title."""
        return {"Control": self.control, **self.rows}

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
    """Generate treated cells with every pipeline, from the same noise, and measure them.

    Args:
        models: The pipelines.
        control: `(C, H, W)`; in [0, 1].
        control_name: Its name.
        treatment: A compound by name, or `PASTED_NAME` with a `smiles` and, if wanted, a `moa`.
        sampling: How many images, and how.
        on_progress: Called with the share of the work that is done.
        max_seconds: Time for it, which is looked at after each step of the solver.

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
    measured = None if moa is None else models.pipe.rewards.measure(images, [moa], context=Context(control=images))
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
    controls = as_model_images(control[None], pipe.channel_names).expand_as(images)
    measured = pipe.rewards.measure(images, [moa] * len(images), context=Context(control=controls))
    rewards = {name: values.cpu() for name, values in output.rewards.items()}
    return Row(images, masks, trajectory, measured, rewards, output.within_range.cpu(), output.selected)


def _segment(pipe: CellFluxRLPipeline, images: torch.Tensor) -> Masks | None:
    if pipe.rewards is not None:
        return pipe.rewards.segment(images)
    if NUCLEUS_CHANNEL not in pipe.channel_names or len(pipe.channel_names) < 2:
        return None
    return make_segmenter("watershed", channel_names=pipe.channel_names)(to_unit(images).numpy())


def _resolve(models: Models, treatment: Treatment) -> tuple[Treatment, torch.Tensor]:
    """The treatment with all that is known of it, and its condition of shape `(1, D)`."""
    if treatment.smiles is not None:
        check_smiles(treatment.smiles, models)
        treatment = replace(treatment, smiles=treatment.smiles.strip())
    if models.pipe.is_conditioned_on_dose and treatment.concentration is None:
        raise ValueError("this pipeline was trained with doses: give the concentration in µM")
    (resolved,), condition = resolve_treatments([treatment], models.pipe)
    return resolved, condition


@dataclass(frozen=True)
class Statistic:
    """One statistic of real cells of a mechanism, and of the control and each row of generated cells."""

    name: str  # as in [`RewardSuite.statistic_names`]
    real: np.ndarray  # (400,)
    low: float  # 95 % of `real` lie between `low` and `high`
    high: float
    values: dict[str, np.ndarray]  # NaN where there is nothing to measure


def compare_statistics(models: Models, result: Result) -> list[Statistic]:
    """The statistics of a scored result beside those of real cells of its mechanism, in the units of measurement."""
    suite = models.pipe.rewards
    k = suite.moas.index(result.moa)
    real = (suite.mean[k] + suite.std[k] * suite.reference[k]).cpu().numpy()
    return [
        Statistic(
            name,
            real[:, column],
            *np.quantile(real[:, column], REAL_RANGE).tolist(),
            {title: row.measured.values[:, column].cpu().numpy() for title, row in result.every_row.items()},
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
