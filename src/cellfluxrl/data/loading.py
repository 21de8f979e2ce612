"""Data sets of cells by name: a folder, `org/name` on the Hub, simulated cells, or a folder of raw crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import datasets

from cellfluxrl.data.schema import image_shape
from cellfluxrl.data.splits import resplit
from cellfluxrl.errors import check_found, unknown_name

logger = logging.getLogger(__name__)


def load_cells(
    name: str,
    cache_dir: str | Path,
    image_size: int,
    data_dir: str | None = None,
    test_plates: Sequence[str] | None = None,
    cells_per_moa: int = 400,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Load the training and test cells of a data set.

    Args:
        name: `"simulated"`, `"crops"`, or what [`load_split`] takes.
        cache_dir: Where simulated cells and raw crops are built, once.
        image_size: Height and width of the crops.
        data_dir: Of `"crops"`, the folder with one `PLATE.npz` a plate.
        test_plates: The plates of the test split; by default the last treated plate, or the split of the data set.
        cells_per_moa: Of `"simulated"`, the treated cells of each mechanism, and the controls of each plate.
        seed: Of `"simulated"`.
    """
    common = {"cache_dir": str(cache_dir), "held_out": tuple(test_plates or ()), "image_size": image_size}
    # Imported here because loading a finished data set needs none of what builds one.
    if name == "simulated":
        from cellfluxrl.data.builders.simulated_cells import SimulatedCells

        builder = SimulatedCells(cells_per_moa=cells_per_moa, controls_per_plate=cells_per_moa, seed=seed, **common)
    elif name == "crops":
        from cellfluxrl.data.builders.bbbc021 import BBBC021

        builder = BBBC021(config_name="crops", data_dir=data_dir, **common)
    else:
        return _load_finished(name, image_size, test_plates)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    if "test" not in splits:
        raise ValueError(f"{data_dir!r} has fewer than two treated plates: name the held-out ones in test_plates")
    return splits


def _load_finished(name: str, image_size: int, test_plates: Sequence[str] | None) -> datasets.DatasetDict:
    if not Path(name).is_dir() and "/" not in name:
        raise unknown_name("dataset_name", name, ("simulated", "crops", "a folder", "org/name on the Hub"))
    splits = _load(name)
    if test_plates:
        splits = resplit(splits, "plate", test_plates)
    elif isinstance(splits, datasets.Dataset):
        splits = datasets.DatasetDict(train=splits)
    missing = sorted({"train", "test"} - set(splits))
    if missing:
        raise ValueError(f"data set {name!r} has no {missing[0]} split; name the held-out plates in test_plates")
    size = image_shape(splits["train"])[-1]
    if size != image_size:
        raise ValueError(
            f"the crops of {name!r} are {size} pixels wide, image_size is {image_size}: "
            f"pass --image_size {size}, or build them with --image_size {image_size}"
        )
    return splits


def with_known_moa(cells: datasets.DatasetDict) -> datasets.DatasetDict:
    """Leave out the cells whose compound, at its concentration, has no known mechanism of action, with a warning."""
    kept = {}
    for name, split in cells.items():
        known = [i for i, moa in enumerate(split["moa"]) if moa]
        kept[name] = split
        if len(known) < len(split):
            logger.warning("%s: %d cells without a mechanism of action are left out", name, len(split) - len(known))
            kept[name] = split.select(known)
    return datasets.DatasetDict(kept)


def load_split(name: str, split: str) -> datasets.Dataset:
    """Load a split of a data set; a `Dataset` that was saved alone has none, and is taken whole.

    `name` is a folder that `cellfluxrl data build` made, one of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`,
    or `"org/name"` on the Hub.
    """
    loaded = _load(name)
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise unknown_name(f"split of the data set {name!r}:", split, loaded)
    return loaded[split]


def is_dataset(path: Path) -> bool:
    """Whether a folder is a data set, rather than a folder of images."""
    return _is_saved(path) or any(path.glob("data/*/*.parquet")) or any(path.glob("*.parquet"))


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _load(name: str) -> datasets.Dataset | datasets.DatasetDict:
    check_found("data set", name)
    if _is_saved(Path(name)):
        return datasets.load_from_disk(name)
    try:
        return datasets.load_dataset(name)
    except (ValueError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = ConnectionError if isinstance(error, ConnectionError) else ValueError
        raise kind(f"the data set {name!r} cannot be loaded: {first_line}") from error
