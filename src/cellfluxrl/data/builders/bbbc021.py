"""BBBC021, and other plates in its schema, as a `datasets` builder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from pandas.util import hash_pandas_object

from cellfluxrl.data.builders.cell_builder import CellBuilder, CellBuilderConfig
from cellfluxrl.data.building.sources import SOURCES, make_source
from cellfluxrl.data.card import ORIGINS
from cellfluxrl.data.cells import Source


@dataclass
class BBBC021Config(CellBuilderConfig):
    """What [`BBBC021`] is built from.

    Args:
        image_size: Height and width of the crops; by default they keep theirs.
        plates: All by default.
        table: The CSV file of the sources `"impa"` and `"folder"`.
        settings: Further arguments of the source, for example `{"crop_size": 64}`.
    """

    image_size: int | None = None
    plates: tuple[str, ...] | None = None
    table: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def make_source(self) -> Source:
        """Make the source that the configuration is named after."""
        fields = {"data_dir": self.data_dir, "table": self.table, "plates": self.plates, "image_size": self.image_size}
        for name in fields.keys() & self.settings:
            raise ValueError(f"{name!r} is an argument of the builder, not one of the settings")
        return make_source(self.name, **fields, **self.settings)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache after the files too: those that were changed in place must not be taken from it."""
        return super().create_config_id({**config_kwargs, "files": self._stamp()}, custom_features)

    def _stamp(self) -> Any:
        if self.name == "bbbc021":
            # Its archives arrive while it works, and are then checked against their SHA-256.
            fields = self.make_source().fields
            return hashlib.sha256(hash_pandas_object(fields, index=False).to_numpy()).hexdigest()
        files = sorted(Path(self.data_dir).glob("*.*")) if self.data_dir else []
        files += [Path(self.table)] if self.table else []
        return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]


class BBBC021(CellBuilder):
    """Single-cell crops of the BBBC021v1 image set (Caie et al., 2010; Ljosa et al., 2012), or of other plates.

    The configurations are named after the sources in `cellfluxrl.data.building.sources`:

    - `"bbbc021"`: the published ZIP archives in `data_dir`; what is missing is downloaded into it (an archive that is
      replaced later is not noticed: `download_and_prepare(download_mode="force_redownload")` reads it again);
    - `"impa"`: the crops of IMPA and CellFlux in `data_dir`, with their index `table`;
    - `"folder"`: anybody's plates, described by a CSV file `table` ([`PlateFolder`]);
    - `"crops"`: one `PLATE.npz` of raw crops a plate in `data_dir` ([`CropFolder`]);
    - `"simulated"`: rendered cells.

    For whole screens use `cellfluxrl data build`, which works in processes and resumes after a kill; this builder is
    for notebooks, and streams: `as_streaming_dataset()`.

    Example:
        >>> builder = BBBC021(config_name="crops", data_dir="crops/", image_size=48)  # doctest: +SKIP
        >>> builder.download_and_prepare()                                            # doctest: +SKIP
        >>> train = builder.as_dataset(split="train")                                 # doctest: +SKIP
    """

    config: BBBC021Config
    BUILDER_CONFIG_CLASS = BBBC021Config
    BUILDER_CONFIGS = [BBBC021Config(name=name, version=datasets.Version("1.1.0")) for name in SOURCES]
    DEFAULT_CONFIG_NAME = "bbbc021"

    def _info(self) -> datasets.DatasetInfo:
        origin = ORIGINS[self.config.name]
        return datasets.DatasetInfo(
            description=origin.what, citation=origin.citation, license=origin.terms, features=self.cell_features()
        )
