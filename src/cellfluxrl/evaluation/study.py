"""One evaluation from pipelines and a data set to the report; `cellfluxrl evaluate` and the demo both run it."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from cellfluxrl import __version__
from cellfluxrl.checkpoints import weights_hash
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.errors import unknown_name
from cellfluxrl.evaluation.cells import HeldOutCells, sample_held_out, sample_training
from cellfluxrl.evaluation.evaluate import Images, Results, check_counts, evaluate
from cellfluxrl.evaluation.generating import calibrated, generate_candidates, generate_trajectories
from cellfluxrl.evaluation.measuring import Evaluators, Measurements, measure_cells
from cellfluxrl.evaluation.report.figures import TRAJECTORIES, draw_all
from cellfluxrl.evaluation.report.html import Section
from cellfluxrl.evaluation.report.sections import write_evaluation_report
from cellfluxrl.evaluation.results import write_results
from cellfluxrl.pipelines.cellflux import CellFluxPipeline

logger = logging.getLogger(__name__)

TRAINING_CELLS = 5000
SIMULATED_NOTE = "These cells are simulated, those called real too: nothing here is evidence about microscope images."
_FILES = "1"  # rises when files of measurements hold something else


@dataclass(frozen=True)
class StudySettings:
    """How models are compared.

    Args:
        num: Cells of each row; by default half of the test cells, at most 1,000.
        best_of_n: Numbers of candidates to choose among; see [`evaluate`].
        single: Models of which one sample of each control is enough: they take no part in best-of-N.
        num_inference_steps, guidance_scale: Of the pipelines.
        calibrate: Start from controls at the intensities of those of training, plate by plate.
        seed: Which cells, which noise, and all resampling.
    """

    num: int | None = None
    best_of_n: Sequence[int] = ()
    single: Sequence[str] = ()
    num_inference_steps: int = 10
    guidance_scale: float = 1.0
    calibrate: bool = False
    seed: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of the pipelines."""
        return {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}


@dataclass(frozen=True)
class Study:
    """What [`run_study`] returns.

    Args:
        results: What came out.
        cells: The held-out cells.
        evaluators: What measured them.
        trajectories: By model, some trajectories from control to treated cell, and the compounds.
        settings: What is needed to run it again.
    """

    results: Results
    cells: HeldOutCells
    evaluators: Evaluators
    trajectories: dict[str, tuple[torch.Tensor, list[str]]]
    settings: dict[str, Any]


