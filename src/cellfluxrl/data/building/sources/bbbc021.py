"""BBBC021v1 as it is published: tables, and one ZIP archive of 720 TIFF images a plate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cellfluxrl.data.building.bbbc021_index import URL, read_index
from cellfluxrl.data.building.cutting import CropSettings, ImageFile, cut_plate
from cellfluxrl.data.building.downloads import ArchiveError, download, read_checksums, verified_download
from cellfluxrl.data.building.zip_archive import PlateArchive
from cellfluxrl.data.cells import Cells, Map, PlateLog, chosen_plates
from cellfluxrl.data.schema import CHANNEL_NAMES

TABLES = ("BBBC021_v1_image.csv", "BBBC021_v1_moa.csv", "BBBC021_v1_compound.csv")
NUCLEUS_DIAMETER = 32.0


class PublishedArchives:
    """Plates of BBBC021v1 (Ljosa et al., Nature Methods 9, 637, 2012): 240 fields of view of 1024 x 1280 pixels each.

    Args:
        data_dir: Folder with the tables and archives; what is missing is downloaded into it.
        plates: Such as `"Week4_27821"`; all 55 by default.
        labelled_only: Leave out compounds at concentrations that have no mechanism of action; controls stay.
        crop_size, image_size, nucleus_diameter: See [`CropSettings`]; crops are not resized by default.
        base_url: Where the files are published.
        checksums: File in the format of `sha256sum`, to check downloads against.

    Raises:
        ValueError: For an unknown plate, or tables that are damaged.
        OSError: If a table is missing and cannot be downloaded.
    """

    def __init__(
        self,
        data_dir: str | Path,
        plates: Sequence[str] | None = None,
        crop_size: int = 96,
        image_size: int | None = None,
        nucleus_diameter: float = NUCLEUS_DIAMETER,
        base_url: str = URL,
        checksums: str | Path | None = None,
        *,
        labelled_only: bool = False,
    ):
        self.folder = Path(data_dir)
        self.base_url = base_url.rstrip("/") + "/"
        self.checksums = read_checksums(Path(checksums)) if checksums else {}
        for name in TABLES:
            found = [n for n in (name, f"{name}.gz") if (self.folder / n).is_file()]
            self._fetch(found[0] if found else name)
        index = read_index(self.folder)
        chosen = index["plate"].isin(chosen_plates(plates, index["plate"]))
        self.crop_settings = CropSettings(crop_size, crop_size if image_size is None else image_size, nucleus_diameter)
        self.channel_names = CHANNEL_NAMES
        self.image_size = self.crop_settings.image_size
        if labelled_only:
            chosen &= index["moa"] != ""
        self.fields = index[chosen].sort_values(["plate", "well", "site"]).reset_index(drop=True)
        self.settings = {
            "labelled_only": labelled_only,
            "crop_size": crop_size,
            "image_size": self.image_size,
            "nucleus_diameter": nucleus_diameter,
        }

    def _fetch(self, name: str) -> Path:
        """Download a file that is not there; check one that is."""
        path = self.folder / name
        if path.is_file() and (name.startswith(TABLES) or not os.access(self.folder, os.W_OK)):
            # Its checksum cannot be recorded, and that of a table need not be.
            return download(self.base_url + name, path, self.checksums.get(name))
        return verified_download(self.base_url + name, self.folder, self.checksums)

    def read(
        self, plate: str, log: PlateLog, scratch: Path, map: Map = map, progress: Callable[[int], Any] = int
    ) -> Iterator[Cells]:
        """See [`Source`]; an archive that is not in `data_dir` is downloaded first."""
        archive = self._fetch(f"BBBC021_v1_images_{plate}.zip")
        fields = self.fields[self.fields["plate"] == plate]
        names = list(fields[list(self.channel_names)].itertuples(index=False, name=None))
        with PlateArchive(archive) as opened:
            present = {name.rpartition("/")[2] for name in opened.names()}
        if present.isdisjoint(chain(*names)):
            raise ArchiveError(f"{archive} has no image of {plate}, but {sorted(present)[:3]}")
        images = [tuple(ImageFile(name, str(archive)) for name in channels) for channels in names]
        yield from cut_plate(fields, images, self.crop_settings, scratch, log, map, progress)
