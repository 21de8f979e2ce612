"""What the `datasets` builders share: the cells of a source, by split."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from cellfluxrl.data.cells import PlateLog, Source
from cellfluxrl.data.schema import cell_features
from cellfluxrl.data.splits import row_splitter


@dataclass
class CellBuilderConfig(datasets.BuilderConfig):
    """What makes the test split, see [`assign_splits`]."""

    split: str = "plate"
    held_out: tuple[str, ...] = ()

    def make_source(self) -> Source:
        """Make the source of the cells."""
        raise NotImplementedError


class CellBuilder(datasets.GeneratorBasedBuilder):
    """A builder whose rows come from a [`Source`], which the configuration makes."""

    config: CellBuilderConfig

    @cached_property
    def source(self) -> Source:
        """The source, made when it is first needed."""
        return self.config.make_source()

    def __getstate__(self) -> dict[str, Any]:
        # The source can be large, and each process of a parallel build makes it again.
        return {key: value for key, value in super().__getstate__().items() if key != "source"}

    def cell_features(self) -> datasets.Features:
        """The features of the source's cells."""
        return cell_features(self.source.channel_names, self.source.image_size)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        fields = self.source.fields
        splits = row_splitter(fields, self.config.split, self.config.held_out)(fields)
        return [
            datasets.SplitGenerator(
                name=str(split),
                gen_kwargs={"plates": sorted(fields.loc[splits == split, "plate"].unique()), "split": str(split)},
            )
            for split in (datasets.Split.TRAIN, datasets.Split.TEST)
            if (splits == split).any()
        ]

    def _generate_examples(self, plates: list[str], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        split_of = row_splitter(self.source.fields, self.config.split, self.config.held_out)
        for plate in plates:
            log = PlateLog()
            with tempfile.TemporaryDirectory(prefix="cellfluxrl-crops-") as scratch:
                number = 0
                for cells in self.source.read(plate, log, Path(scratch)):
                    rows = cells.rows.assign(split=split_of(cells.rows))
                    chosen = np.flatnonzero(rows["split"] == split)
                    for image, row in zip(cells.images[chosen], rows.iloc[chosen].to_dict("records"), strict=True):
                        yield f"{plate}-{number}", {"image": image, **row}
                        number += 1
            logger = datasets.logging.get_logger(__name__)
            if log.problems:
                skipped = "Plate %s: %d fields or crops were skipped, the first is %s"
                logger.warning(skipped, plate, len(log.problems), log.problems[0])
            for warning in log.warnings:
                logger.warning("Plate %s: %s", plate, warning)