def run_study(
    pipelines: Mapping[str, CellFluxPipeline],
    cells: datasets.DatasetDict,
    evaluators: Evaluators,
    settings: StudySettings,
    folder: str | Path,
    training: datasets.Dataset | None = None,
) -> Study:
    """Generate with one or more pipelines from the same held-out controls and noise, and evaluate what they made.

    Generated cells and measurements are kept in `folder`, so that the same call resumes where it was interrupted.

    Args:
        pipelines: By the name of their rows; the first one is compared with each of the others.
        cells: With a test split, which is evaluated.
        evaluators: What measures the cells.
        settings: How.
        folder: Where the files go.
        training: Cells that may be memorised; by default those of the train split.

    Raises:
        ValueError: If pipelines, data set and evaluators do not fit each other, or there are too few cells.
        FileExistsError: If the folder holds samples that were made otherwise.

    Example:
        >>> study = run_study({"rl": rl, "base": base}, cells, make_evaluators(rl.rewards, judge),
        ...     StudySettings(best_of_n=(1, 2, 4)), "runs/evaluation")                    # doctest: +SKIP
        >>> study.results.rows["rl"]["kernel"]                                            # doctest: +SKIP
    """
    folder = Path(folder)
    for pipeline in pipelines.values():
        pipeline.unet.eval()
    channels = _shared_channels(pipelines, evaluators, channel_names_of(cells["test"]))
    held_out = _sample(cells["test"], settings, channels)
    _check_before_generating(pipelines, evaluators, held_out)
    training = cells["train"] if training is None else training
    known = _in_order(sample_training(training, TRAINING_CELLS, settings.seed), channel_names_of(training), channels)
    sources = dict.fromkeys(pipelines, held_out.control)
    if settings.calibrate:
        plates = held_out.table["plate"].to_numpy()
        sources = {name: calibrated(pipeline, held_out.control, plates) for name, pipeline in pipelines.items()}
    images = Images(
        control=held_out.control,
        real=held_out.real,
        reference=held_out.reference,
        generated=_generate(pipelines, sources, held_out, settings, folder),
        moa=held_out.moa,
        compound=held_out.compound,
        reference_moa=held_out.reference_table["moa"].tolist(),
        reference_compound=held_out.reference_table["compound"].tolist(),
        training=known,
    )
    trajectories = _trajectories(pipelines, sources, held_out, settings)
    measure = _kept_measurements(folder / "measured", evaluators)
    results = evaluate(images, evaluators, settings.best_of_n, settings.seed, measure)
    if few := held_out.few():
        results.notes.append(
            f"{len(few)} compounds have fewer than 5 cells in the sample or the reference, so that their effects are "
            f"not known: {', '.join(few)}."
        )
    described = {
        **asdict(settings),
        "cells": len(held_out.table),
        "real cells to compare with": len(held_out.reference_table),
        **{f"weights of {name}": weights_hash(pipeline.unet) for name, pipeline in pipelines.items()},
        "cellfluxrl": __version__,
    }
    return Study(results, held_out, evaluators, trajectories, described)


def write_study(
    study: Study,
    folder: str | Path,
    title: str,
    details: Mapping[str, Any],
    report: str | Path | None = None,
    more: Sequence[Section] = (),
) -> list[Path]:
    """Write results, tables, pictures and the report of a study.

    Args:
        study: What came out.
        folder: Where the files go.
        title: Of the report.
        details: What else is needed to run it again; it goes into the settings.
        report: The HTML file; by default `report.html` in the folder.
        more: Further sections of the report.

    Returns:
        The report, `results.json`, the tables, and the folder of the pictures.
    """
    folder = Path(folder)
    report = Path(report or folder / "report.html")
    settings = {**details, **study.settings}
    written = write_results(folder, study.results, study.cells.table, settings)
    pictures = draw_all(folder / "plots", study.results, study.evaluators.suite, study.trajectories)
    write_evaluation_report(report, title, study.results, pictures, settings, more)
    return [report, *written, folder / "plots"]


def clear_study(folder: str | Path) -> None:
    """Remove what [`run_study`] has kept in a folder."""
    for pattern in ("pipeline", "against*", "measured"):
        for path in list(Path(folder).glob(pattern)):
            shutil.rmtree(path, ignore_errors=True)


def _shared_channels(
    pipelines: Mapping[str, CellFluxPipeline], evaluators: Evaluators, given: Sequence[str]
) -> tuple[str, ...]:
    """The channels of the pipelines, in their order."""
    wanted = next(iter(pipelines.values())).channel_names
    for name, pipeline in pipelines.items():
        if pipeline.channel_names != wanted:
            raise ValueError(f"{name!r} has the channels {pipeline.channel_names}, the other pipeline {wanted}")
        if sorted(pipeline.channel_names) != sorted(given):
            raise ValueError(f"the data set has the channels {given}, the pipeline {name!r} {pipeline.channel_names}")
    judge = evaluators.judge
    for name, names in (("rewards", evaluators.suite.channel_names), ("judge", judge and judge.config.channel_names)):
        if names and tuple(names) != wanted:
            raise ValueError(f"the {name} have the channels {tuple(names)}, the pipeline {wanted}")
    return wanted


