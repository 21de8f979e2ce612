"""Simulated cells as a `datasets` builder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets

from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features
from cellfluxrl.data.simulated import dose_effect, simulate_cells
from cellfluxrl.seeding import numpy_generator

HALF_EFFECT_CONCENTRATION = 0.3
CONCENTRATIONS = (1.0, 3.0, 10.0)


@dataclass
class SimulatedCellsConfig(datasets.BuilderConfig):
    """
    Args:
        image_size (`int`, defaults to 48): Height and width of the crops.
        cells_per_moa (`int`, defaults to 400): Treated cells of each MoA over all plates.
        controls_per_plate (`int`, defaults to 400): DMSO cells of each plate.
        num_plates (`int`, defaults to 4): Plates, each with its own intensity, blur and background.
        num_test_plates (`int`, defaults to 1): The last plates make the test split.
        seed (`int`, defaults to 0): Everything depends on it.
    """

    image_size: int = 48
    cells_per_moa: int = 400
    controls_per_plate: int = 400
    num_plates: int = 4
    num_test_plates: int = 1
    seed: int = 0


class SimulatedCells(datasets.GeneratorBasedBuilder):
    """
    Rendered cells under the compounds of BBBC021, in the same schema as [`BBBC021`].

    The compounds of one mechanism have the same effect (see `cellfluxrl.data.simulated`), with a dose response.

    Example:
        >>> builder = SimulatedCells(cells_per_moa=20, controls_per_plate=20)    # doctest: +SKIP
        >>> builder.download_and_prepare()                                       # doctest: +SKIP
        >>> builder.as_dataset(split="train")[0]["moa"]                          # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = SimulatedCellsConfig
    BUILDER_CONFIGS = [SimulatedCellsConfig(name="default", version=datasets.Version("1.0.0"))]
    DEFAULT_CONFIG_NAME = "default"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Simulated crops of cells: DNA, tubulin and actin under 12 mechanisms of action.",
            features=cell_features(CHANNEL_NAMES, self.config.image_size),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        plates = list(range(self.config.num_plates))
        if not 0 < self.config.num_test_plates < len(plates):
            raise ValueError(
                f"num_test_plates must lie between 1 and num_plates - 1 = {len(plates) - 1}, "
                f"got {self.config.num_test_plates}"
            )
        first_test = len(plates) - self.config.num_test_plates
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"plates": group, "split": str(split)})
            for split, group in (
                (datasets.Split.TRAIN, plates[:first_test]),
                (datasets.Split.TEST, plates[first_test:]),
            )
        ]

    def _generate_examples(self, plates: list[int], split: str) -> Iterator[tuple[str, dict]]:
        for plate in plates:
            yield from _plate_examples(self.config, plate, split)


def _plate_examples(config: SimulatedCellsConfig, plate: int, split: str) -> Iterator[tuple[str, dict]]:
    random = numpy_generator(config.seed, "plate layout", plate)
    table = known_compounds()
    per_moa = -(-config.cells_per_moa // config.num_plates)
    compounds = [CONTROL] * config.controls_per_plate
    for moa in MOAS:
        compounds += list(random.choice(table.index[table["moa"] == moa].to_numpy(), per_moa))
    moas = table.loc[compounds, "moa"].tolist()
    concentrations = random.choice(CONCENTRATIONS, len(compounds))
    concentrations[: config.controls_per_plate] = 0
    effects = dose_effect(concentrations, HALF_EFFECT_CONCENTRATION)
    crops = simulate_cells(moas, effects, plate, image_size=config.image_size, seed=int(random.integers(2**31)))
    conditions = {key: i for i, key in enumerate(dict.fromkeys(zip(compounds, concentrations, strict=True)))}
    for i, image in enumerate(crops.image):
        condition = conditions[compounds[i], concentrations[i]]
        well = f"{'ABCDEFGHIJKLMNOP'[condition // 24]}{condition % 24 + 1:02d}"
        row = {
            "image": image,
            "compound": compounds[i],
            "smiles": table.loc[compounds[i], "smiles"],
            "concentration": float(concentrations[i]),
            "moa": moas[i],
            "plate": f"simulated_{plate}",
            "well": well,
            "site": 1,
            "replicate": plate + 1,
            "field": f"{well}_s1",
            "cell_id": i,
            "x": float("nan"),
            "y": float("nan"),
            "is_control": compounds[i] == CONTROL,
            "split": split,
        }
        yield f"{plate}-{i}", row
