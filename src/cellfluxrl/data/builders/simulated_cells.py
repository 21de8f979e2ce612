"""Simulated cells as a `datasets` builder."""

from __future__ import annotations

from dataclasses import dataclass

import datasets

from cellfluxrl.data.builders.cell_builder import CellBuilder, CellBuilderConfig
from cellfluxrl.data.building.sources.simulated import SimulatedPlates


@dataclass
class SimulatedCellsConfig(CellBuilderConfig):
    """See [`SimulatedPlates`]; by default the last plate makes the test split."""

    image_size: int = 48
    cells_per_moa: int = 400
    controls_per_plate: int = 400
    num_plates: int = 4
    seed: int = 0

    def make_source(self) -> SimulatedPlates:
        """Make the plates."""
        return SimulatedPlates(
            self.image_size, self.cells_per_moa, self.controls_per_plate, self.num_plates, self.seed
        )


class SimulatedCells(CellBuilder):
    """Rendered cells under the compounds of BBBC021, in the same schema as [`BBBC021`].

    Example:
        >>> builder = SimulatedCells(cells_per_moa=20, controls_per_plate=20)    # doctest: +SKIP
        >>> builder.download_and_prepare()                                       # doctest: +SKIP
        >>> builder.as_dataset(split="train")[0]["moa"]                          # doctest: +SKIP
    """

    config: SimulatedCellsConfig
    BUILDER_CONFIG_CLASS = SimulatedCellsConfig
    BUILDER_CONFIGS = [SimulatedCellsConfig(name="default", version=datasets.Version("1.1.0"))]
    DEFAULT_CONFIG_NAME = "default"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Simulated crops of cells: DNA, tubulin and actin under 12 mechanisms of action.",
            features=self.cell_features(),
        )
