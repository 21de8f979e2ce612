"""The cells of an evaluation: a fixed sample of the held-out plates over all compounds, in two halves."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd
import torch

from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import to_uint8
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.evaluation.statistics.effects import MINIMUM_CELLS
from cellfluxrl.evaluation.statistics.strata import rows_by_group, stratified_sample
from cellfluxrl.seeding import numpy_generator, seeded_generator


@dataclass(frozen=True)
class HeldOutCells:
    """Real cells of held-out plates: a treated one for each of N conditions with its control, and M to compare with.

    Images are uint8 `(N, C, H, W)`; the tables hold `plate`, `compound`, `concentration` and `moa` of each.
    """

    table: pd.DataFrame
    control: np.ndarray
    real: np.ndarray
    reference: np.ndarray
    reference_table: pd.DataFrame

    @property
    def moa(self) -> list[str]:
        """The mechanism of each condition."""
        return self.table["moa"].tolist()

    @property
    def compound(self) -> list[str]:
        """The compound of each condition."""
        return self.table["compound"].tolist()

    def few(self) -> list[str]:
        """Compounds with fewer than five cells in a half, whose effects and distances cannot be measured."""
        counts = pd.DataFrame(
            {"sample": self.table["compound"].value_counts(), "real": self.reference_table["compound"].value_counts()}
        ).fillna(0)
        few = counts[(counts < MINIMUM_CELLS).any(axis=1)].sort_index()
        return [f"{name} ({int(row['sample'])} and {int(row['real'])})" for name, row in few.iterrows()]


def sample_held_out(pairs: ControlTreatedPairs, count: int | None = None, seed: int = 0) -> HeldOutCells:
    """Draw a fixed sample, stratified over all compounds, and divide it into the N conditions and the reference.

    Each half has `count` cells, by default half of all treated cells and at most 1,000. A `ValueError` says if there
    are fewer cells, or more compounds.
    """
    available = len(pairs) // 2
    count = min(available, 1000) if count is None else count
    if not 0 < count <= available:
        raise ValueError(
            f"{count} cells and as many to compare them with were asked for, the held-out plates have {len(pairs)} "
            f"treated cells: choose 1 to {available}"
        )
    conditions = pairs.conditions.iloc[pairs.treated_condition.numpy()].reset_index(drop=True)
    names = conditions["compound"].tolist()
    if count < (compounds := len(set(names))):
        raise ValueError(f"{count} cells cannot show all {compounds} compounds of the held-out plates: choose more")
    chosen = stratified_sample(names, 2 * count, seed)
    sample, reference = _halves(chosen, [names[i] for i in chosen], seed)
    rows = pairs.treated_rows.numpy()
    generator = seeded_generator(seed, "controls of the evaluation")
    control = pairs.draw_controls(pairs.treated_condition[torch.from_numpy(sample)], generator, augment=False)
    columns = ["plate", "compound", "concentration", "moa"]
    return HeldOutCells(
        table=conditions.loc[sample, columns].reset_index(drop=True),
        control=to_uint8(control),
        real=np.asarray(pairs.images[rows[sample]]),
        reference=np.asarray(pairs.images[rows[reference]]),
        reference_table=conditions.loc[reference, columns].reset_index(drop=True),
    )


def _halves(rows: np.ndarray, names: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the rows of each compound by turns, so that a compound with two cells is in both halves."""
    turns = [
        numpy_generator(seed, "halves of the evaluation", k).permutation(rows[members])
        for k, members in enumerate(rows_by_group(names).values())
    ]
    every = np.concatenate(turns)  # so that the odd ones of the compounds are by turns on this side and on that
    return np.sort(every[::2]), np.sort(every[1::2])


def sample_training(cells: datasets.Dataset, count: int, seed: int = 0) -> np.ndarray:
    """At most `count` treated cells of a training set, over all compounds: `(T, C, H, W)` uint8."""
    treated = np.flatnonzero(~np.asarray(cells["is_control"], dtype=bool))
    if len(treated) == 0:
        raise ValueError(f"none of the {len(cells)} training cells is treated: nothing could have been memorised")
    names = np.asarray(cells["compound"])[treated].tolist()
    if len(set(names)) <= count < len(names):
        treated = treated[stratified_sample(names, count, seed)]
    return np.asarray(open_images(cells)[treated])
