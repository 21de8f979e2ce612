"""Many generated cells, batch by batch, as files with their provenance; a run that was stopped resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cellfluxrl.checkpoints import weights_hash
from cellfluxrl.data.images import to_uint8
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import contained_path, file_name, locked, write_whole
from cellfluxrl.pipelines.cellflux_rl import SEARCHES, CellFluxRLPipeline
from cellfluxrl.pipelines.generation import folder as generation_folder
from cellfluxrl.pipelines.generation.controls import Controls, calibrated
from cellfluxrl.pipelines.generation.files import FORMATS, SUFFIXES, write_dataset, write_image
from cellfluxrl.pipelines.generation.treatments import Treatment
from cellfluxrl.pipelines.outputs import Sampling
from cellfluxrl.pipelines.selection import SELECTIONS, StreamingMatch
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.seeding import seeded_generator

logger = logging.getLogger(__name__)

BATCH_COLUMNS = ("statistics", "pixels")  # of the table of a batch, which the final one does not have

Job = tuple[int, int, int]  # control, treatment, sample


@dataclass(frozen=True)
class GenerationSettings:
    """What is generated of each control and treatment, and how; names of [`CellFluxRLPipeline.__call__`] are its.

    The `batch_size` is that of the images that are generated, written and recorded together. To `calibrate` is to
    bring the controls of each plate to the intensities of those of training ([`CellFluxPipeline.calibrate`]).
    """

    num_per_control: int = 1
    best_of_n: int = 1
    selection: str = "best"
    search: str | None = None
    num_inference_steps: int = 10
    guidance_scale: float = 1.2
    seed: int = 0
    format: str = "tiff"
    batch_size: int = 16
    calibrate: bool = False

    def __post_init__(self) -> None:
        for name in ("num_per_control", "best_of_n", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name, allowed in (("format", FORMATS), ("selection", SELECTIONS), ("search", SEARCHES)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise unknown_name(name, value, allowed)
        if self.best_of_n == 1 and (self.search or self.selection != "best"):
            what = f"search {self.search!r}" if self.search else f"selection {self.selection!r}"
            raise ValueError(f"{what} needs several candidates: pass best_of_n")


def candidate_generators(seed: int, count: int) -> list[torch.Generator]:
    """The generators of an image's candidates.

    With them, the image whose `seed`, `best_of_n` (`count`) and compound are in `generated.parquet` comes out of one
    call again.

    Example:
        >>> out = pipe(control, compound="taxol", generator=candidate_generators(seed, 1))         # doctest: +SKIP
    """
    return [seeded_generator(seed, "candidates", k) for k in range(count)]


def generate_images(
    pipe: CellFluxRLPipeline,
    controls: Controls,
    treatments: Sequence[Treatment],
    conditions: torch.Tensor,
    settings: GenerationSettings,
    output_dir: str | Path,
    origin: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Generate every control under every treatment, into files, and return `generated.parquet`: one row an image.

    Each batch is recorded as soon as its images are written. The same call resumes after the last recorded batch, and
    what comes out is, on a CPU to the last bit, what one uninterrupted run gives.

    Args:
        treatments, conditions: See [`resolve_treatments`].
        origin: Goes into `provenance.json` as it is: names of the pipeline and of the controls.
        overwrite: Delete what an earlier run has left there.
    """
    folder = Path(output_dir)
    _check_possible(pipe, controls, treatments, settings)
    provenance = {
        **origin,
        "components": {name: _fingerprint(component) for name, component in pipe.components.items()},
        "controls_sha256": _digest(controls.rows["control_sha256"].tolist()),
        "treatments": [asdict(treatment) for treatment in treatments],
        "settings": asdict(settings),
        "channel_names": list(pipe.channel_names),
        "skipped": controls.skipped,
    }
    provenance = json.loads(json.dumps(provenance))
    if settings.calibrate:
        controls = calibrated(controls, pipe)
    run = _Run(pipe, controls, treatments, conditions, settings, folder)
    with locked(folder, f"another process is generating into {str(folder)!r}"):
        sessions, is_complete = generation_folder.resume(folder, provenance, overwrite=overwrite)
        if is_complete:
            logger.warning("%s is finished: there is nothing to do", folder)
            return pd.read_parquet(folder / generation_folder.TABLE)
        with generation_folder.session(folder, provenance, sessions, str(pipe.device)) as session:
            try:
                _generate_rest(run, session)
                return _finish(run)
            except KeyboardInterrupt:
                logger.warning("%s of %d images are finished", generation_folder.count_finished(folder), len(run))
                raise
            except OSError as error:
                finished = f"{generation_folder.count_finished(folder)} of {len(run)} images are finished and kept"
                raise OSError(f"{error}; {finished}: the same command resumes") from error


