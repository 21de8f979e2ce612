"""Plates of simulated cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellfluxrl.data.cells import ROW_COLUMNS, Cells, Map, PlateLog
from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES
from cellfluxrl.data.simulated import dose_effect, simulate_cells
from cellfluxrl.seeding import numpy_generator

HALF_EFFECT_CONCENTRATION = 0.3
CONCENTRATIONS = (1.0, 3.0, 10.0)
WELLS = 384
CONTROL_WELLS = 8  # the last ones of the plate


class SimulatedPlates:
    """Rendered cells under the compounds of BBBC021.

    The compounds of one mechanism have the same effect (see `cellfluxrl.data.simulated`), with a dose response.

    Args:
        image_size: Height and width of the crops.
        cells_per_moa: Treated cells of each MoA over all plates.
        controls_per_plate: DMSO cells of each plate.
        num_plates: Plates, each with an intensity, blur and background.
        seed: Everything depends on it.
    """

    channel_names = CHANNEL_NAMES

    def __init__(
        self,
        image_size: int = 48,
        cells_per_moa: int = 400,
        controls_per_plate: int = 400,
        num_plates: int = 4,
        seed: int = 0,
    ):
        self.image_size = image_size
        self.settings = {
            "image_size": image_size,
            "cells_per_moa": cells_per_moa,
            "controls_per_plate": controls_per_plate,
            "num_plates": num_plates,
            "seed": seed,
        }
        self._plates = {f"simulated_{i}": self._layout(i) for i in range(num_plates)}
        rows = pd.concat([rows for rows, _ in self._plates.values()])
        self.fields = rows.drop_duplicates(["plate", "field"]).reset_index(drop=True)

    def _layout(self, plate: int) -> tuple[pd.DataFrame, int]:
        """Rows of all cells of a plate, and the seed of their pictures."""
        settings = self.settings
        random = numpy_generator(settings["seed"], "plate layout", plate)
        table = known_compounds()
        per_moa = -(-settings["cells_per_moa"] // settings["num_plates"])
        controls = settings["controls_per_plate"]
        compounds = [CONTROL] * controls
        for moa in MOAS:
            compounds += list(random.choice(table.index[table["moa"] == moa].to_numpy(), per_moa))
        concentrations = random.choice(CONCENTRATIONS, len(compounds))
        concentrations[:controls] = 0
        condition = pd.factorize(pd.MultiIndex.from_arrays([compounds, concentrations]))[0]
        cell = np.arange(len(compounds))
        place = np.where(cell < controls, WELLS - 1 - cell % CONTROL_WELLS, condition)
        well = [f"{'ABCDEFGHIJKLMNOP'[c // 24]}{c % 24 + 1:02d}" for c in place]
        rows = pd.DataFrame(
            {
                "compound": compounds,
                "smiles": table.loc[compounds, "smiles"].to_numpy(),
                "concentration": concentrations,
                "moa": table.loc[compounds, "moa"].to_numpy(),
                "plate": f"simulated_{plate}",
                "batch": f"simulated_{plate}",
                "well": well,
                "site": 1,
                "replicate": plate + 1,
                "field": [f"{name}_s1" for name in well],
                "cell_id": cell,
                "x": np.nan,
                "y": np.nan,
                "is_control": np.array(compounds) == CONTROL,
            }
        )
        return rows, int(random.integers(2**31))

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """See [`Source`]."""
        rows, seed = self._plates[plate]
        effects = dose_effect(rows["concentration"].to_numpy(), HALF_EFFECT_CONCENTRATION)
        crops = simulate_cells(
            rows["moa"].tolist(), effects, rows["replicate"].iloc[0] - 1, image_size=self.image_size, seed=seed
        )
        log.fields += rows["field"].nunique()
        log.cells += len(rows)
        progress(rows["field"].nunique())
        yield Cells(crops.image, rows[list(ROW_COLUMNS)])
