"""BBBC021 as a `datasets` builder."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from skimage.transform import resize

from cellfluxrl.data.compounds import CONTROL, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features
from cellfluxrl.errors import unknown_name

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.7
CROP_FIELDS = ("image", "well", "site", "fov", "cell", "compound", "concentration", "replicate")


def normalize_plate(crops: np.ndarray) -> np.ndarray:
    """
    Square root, then stretch each channel of a plate to [0, 1] between percentiles of ALL its cells.

    Percentiles of the controls alone would saturate treated cells that are brighter.

    Args:
        crops (`numpy.ndarray` of shape `(N, H, W, C)`): Raw intensities of every cell of one plate.

    Returns:
        `numpy.ndarray` of the same shape, float32 in [0, 1].
    """
    roots = np.sqrt(crops.astype(np.float32))
    low, high = np.percentile(roots, [LOW_PERCENTILE, HIGH_PERCENTILE], axis=(0, 1, 2)).astype(np.float32)
    return np.clip((roots - low) / np.maximum(high - low, 1e-6), 0, 1)


def resize_crops(crops: np.ndarray, image_size: int) -> np.ndarray:
    """Resize `(N, H, W, C)` crops with antialiasing to `(N, image_size, image_size, C)`."""
    if crops.shape[1:3] == (image_size, image_size):
        return crops
    shape = (len(crops), image_size, image_size, crops.shape[-1])
    return resize(crops, shape, order=1, anti_aliasing=True).astype(np.float32)


@dataclass
class BBBC021Config(datasets.BuilderConfig):
    """
    Args:
        image_size (`int`, defaults to 48): Height and width of the crops.
        test_plates (`tuple[str, ...]`, *optional*):
            Plates whose cells make the test split; by default the last treated plate, in sorted order.
    """

    image_size: int = 48
    test_plates: tuple[str, ...] | None = None

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        # The cache is named after this: crops that were changed in place must not be taken from it.
        found = sorted(Path(self.data_dir).glob("*.npz")) if self.data_dir else []
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
        return super().create_config_id({**config_kwargs, "files": stamps}, custom_features)


class BBBC021(datasets.GeneratorBasedBuilder):
    """
    Single-cell crops of the BBBC021v1 image set (Caie et al., 2010; Ljosa et al., 2012), split by plate.

    Configuration `"crops"` reads a folder with one `PLATE.npz` a plate: `image` uint16 (N, H, W, 3) in the order DNA,
    beta-tubulin, actin, and per crop `well`, `site`, `fov`, `cell`, `compound`, `concentration` (uM), `replicate`.

    Example:
        >>> builder = BBBC021(config_name="crops", data_dir="crops/", image_size=48)  # doctest: +SKIP
        >>> builder.download_and_prepare()                                            # doctest: +SKIP
        >>> train = builder.as_dataset(split="train")                                 # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = BBBC021Config
    BUILDER_CONFIGS = [BBBC021Config(name="crops", version=datasets.Version("1.0.0"))]
    DEFAULT_CONFIG_NAME = "crops"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="BBBC021v1: MCF-7 cells, 113 compounds at 8 concentrations, DNA, beta-tubulin and actin.",
            homepage="https://bbbc.broadinstitute.org/BBBC021",
            citation="Ljosa V, Sokolnicki KL, Carpenter AE. Nature Methods 9, 637 (2012).",
            features=cell_features(CHANNEL_NAMES, self.config.image_size),
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        plates = _plate_files(self.config.data_dir)
        test_plates = self.config.test_plates
        # Every plate is read before any is processed: errors found later reach the user wrapped by `datasets`.
        compounds = {plate: _compounds_in(path) for plate, path in plates.items()}
        if test_plates is None:
            treated = [plate for plate, names in compounds.items() if names - {CONTROL}]
            test_plates = tuple(treated[-1:]) if len(treated) > 1 else ()
        for plate in test_plates:
            if plate not in plates:
                raise unknown_name("plate", plate, plates)
        groups = {
            datasets.Split.TRAIN: {p: f for p, f in plates.items() if p not in test_plates},
            datasets.Split.TEST: {p: f for p, f in plates.items() if p in test_plates},
        }
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"plates": files, "split": str(split)})
            for split, files in groups.items()
            if files
        ]

    def _generate_examples(self, plates: dict[str, Path], split: str) -> Iterator[tuple[str, dict]]:
        table = known_compounds()
        for plate, path in plates.items():
            crops = _load_crops(path)
            images = resize_crops(normalize_plate(crops["image"]), self.config.image_size)
            images = np.round(255 * images).astype(np.uint8).transpose(0, 3, 1, 2)
            for i, image in enumerate(images):
                compound = str(crops["compound"][i])
                row = {
                    "image": image,
                    "compound": compound,
                    "smiles": table.loc[compound, "smiles"],
                    "concentration": float(crops["concentration"][i]),
                    "moa": table.loc[compound, "moa"],
                    "plate": plate,
                    "well": str(crops["well"][i]),
                    "site": int(crops["site"][i]),
                    "replicate": int(crops["replicate"][i]),
                    "field": str(crops["fov"][i]),
                    "cell_id": int(crops["cell"][i]),
                    "x": float("nan"),
                    "y": float("nan"),
                    "is_control": compound == CONTROL,
                    "split": split,
                }
                yield f"{plate}-{i}", row


def _plate_files(data_dir: str | None) -> dict[str, Path]:
    if data_dir is None:
        raise ValueError('BBBC021(config_name="crops") needs data_dir, a folder with one PLATE.npz a plate')
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not a folder")
    plates = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not plates:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} has no PLATE.npz files; it holds: {found}")
    return plates


def _load_crops(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            crops = {field: archive[field] for field in CROP_FIELDS if field in archive}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a plate of crops: {error}") from error
    missing = [field for field in CROP_FIELDS if field not in crops]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it holds {list(crops)}")
    shape = crops["image"].shape
    if len(shape) != 4 or shape[-1] != len(CHANNEL_NAMES) or shape[0] == 0:
        raise ValueError(f"{path}: image must have shape (N, H, W, {len(CHANNEL_NAMES)}) with N > 0, got {shape}")
    lengths = {field: len(values) for field, values in crops.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: every field must have one entry for each crop, got {lengths}")
    return crops


def _compounds_in(path: Path) -> set[str]:
    names = {str(name) for name in np.unique(_load_crops(path)["compound"])}
    known = known_compounds().index
    for name in sorted(names - set(known)):
        raise unknown_name(f"compound in {path.name}", name, known)
    return names
