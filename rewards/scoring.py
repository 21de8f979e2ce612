"""Scoring many images, a batch at a time, and saying how they compare with real cells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cellfluxrl.data.image_files import ImagesToScore
from cellfluxrl.data.images import unit_floats
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import write_whole
from cellfluxrl.rewards.context import context_of_table
from cellfluxrl.rewards.forms import FORMS
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.suite import RewardSuite

logger = logging.getLogger(__name__)


def score_images(
    images: ImagesToScore,
    suite: RewardSuite,
    form: str = "deviation",
    group_by: Sequence[str] = (),
    pixel_size: float | None = None,
    batch_size: int = 256,
    rescue: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Score images; those that cannot be read, or are of another size than the suite's, are skipped and named.

    Args:
        images: See [`images_of_dataset`] and [`images_of_files`].
        suite: What scores them.
        form: `"deviation"` or `"energy"`.
        group_by: In the energy form only images with the same values in these columns are compared with each other; by
            default those of one MoA. An image that is alone gets the deviation form.
        pixel_size: Width of a pixel in micrometres, checked against that of the fit.
        batch_size: Images in memory at once.
        rescue: Called with the table of what is finished if something goes wrong half-way.

    Returns:
        One row an image with the columns of `images.rows`; the measurements (`roundness`, `nucleus_size`, ...);
        `z_NAME` for each statistic, in standard deviations from the mean of real cells of the MoA (-10 where there is
        nothing to measure); `reward_NAME` for each reward; and `combined`. Its `attrs` hold the form, the columns of
        `group_by`, and under `"skipped"` what was left out, with the reasons.

    Raises:
        ValueError: If no image can be scored, or an argument does not fit.
    """
    if form not in FORMS:
        raise unknown_name("reward form", form, FORMS)
    for column in group_by:
        if column not in images.rows:
            raise unknown_name("column", column, images.rows.columns)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    moas = images.rows["moa"].tolist()
    suite.check_moas(moas)
    kept: list[int] = []
    parts: list[Measured] = []
    skipped = list(images.skipped)

    def read_controls(rows: np.ndarray) -> np.ndarray:
        return np.stack([_in_model_range(images.read(int(row))) for row in rows])

    context = context_of_table(images.rows, read_controls)

    def table() -> pd.DataFrame:
        scored = _table(images.rows.iloc[kept].reset_index(drop=True), Measured.cat(parts), suite, form, group_by)
        scored.attrs = {"form": form, "group_by": list(group_by), "skipped": skipped}
        return scored

    try:
        with tqdm(total=len(moas), unit=" images", desc="scoring") as progress:
            for start in range(0, len(moas), batch_size):
                rows, batch = _read_batch(images, range(start, min(start + batch_size, len(moas))), suite, skipped)
                if rows:
                    names = [moas[row] for row in rows]
                    known = context.take(np.array(rows))
                    parts.append(suite.measure(batch, names, pixel_size, batch_size, known))
                    kept += rows
                progress.update(min(batch_size, len(moas) - start))
    except BaseException:
        if parts and rescue is not None:
            rescue(table())
        raise
    if not parts:
        raise ValueError(f"none of the {len(moas)} images can be scored; the first: {skipped[0]}")
    return table()


def _read_batch(
    images: ImagesToScore, rows: Sequence[int], suite: RewardSuite, skipped: list[str]
) -> tuple[list[int], np.ndarray]:
    """The rows that can be read, and their images as one array of `(N, C, H, W)`."""
    kept, batch = [], []
    size = suite.config["image_size"]
    for row in rows:
        try:
            image = images.read(row)
            if size and image.shape[1:] != tuple(size):
                raise ValueError(f"{image.shape[1:]} pixels, the suite's statistics are of {tuple(size)}")
        except (ValueError, OSError) as error:
            name = images.rows["source"].iloc[row]
            skipped.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
            continue
        kept.append(row)
        batch.append(image)
    if len({image.dtype for image in batch}) > 1:
        batch = [unit_floats(image) for image in batch]
    return kept, np.stack(batch) if batch else np.empty(0)


def _table(
    rows: pd.DataFrame, measured: Measured, suite: RewardSuite, form: str, group_by: Sequence[str]
) -> pd.DataFrame:
    groups = rows.groupby(["moa", *group_by], dropna=False, sort=False).ngroup()
    if form == "energy" and (alone := int((groups.map(groups.value_counts()) == 1).sum())):
        logger.warning(
            "%d images have no other of their group to be compared with: scored in the deviation form", alone
        )
    moas = rows["moa"].tolist()
    rewards = suite.score(measured, moas, form=form, groups=torch.tensor(groups.to_numpy()))
    standardised = suite.standardise(measured, moas)
    columns = dict(measured.measurements)
    columns |= {f"z_{name}": standardised[:, k] for k, name in enumerate(suite.statistic_names)}
    columns |= {name if name == "combined" else f"reward_{name}": values for name, values in rewards.items()}
    return pd.concat([rows, pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})], axis=1)


def _in_model_range(image: np.ndarray) -> np.ndarray:
    floats = image.astype(np.float32)
    return floats / 127.5 - 1 if image.dtype == np.uint8 else 2 * floats - 1


def write_parquet(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, or nothing: a file that is there is replaced once the new one is whole."""
    write_whole(path, lambda partial: table.to_parquet(partial, index=False))


def summarize_scores(table: pd.DataFrame, suite: RewardSuite) -> pd.DataFrame:
    """Mean and standard error of each reward, for each MoA and over all images, and what real cells have.

    A table of text: two lines a MoA, and one over all. Standard errors assume that the images are independent.
    """
    names = [*(f"reward_{reward.name}" for reward in suite.rewards), "combined"]
    lines = []
    for moa, scored in [*table.groupby("moa"), ("all", table)]:
        values = {name.removeprefix("reward_"): _mean_and_error(scored[name]) for name in names}
        lines.append({"MoA": moa, "images": f"{len(scored):,}", **values})
        if table.attrs.get("form") == "deviation":
            real = suite.real_means(scored["moa"].tolist())
            lines.append({"MoA": "  real cells", "images": "", **{name: f"{real[name]:.2f}" for name in values}})
    return pd.DataFrame(lines)


def mean_scores(table: pd.DataFrame, suite: RewardSuite) -> dict[str, Any]:
    """The number of images, and by MoA (`"moas"`) and over all (`"all"`) the means of [`summarize_scores`]."""
    names = {f"reward_{reward.name}": reward.name for reward in suite.rewards} | {"combined": "combined"}

    def means(scored: pd.DataFrame) -> dict[str, Any]:
        described = {"images": len(scored), "mean": {name: scored[column].mean() for column, name in names.items()}}
        if table.attrs.get("form") == "deviation":
            described["real"] = suite.real_means(scored["moa"].tolist())
        return described

    by_moa = {moa: means(scored) for moa, scored in table.groupby("moa")}
    return {"images": len(table), "moas": by_moa, "all": means(table)}


def _mean_and_error(values: pd.Series) -> str:
    mean = f"{values.mean():.2f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std() / len(values) ** 0.5:.2f}"