class _RecordingMatch(StreamingMatch):
    """Records the vectors of the images that it has chosen, by MoA, until [`take`] returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[str, list[torch.Tensor]] = {}

    def select(self, vectors: torch.Tensor, reference: torch.Tensor, group: str) -> torch.Tensor:
        chosen = super().select(vectors, reference, group)
        rows = torch.arange(len(vectors), device=vectors.device)
        self.recorded.setdefault(group, []).append(vectors[rows, chosen])
        return chosen

    def take(self) -> dict[str, np.ndarray]:
        recorded, self.recorded = self.recorded, {}
        return {group: torch.cat(vectors).cpu().numpy() for group, vectors in recorded.items()}

    def remember(self, table: pd.DataFrame, suite: RewardSuite) -> None:
        """Choose again what an earlier session has chosen: from sets of one candidate."""
        for moa, rows in table.groupby("moa", sort=False):
            vectors = torch.from_numpy(np.stack(rows["statistics"].tolist())).to(suite.device)
            self.select(vectors[:, None], suite.real_appearance(moa), moa)
        self.recorded = {}


@dataclass(frozen=True)
class _Run:
    pipe: CellFluxRLPipeline
    controls: Controls
    treatments: Sequence[Treatment]
    conditions: torch.Tensor
    settings: GenerationSettings
    folder: Path

    def __len__(self) -> int:
        """Images, all together."""
        return len(self.controls.rows) * len(self.treatments) * self.settings.num_per_control

    def batches(self) -> Iterator[list[Job]]:
        """All jobs; the pipeline scores all images of a call or none, so those of a batch are all scored or none."""
        for is_scored in (True, False):
            chosen = [k for k, treatment in enumerate(self.treatments) if treatment.is_scored == is_scored]
            jobs = product(range(len(self.controls.rows)), chosen, range(self.settings.num_per_control))
            while batch := list(islice(jobs, self.settings.batch_size)):
                yield batch

    @cached_property
    def _folder_names(self) -> list[str]:
        """One for each treatment, none of which differ in case alone."""
        names: list[str] = []
        for number, treatment in enumerate(self.treatments):
            name = file_name(treatment.label)
            taken = {other.casefold() for other in names}
            names.append(f"{name}_{number}" if name.casefold() in taken else name)
        return names

    def file_name(self, control: int, treatment: int, sample: int) -> str:
        source = re.sub(r"\.\w+(?=\[|$)", "", self.controls.rows["control"].iloc[control])  # without its suffix
        name = file_name(source[-60:])
        suffix = SUFFIXES[self.settings.format]
        return f"images/{self._folder_names[treatment]}/{control:06d}_{name}_{sample}{suffix}"


def _generate_rest(run: _Run, session: dict[str, Any]) -> None:
    """Go through all batches, and generate and record those that are not finished."""
    match = _RecordingMatch() if run.settings.selection == "match" else None
    run.pipe.set_progress_bar_config(disable=True)
    with tqdm(total=len(run), unit=" images", desc="generating") as progress, _quiet_pipeline():
        is_leading = True  # what is finished counts from the beginning on: a match depends on all batches before it
        for number, jobs in enumerate(run.batches()):
            finished = generation_folder.read_batch(run.folder, number) if is_leading else None
            if finished is None:
                is_leading = False
                table = _generate_batch(run, jobs, match)
                generation_folder.record_batch(run.folder, number, table)
                session["images"] += len(jobs)
            else:
                progress.initial += len(jobs)  # does not count in the rate
                if match is not None:
                    match.remember(finished, run.pipe.rewards)
            progress.update(len(jobs))


def _generate_batch(run: _Run, jobs: Sequence[Job], match: _RecordingMatch | None) -> pd.DataFrame:
    """Generate images and their rows of the table, and write the images; those of a data set wait in the rows."""
    settings, suite = run.settings, run.pipe.rewards
    treatments = [run.treatments[k] for _, k, _ in jobs]
    rows = run.controls.rows.iloc[[control for control, _, _ in jobs]].reset_index(drop=True)
    # An image follows from the seed of the run, the pixels of its control, its treatment and its sample alone.
    seeds = [
        seeded_generator(settings.seed, "generate", int(digest, 16), treatment.key, sample).initial_seed()
        for digest, treatment, (_, _, sample) in zip(rows["control_sha256"], treatments, jobs, strict=True)
    ]
    read = {control: run.controls.read(control) for control in {control for control, _, _ in jobs}}
    is_scored = treatments[0].is_scored
    output = run.pipe(
        np.stack([read[control] for control, _, _ in jobs]),
        compound_embeds=run.conditions[[k for _, k, _ in jobs]],
        moa=[treatment.moa for treatment in treatments] if is_scored else None,
        best_of_n=settings.best_of_n,
        selection=match or settings.selection,
        search=settings.search,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=[g for seed in seeds for g in candidate_generators(seed, settings.best_of_n)],
        batch_size=settings.batch_size,
        output_type="pt",
        **({} if settings.search else {"batch_invariant": True}),
    )
    images = to_uint8(output.images)
    if settings.format == "parquet":
        rows["pixels"] = [image.tobytes() for image in images]
    else:
        rows.insert(0, "file", [run.file_name(*job) for job in jobs])
        for name, image in zip(rows["file"], images, strict=True):
            write_image(contained_path(run.folder, *name.split("/")), image, run.pipe.channel_names)
    table = rows.assign(
        compound=[treatment.compound for treatment in treatments],
        concentration=np.array([treatment.concentration for treatment in treatments], dtype=float),
        smiles=[treatment.smiles for treatment in treatments],
        moa=[treatment.moa for treatment in treatments],
        sample=[sample for _, _, sample in jobs],
        seed=seeds,
        best_of_n=settings.best_of_n,
        selected=0 if output.selected is None else output.selected.numpy(),
        evaluations=output.num_function_evaluations,
    )
    if is_scored:
        for name in [*suite.weights, "combined"]:
            table[name if name == "combined" else f"reward_{name}"] = output.rewards[name].cpu().numpy()
        table["within_range"] = output.within_range.cpu().numpy()
    if match is not None:
        table["statistics"] = None
        for moa, vectors in match.take().items():
            table.loc[table["moa"] == moa, "statistics"] = pd.Series(list(vectors), table.index[table["moa"] == moa])
    return table


def _finish(run: _Run) -> pd.DataFrame:
    """Join the batches into the table and, if that is the format, the data set."""

    def finished() -> Iterator[pd.DataFrame]:
        for number, _ in enumerate(run.batches()):
            table = generation_folder.read_batch(run.folder, number)
            if table is None:
                raise OSError(f"batch {number} was finished and is gone from {run.folder}")
            yield table

    tables = [batch.drop(columns=list(BATCH_COLUMNS), errors="ignore") for batch in finished()]
    table = pd.concat(tables, ignore_index=True)
    if run.settings.format == "parquet":
        shape = (len(run.pipe.channel_names), *run.controls.read(0).shape[1:])
        batches = (
            (batch, np.frombuffer(b"".join(batch["pixels"]), np.uint8).reshape(len(batch), *shape))
            for batch in finished()
        )
        table.insert(0, "file", write_dataset(run.folder, batches, run.pipe.channel_names, shape))
    if "within_range" in table:
        table["within_range"] = table["within_range"].astype("boolean")
    write_whole(run.folder / generation_folder.TABLE, lambda partial: table.to_parquet(partial, index=False))
    return table


@contextlib.contextmanager
def _quiet_pipeline() -> Iterator[None]:
    """Warn of no batch: how many images are within the range is in the table, and is reported in the end."""
    pipeline_logger = logging.getLogger("cellfluxrl.pipelines.cellflux_rl")
    level = pipeline_logger.level
    pipeline_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        pipeline_logger.setLevel(level)


def _check_possible(
    pipe: CellFluxRLPipeline, controls: Controls, treatments: Sequence[Treatment], settings: GenerationSettings
) -> None:
    """Refuse what would fail at the first image, or at the last."""
    if settings.format == "png" and len(pipe.channel_names) != 3:
        raise ValueError(f"PNG is for three channels, these are {pipe.channel_names}: use another --format")
    if settings.best_of_n > 1 and pipe.rewards is None:
        raise ValueError(f"best_of_n={settings.best_of_n} needs rewards to choose by, and this pipeline has none")
    unscored = [treatment for treatment in treatments if not treatment.is_scored]
    if unscored and settings.best_of_n > 1:
        raise ValueError(
            f"best_of_n={settings.best_of_n} needs a mechanism of action that the rewards know, which "
            f"{unscored[0].label!r} has not: name one in the column moa of --compounds_file"
        )
    if unscored and pipe.rewards is not None:
        logger.warning(
            "%d compounds have no mechanism that the rewards know, and are not scored: %s",
            *(len(unscored), ", ".join(treatment.label for treatment in unscored[:10])),
        )
    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, batch_size=settings.batch_size)
    pipe.check_inputs(torch.from_numpy(controls.read(0))[None], 1, settings.best_of_n, sampling)


def _fingerprint(component: Any) -> str | None:
    """SHA-256 of the weights and the configuration of a component."""
    if component is None:
        return None
    config = {key: value for key, value in component.config.items() if not key.startswith("_")}
    weights = weights_hash(component) if isinstance(component, torch.nn.Module) else ""
    return _digest([weights, config])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
