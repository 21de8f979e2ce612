"""Generated cells of an evaluation, kept as files from which an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cellfluxrl.data.images import images_to_tensor, to_uint8
from cellfluxrl.files import write_whole
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.seeding import seeded_generator

CONTROLS_AT_ONCE = 32


def generate_candidates(
    pipeline: CellFluxPipeline,
    control: np.ndarray,
    table: pd.DataFrame,
    folder: str | Path,
    provenance: Mapping[str, Any],
    count: int = 1,
    seed: int = 0,
    title: str = "generating",
    **settings: Any,
) -> np.ndarray:
    """Generate K samples of each control into `generated.npy` and `generated.json`: uint8 `(N, K, C, H, W)`.

    The noise of sample k of control i depends on the seed, i and k alone: it is the same for every pipeline, and a run
    that was interrupted resumes where it stopped, if its provenance and settings are the same.

    Args:
        pipeline: What generates.
        control: `(N, C, H, W)`; uint8.
        table: `compound` and `concentration` of each.
        folder: Where the files go; a `FileExistsError` says if it holds samples of another provenance.
        provenance: What `generated.json` records beside the settings.
        count: K.
        seed: Decides the noise.
        title: Of the progress bar.
        **settings: Of the call of the pipeline.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, record = folder / "generated.npy", folder / "generated.json"
    provenance = json.loads(json.dumps({**provenance, "samples_per_control": count, "seed": seed, **settings}))
    done = _finished(path, record, provenance)
    shape = (len(control), count, *control.shape[1:])
    if done == 0:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
        _write_record(record, provenance, 0)
    images = np.lib.format.open_memmap(path, mode="r+")
    pipeline = _without_rewards(pipeline)
    with tqdm(total=len(control), initial=done, unit=" controls", desc=title) as progress:
        for start in range(done, len(control), CONTROLS_AT_ONCE):
            rows = range(start, min(start + CONTROLS_AT_ONCE, len(control)))
            images[rows.start : rows.stop] = _generate(pipeline, control, table, rows, count, seed, settings)
            images.flush()
            _write_record(record, provenance, rows.stop)
            progress.update(len(rows))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def calibrated(pipeline: CellFluxPipeline, control: np.ndarray, plates: np.ndarray) -> np.ndarray:
    """Controls, uint8 `(N, C, H, W)`, at the intensities of the pipeline's training, plate by plate."""
    result = np.empty_like(control)
    for plate in np.unique(plates):
        of_plate = plates == plate
        try:
            result[of_plate] = to_uint8(pipeline.calibrate(control[of_plate]))
        except ValueError as error:
            raise ValueError(f"plate {str(plate)!r} cannot be calibrated: {error}") from None
    return result


def _finished(path: Path, record: Path, provenance: Mapping[str, Any]) -> int:
    """How many controls are finished."""
    if not (path.is_file() and record.is_file()):
        return 0
    found = json.loads(record.read_text())
    before = found["provenance"]
    if changed := sorted(k for k in before.keys() | provenance.keys() if before.get(k) != provenance.get(k)):
        raise FileExistsError(
            f"{str(path.parent)!r} holds samples that were made otherwise ({', '.join(changed)}): "
            "choose another --output_dir or pass --overwrite"
        )
    return found["finished"]


def _write_record(record: Path, provenance: Mapping[str, Any], finished: int) -> None:
    text = json.dumps({"finished": finished, "provenance": provenance}, indent=2)
    write_whole(record, lambda path: path.write_text(text))


def _without_rewards(pipeline: CellFluxPipeline) -> CellFluxPipeline:
    """The same samples, which are not scored while they are generated."""
    plain = CellFluxPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler, encoder=pipeline.encoder)
    plain.set_progress_bar_config(disable=True)
    return plain


def _treatment_of(pipeline: CellFluxPipeline, table: pd.DataFrame) -> dict[str, Any]:
    """The compounds of the rows, and their concentrations where the pipeline takes them."""
    if pipeline.unet.config.condition_dim is None:
        return {}
    concentration = table["concentration"].tolist() if pipeline.is_conditioned_on_dose else None
    return {"compound": table["compound"].tolist(), "concentration": concentration}


def _generate(
    pipeline: CellFluxPipeline,
    control: np.ndarray,
    table: pd.DataFrame,
    rows: range,
    count: int,
    seed: int,
    settings: Mapping[str, Any],
) -> np.ndarray:
    noise = [seeded_generator(seed, "evaluation noise", i, k) for i in rows for k in range(count)]
    images = pipeline(
        images_to_tensor(control[rows.start : rows.stop]),
        **_treatment_of(pipeline, table.iloc[rows.start : rows.stop]),
        num_images_per_control=count,
        generator=noise,
        output_type="pt",
        **settings,
    ).images
    return to_uint8(images).reshape(len(rows), count, *control.shape[1:])


def generate_trajectories(
    pipeline: CellFluxPipeline, control: np.ndarray, table: pd.DataFrame, seed: int = 0, **settings: Any
) -> torch.Tensor:
    """The trajectory of the first sample of each control, at the times of the grid: `(T, N, C, H, W)` in [-1, 1]."""
    output = _without_rewards(pipeline)(
        images_to_tensor(control),
        **_treatment_of(pipeline, table),
        generator=[seeded_generator(seed, "evaluation trajectories", i) for i in range(len(control))],
        output_type="pt",
        return_trajectory=True,
        **settings,
    )
    return output.trajectory.clamp(-1, 1).cpu()
