"""Which cells are for training and which for testing, by the protocols that are published for BBBC021."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import numpy as np
import pandas as pd

from cellfluxrl.data.compounds import CELLFLUX_HELD_OUT
from cellfluxrl.errors import unknown_name

SCHEMES = ("plate", "cellflux", "leave_one_compound_out", "leave_one_batch_out", "published")
WELL_COLUMNS = ("plate", "batch", "well", "compound", "concentration", "is_control")
# What its publisher did not train on is not trained on here either.
PUBLISHED_SPLITS = {"train": "train", "test": "test", "val": "test", "ood": "test"}


def assign_splits(wells: pd.DataFrame, scheme: str, held_out: Sequence[str] = ()) -> pd.Series:
    """Assign each row of a table to "train" or "test".

    Rows may be wells, fields of view or cells: the split of a row depends on which wells there are, never on their
    order or on how often each is listed, and all rows of a well are in one split. (`"published"` takes rows as they
    are.)

    The schemes:

    - `"plate"`: the plates in `held_out` are the test split; without it the last (sorted) plate with treated cells,
      if there are two or more, else nothing is. New cells of known compounds on a new plate.
    - `"cellflux"`: CellFlux's eight held-out compounds (`CELLFLUX_HELD_OUT`) are the test split.
    - `"leave_one_compound_out"`: all doses of one compound are. Ljosa et al. (2013) judge profiles so: a compound's
      mechanism is predicted from other compounds ("not same compound").
    - `"leave_one_batch_out"`: all plates of one batch are; a batch of BBBC021 is a week. Together with the former it
      is the "not same compound or batch" of Ando et al. (2017).
    - `"published"`: the column `split` decides, as it came with the data (IMPA's table): "test", "val" and "ood" are
      the test split.

    Where the compounds of one plate fall in both splits, its control wells are divided between the two in proportion
    to its treated wells, at least one each, evenly along the sorted wells, so that no control is in both. Else the
    controls go where the plate's treated wells are. Plates of controls alone are trained on, except in scheme
    `"plate"` or `"leave_one_batch_out"` where they are held out by name.

    Args:
        wells: Has the columns `WELL_COLUMNS`; `is_control` is boolean.
        scheme: One of `SCHEMES`.
        held_out: What is held out: plates, or exactly one compound or batch; empty for `"cellflux"` and `"published"`.

    Raises:
        ValueError: For an unknown scheme, a name to hold out that is not there, a split without treated cells, a
            plate with treated cells in both splits and a single control well, or a table that contradicts itself.

    Example:
        >>> plate = {"plate": "Week1_1", "batch": "Week1", "concentration": 1.0}
        >>> wells = pd.DataFrame([
        ...     {**plate, "well": "B02", "compound": "DMSO", "is_control": True},
        ...     {**plate, "well": "B03", "compound": "taxol", "is_control": False},
        ...     {**plate, "well": "B04", "compound": "emetine", "is_control": False},
        ...     {**plate, "well": "G11", "compound": "DMSO", "is_control": True},
        ... ])
        >>> assign_splits(wells, "leave_one_compound_out", ["taxol"]).tolist()
        ['train', 'test', 'train', 'test']
    """
    if scheme not in SCHEMES:
        raise unknown_name("split scheme", scheme, SCHEMES)
    if isinstance(held_out, str):
        raise ValueError(f"held_out must be a sequence of names, got the string {held_out!r}; give [{held_out!r}]")
    held_out = list(held_out)
    _check_table(wells)
    treated = wells[~wells["is_control"]]
    if scheme == "published":
        _check_held_out(scheme, held_out, count=0)
        in_test = _published(wells)
    elif scheme == "cellflux":
        _check_held_out(scheme, held_out, count=0)
        in_test = _by_compound(wells, CELLFLUX_HELD_OUT)
    elif scheme == "leave_one_compound_out":
        _check_held_out(scheme, held_out, count=1, kind="compound", allowed=treated["compound"])
        in_test = _by_compound(wells, held_out)
    elif scheme == "leave_one_batch_out":
        _check_held_out(scheme, held_out, count=1, kind="batch", allowed=wells["batch"])
        in_test = wells["batch"].isin(held_out)
    else:
        _check_held_out(scheme, held_out, kind="plate", allowed=wells["plate"])
        treated_plates = sorted(treated["plate"].unique())
        if not held_out and len(treated_plates) < 2:
            return _as_splits(np.zeros(len(wells), dtype=bool), wells)
        in_test = wells["plate"].isin(held_out or treated_plates[-1:])
    splits = _as_splits(in_test, wells)
    for split in ("train", "test"):
        if not ((splits == split) & ~wells["is_control"]).any():
            raise ValueError(f"scheme {scheme!r}, held_out {held_out}: no treated cell is in the {split} split")
    return splits


def batch_of(plate: str) -> str:
    """The batch of a plate: what is before the last underscore (`Week4` of `Week4_27821`), or the plate itself."""
    return plate.rpartition("_")[0] or plate


def resplit(
    dataset: datasets.Dataset | datasets.DatasetDict, scheme: str, held_out: Sequence[str] = ()
) -> datasets.DatasetDict:
    """Assign the cells of a data set to the splits `train` and, unless it is empty, `test`, and its column `split`.

    Images are not copied, but for a data set whose rows had been selected or shuffled; to go through folds, split the
    data set as it was loaded again each time. Batches are those of [`batch_of`].
    """
    if isinstance(dataset, datasets.DatasetDict):
        dataset = datasets.concatenate_datasets(list(dataset.values()))
    columns = [column for column in (*WELL_COLUMNS, "split") if column != "batch"]
    wells = dataset.select_columns(columns).with_format(None).to_pandas()
    wells["batch"] = wells["plate"].map(batch_of)
    splits = assign_splits(wells, scheme, held_out).to_numpy()
    # The column is replaced before rows are selected, which would otherwise be written out for it.
    column = datasets.Value("string")
    changed = dataset.remove_columns("split").add_column("split", splits.tolist(), feature=column)
    changed = changed.select_columns(dataset.column_names)
    rows = {split: np.flatnonzero(splits == split) for split in ("train", "test")}
    return datasets.DatasetDict({split: changed.select(chosen) for split, chosen in rows.items() if len(chosen)})


def row_splitter(
    fields: pd.DataFrame, scheme: str, held_out: Sequence[str] = ()
) -> Callable[[pd.DataFrame], np.ndarray]:
    """Decide the splits of a whole screen at once, for rows that come later, a part at a time.

    The function that is returned takes rows with `plate` and `field` (or, for `"published"`, `split`).
    """
    splits = assign_splits(fields, scheme, held_out)
    if scheme == "published":
        return lambda rows: rows["split"].map(PUBLISHED_SPLITS).to_numpy()
    known = dict(zip(zip(fields["plate"], fields["field"], strict=True), splits, strict=True))
    return lambda rows: np.array([known[key] for key in zip(rows["plate"], rows["field"], strict=True)])


def _check_table(wells: pd.DataFrame) -> None:
    missing = [column for column in WELL_COLUMNS if column not in wells]
    if missing:
        raise ValueError(f"the table of wells lacks the columns {missing}; it has {list(wells.columns)}")
    if wells.empty:
        raise ValueError("the table of wells has no rows")
    if not pd.api.types.is_bool_dtype(wells["is_control"]) or wells["is_control"].isna().any():
        raise ValueError(f"is_control must be true or false, got {wells['is_control'].unique().tolist()[:5]}")
    for column in ("plate", "batch", "well", "compound"):
        odd = [value for value in wells[column].unique() if not isinstance(value, str)]
        if odd:
            raise ValueError(f"column {column!r} must hold names, got {odd[0]!r}")
    batches = wells[["plate", "batch"]].drop_duplicates()
    if batches["plate"].duplicated().any():
        plate = batches.loc[batches["plate"].duplicated(), "plate"].iloc[0]
        found = sorted(batches.loc[batches["plate"] == plate, "batch"])
        raise ValueError(f"plate {plate!r} is in more than one batch: {found}")


def _check_held_out(
    scheme: str, held_out: Sequence[str], count: int | None = None, kind: str = "", allowed: Sequence[str] = ()
) -> None:
    if count is not None and len(held_out) != count:
        raise ValueError(f"scheme {scheme!r} needs exactly {count} names in held_out, got {list(held_out)}")
    for name in held_out:
        if name not in set(allowed):
            raise unknown_name(kind, name, set(allowed))


def _as_splits(in_test: pd.Series | np.ndarray, wells: pd.DataFrame) -> pd.Series:
    return pd.Series(np.where(in_test, "test", "train"), index=wells.index, name="split")


def _published(wells: pd.DataFrame) -> pd.Series:
    if "split" not in wells:
        raise ValueError(f"scheme 'published' needs a column 'split'; the table has {list(wells.columns)}")
    for name in wells["split"].unique():
        if name not in PUBLISHED_SPLITS:
            raise unknown_name("published split", name, PUBLISHED_SPLITS)
    return wells["split"].map(PUBLISHED_SPLITS) == "test"


def _by_compound(wells: pd.DataFrame, held_out: Sequence[str]) -> np.ndarray:
    table = wells[["plate", "well", "compound", "is_control"]].drop_duplicates()
    mixed = table.duplicated(["plate", "well"])
    if mixed.any():
        plate, well = table.loc[mixed, ["plate", "well"]].iloc[0]
        found = sorted(table.loc[(table["plate"] == plate) & (table["well"] == well), "compound"])
        raise ValueError(f"well {well!r} of plate {plate!r} has more than one treatment: {found}")
    test_wells = set()
    for plate, on_plate in table.groupby("plate"):
        treated = on_plate[~on_plate["is_control"]]
        held = treated.loc[treated["compound"].isin(held_out), "well"]
        controls = sorted(on_plate.loc[on_plate["is_control"], "well"])
        chosen = _test_controls(plate, controls, num_train=len(treated) - len(held), num_test=len(held))
        test_wells.update((plate, well) for well in (*held, *chosen))
    return np.array([well in test_wells for well in zip(wells["plate"], wells["well"], strict=True)])


def _test_controls(plate: str, controls: list[str], num_train: int, num_test: int) -> list[str]:
    """Those of a plate's control wells that are for testing, given how many treated wells each split has."""
    if num_test == 0:
        return []
    if num_train == 0 or not controls:
        return controls
    if len(controls) == 1:
        raise ValueError(
            f"plate {plate!r} has treated cells in both splits and one control well, {controls[0]!r}, which cannot be "
            "divided between them"
        )
    share = round(len(controls) * num_test / (num_train + num_test))
    count = min(max(share, 1), len(controls) - 1)
    # Evenly spread, as neighbouring wells share the plate's gradients.
    return [controls[(2 * i + 1) * len(controls) // (2 * count)] for i in range(count)]
