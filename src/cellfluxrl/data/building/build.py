"""Plates -> sharded Parquet with metadata: one plate at a time, in processes, and resumed after a kill."""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cellfluxrl.data.building.downloads import ArchiveError, DownloadError
from cellfluxrl.data.card import dataset_card
from cellfluxrl.data.cells import Map, PlateLog, Source
from cellfluxrl.data.info import COUNT_COLUMNS, REPORT_NAME
from cellfluxrl.data.parquet import ShardWriter, encode_cells, row_groups
from cellfluxrl.data.processes import process_map
from cellfluxrl.data.schema import cell_features
from cellfluxrl.data.splits import row_splitter
from cellfluxrl.files import contained_path, locked, write_whole

ASIDE = ".partial"
RESUME = "run the same command again to resume"
SETTINGS = ("source", "settings", "channel_names", "image_size", "split", "plate_names")


class BuildError(ValueError):
    """Some plates could not be built; the others were, and are kept."""


def build_dataset(
    source: Source,
    source_name: str,
    output_dir: str | Path,
    split: str = "plate",
    held_out: Sequence[str] = (),
    num_proc: int = 1,
    license: str | None = None,
) -> dict[str, Any]:
    """Write the cells of a source as `output_dir/data/SPLIT/PLATE-NNNNN.parquet`, with a data set card and a report.

    Finished plates are kept: called again with the same settings, the build resumes with the plate it was in, and the
    result has the same content as if it had never stopped.

    Args:
        source: See `cellfluxrl.data.building.sources.make_source`.
        source_name: Its name, for the report and the card.
        output_dir: A new folder, or that of an earlier build with the same settings.
        split, held_out: See [`assign_splits`].
        num_proc: Processes that cut and encode.
        license: Of a user's plates (source `"folder"`), as the Hub names it, for the card.

    Returns:
        The report, as written to `build_report.json`.

    Raises:
        BuildError: If plates could not be built because their archive is damaged or cannot be downloaded, or none of
            their fields of view can be read.
        ValueError: If `output_dir` holds something else, or is being built into, or an argument is of no use.
        OSError: If the disk is full, or a process was killed.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    if license and source_name != "folder":
        raise ValueError(f"license {license!r} is for the source 'folder': that of {source_name!r} is known")
    folder = Path(output_dir)
    _check_folder(folder, source)
    report = {
        "complete": False,
        "source": source_name,
        "split": {"scheme": split, "held_out": list(held_out)},
        "license": license,
        "channel_names": list(source.channel_names),
        "image_size": source.image_size,
        "settings": source.settings,
        "plate_names": sorted(source.fields["plate"].unique()),
        "plates": {},
        "counts": [],
    }
    split_of = row_splitter(source.fields, split, report["split"]["held_out"])
    with locked(folder, f"another build is writing to {str(folder)!r}"):
        try:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)  # of a build that was killed
            _resume(folder, report)
            failed = _build_plates(source, folder, split_of, report, num_proc)
        except KeyboardInterrupt:
            print(
                f"\n{len(report['plates'])} of {len(report['plate_names'])} plates are finished: {RESUME}",
                file=sys.stderr,
            )
            raise
        finally:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)
        _finish(folder, report, failed)
    return report


def _build_plates(
    source: Source,
    folder: Path,
    split_of: Callable[[pd.DataFrame], np.ndarray],
    report: dict[str, Any],
    num_proc: int,
) -> dict[str, str]:
    """Build what is not in the report yet; returns the plates that could not be built, with the reason."""
    todo = [plate for plate in report["plate_names"] if plate not in report["plates"]]
    failed = {}
    total = int(source.fields["plate"].isin(todo).sum())
    with process_map(num_proc) as map, tqdm(total=total, unit="field", desc="Cutting") as bar:
        for plate in todo:
            bar.set_postfix_str(plate)
            log = PlateLog()
            try:
                files, counts = _build_plate(source, plate, folder, split_of, log, map, bar.update)
            except (ArchiveError, DownloadError) as error:
                failed[plate] = str(error)
                continue
            except OSError as error:
                raise OSError(f"plate {plate}: {error}; finished plates are kept, {RESUME}") from error
            _add(report, plate, {**asdict(log), "files": files}, counts)
            _save_report(folder, report)
    return failed


def _finish(folder: Path, report: dict[str, Any], failed: dict[str, str]) -> None:
    if any(plate["cells"] for plate in report["plates"].values()):
        failed = failed | {
            plate: f"none of its fields of view can be read, the first because: {entry['problems'][0]['reason']}"
            for plate, entry in report["plates"].items()
            if entry["problems"] and not entry["fields"]
        }
    if failed:
        lines = "\n".join(f"  {plate}: {reason}" for plate, reason in sorted(failed.items()))
        raise BuildError(
            f"{len(failed)} of {len(report['plate_names'])} plates could not be built:\n{lines}\n"
            f"the others are kept, {RESUME}"
        )
    if not any(plate["cells"] for plate in report["plates"].values()):
        raise BuildError(f"no cell was found on {', '.join(report['plate_names'])}; see {folder / REPORT_NAME}")
    report["complete"] = True
    card = dataset_card(report)
    write_whole(folder / "README.md", lambda partial: partial.write_text(card, encoding="utf-8"))
    _save_report(folder, report)


def _check_folder(folder: Path, source: Source) -> None:
    """Refuse a folder with something that a build would mix with its own files, and plates that name no file in it."""
    for plate in source.fields["plate"].unique():
        contained_path(folder, f"{plate}-00000.parquet")
    if folder.exists() and not (folder / REPORT_NAME).is_file():
        found = sorted(p.name for p in folder.iterdir() if p.name != "downloads" and not p.name.startswith("."))
        if found:
            raise ValueError(f"{str(folder)!r} holds {found[:5]}, and is not a build: choose another output_dir")


def _resume(folder: Path, report: dict[str, Any]) -> None:
    """Take the finished plates of an earlier build with the same settings into the report, and clear other shards."""
    if (folder / REPORT_NAME).is_file():
        before = _earlier_report(folder / REPORT_NAME)
        _check_same(before, json.loads(json.dumps(report)), folder)
        for plate, entry in before["plates"].items():
            # A plate without readable fields is tried again: its disk may have been away.
            if entry["fields"] and all(_has_rows(folder, name, rows) for name, rows in entry["files"].items()):
                _add(report, plate, entry, [count for count in before["counts"] if count["plate"] == plate])
    kept = {folder / name for entry in report["plates"].values() for name in entry["files"]}
    for plate in report["plate_names"]:
        for path in (folder / "data").glob(f"*/{glob.escape(plate)}-[0-9][0-9][0-9][0-9][0-9].parquet"):
            if path not in kept:
                path.unlink()
    _save_report(folder, report)


def _earlier_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}; delete {str(path.parent)!r}, or choose another output_dir"
        ) from None
    if not isinstance(report, dict) or not {*SETTINGS, "plates", "counts"} <= report.keys():
        raise ValueError(f"{path} is not the report of a build: choose another output_dir")
    return report


def _check_same(before: dict[str, Any], report: dict[str, Any], folder: Path) -> None:
    for key in SETTINGS:
        old, new = before[key], report[key]
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            differing = [(f"{key}.{name}", old.get(name), new.get(name)) for name in names]
        else:
            differing = [(key, old, new)] if old != new else []
        for name, was, now in differing:
            raise ValueError(
                f"{str(folder)!r} was built with {name} {was!r}, now it is {now!r}: "
                "choose another output_dir, or the settings of the build to resume"
            )


def _has_rows(folder: Path, name: str, rows: int) -> bool:
    """Whether a shard is there and whole: after a power failure it may be neither."""
    path = contained_path(folder, *name.split("/"))
    try:
        return pq.read_metadata(path).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def _add(report: dict[str, Any], plate: str, entry: dict[str, Any], counts: list[dict[str, Any]]) -> None:
    """Add a plate in order: the report does not depend on the order in which plates were built."""
    report["plates"] = dict(sorted({**report["plates"], plate: entry}.items()))
    report["counts"] = sorted(report["counts"] + counts, key=lambda count: count["plate"])


def _save_report(folder: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1)
    write_whole(folder / REPORT_NAME, lambda partial: partial.write_text(text, encoding="utf-8"))


def _build_plate(
    source: Source,
    plate: str,
    folder: Path,
    split_of: Callable[[pd.DataFrame], np.ndarray],
    log: PlateLog,
    map: Map,
    progress: Callable[[int], Any],
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Write the shards of a plate aside, then move them into place; returns their row counts, and those of cells."""
    (folder / ASIDE).mkdir(exist_ok=True)
    # A new name: processes of a build that was killed may still write for a moment.
    aside = Path(tempfile.mkdtemp(dir=folder / ASIDE))
    scratch = aside / "crops"
    scratch.mkdir()
    features = cell_features(source.channel_names, source.image_size, published=True)
    counts: Counter[tuple] = Counter()
    writers: dict[str, ShardWriter] = {}
    try:
        for encoded, images in map(encode_cells, row_groups(source.read(plate, log, scratch, map, progress))):
            rows = encoded.assign(split=split_of(encoded))
            counts.update(rows[COUNT_COLUMNS].itertuples(index=False, name=None))
            for split in sorted(set(rows["split"])):
                chosen = np.flatnonzero(rows["split"] == split)
                if split not in writers:
                    writers[split] = ShardWriter(contained_path(aside, split), plate, features)
                writers[split].write(rows.iloc[chosen], [images[i] for i in chosen])
        shards = {f"{split}/{name}": n for split, w in writers.items() for name, n in w.close().items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    for name in shards:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, path)
    shutil.rmtree(aside)
    table = [dict(zip((*COUNT_COLUMNS, "cells"), (*key, counts[key]), strict=True)) for key in sorted(counts)]
    return {f"data/{name}": rows for name, rows in shards.items()}, table