def _in_order(images: np.ndarray, given: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    if sorted(given) != sorted(wanted):
        raise ValueError(f"the training cells have the channels {given}, the pipeline {wanted}")
    return images[:, [given.index(channel) for channel in wanted]]


def _sample(cells: datasets.Dataset, settings: StudySettings, channels: Sequence[str]) -> HeldOutCells:
    held_out = sample_held_out(ControlTreatedPairs(cells), settings.num, settings.seed)
    if few := held_out.few():
        logger.warning("compounds with fewer than 5 cells, in the sample and to compare with: %s", ", ".join(few))
    given = channel_names_of(cells)
    images = {name: getattr(held_out, name) for name in ("control", "real", "reference")}
    return replace(held_out, **{name: _in_order(cells, given, channels) for name, cells in images.items()})


def _check_before_generating(
    pipelines: Mapping[str, CellFluxPipeline], evaluators: Evaluators, held_out: HeldOutCells
) -> None:
    """Refuse what would fail after the cells were generated."""
    check_counts(len(held_out.control), len(held_out.reference))
    moas = sorted(set(held_out.moa) | set(held_out.reference_table["moa"]))
    evaluators.suite.check_moas(moas)
    if evaluators.judge is not None:
        evaluators.judge.class_indices(moas)
    for name, pipeline in pipelines.items():
        known = pipeline.encoder.names
        for compound in sorted(set(held_out.compound)) if pipeline.unet.config.condition_dim is not None else ():
            if compound not in known:
                raise unknown_name(f"compound of the data set, to the pipeline {name!r}:", compound, known)


def _generate(
    pipelines: Mapping[str, CellFluxPipeline],
    sources: Mapping[str, np.ndarray],
    held_out: HeldOutCells,
    settings: StudySettings,
    folder: Path,
) -> dict[str, np.ndarray]:
    generated = {}
    for number, (name, pipeline) in enumerate(pipelines.items()):
        part = ("pipeline", "against")[number] if number < 2 else f"against_{number}"
        provenance = {
            "weights": weights_hash(pipeline.unet),
            "scheduler": {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")},
            "controls": hashlib.sha256(np.ascontiguousarray(sources[name]).data).hexdigest(),
            "conditions": hashlib.sha256(held_out.table.to_csv().encode()).hexdigest(),
            "cellfluxrl": __version__,
        }
        generated[name] = generate_candidates(
            pipeline,
            sources[name],
            held_out.table,
            folder / part,
            provenance,
            count=1 if name in settings.single else max(settings.best_of_n, default=1),
            seed=settings.seed,
            title=name,
            **settings.sampling,
        )
    return generated


def _trajectories(
    pipelines: Mapping[str, CellFluxPipeline],
    sources: Mapping[str, np.ndarray],
    held_out: HeldOutCells,
    settings: StudySettings,
) -> dict[str, tuple[torch.Tensor, list[str]]]:
    rows = held_out.table.drop_duplicates("moa").index[:TRAJECTORIES].to_numpy()
    table = held_out.table.loc[rows]
    return {
        name: (
            generate_trajectories(pipeline, sources[name][rows], table, settings.seed, **settings.sampling),
            table["compound"].tolist(),
        )
        for name, pipeline in pipelines.items()
    }


def _kept_measurements(
    folder: Path, evaluators: Evaluators
) -> Callable[[np.ndarray, Sequence[str], Evaluators, str], Measurements]:
    """[`measure_cells`], with a file for each set of cells, which is read if it is of the same cells."""
    fingerprint = evaluators.fingerprint()

    def measure(images: np.ndarray, moa: Sequence[str], evaluators: Evaluators, title: str) -> Measurements:
        digest = hashlib.sha256(f"{_FILES} {__version__} {fingerprint} {list(moa)}".encode())
        digest.update(np.ascontiguousarray(images).data)
        path = folder / f"{hashlib.sha256(title.encode()).hexdigest()[:16]}.npz"
        found = Measurements.load(path, digest.hexdigest())
        if found is None:
            found = measure_cells(images, moa, evaluators, title)
            found.save(path, digest.hexdigest())
        return found

    return measure
