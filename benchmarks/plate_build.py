"""A plate in BBBC021's published layout, from a web server to Parquet: speed, and nuclei found.

    python benchmarks/plate_build.py [--index BBBC021_v1_image.csv.gz --plate Week4_27821]

The plate is simulated (240 fields of view, 3 x 1024 x 1280, 16-bit TIFF in a ZIP), with the rows of the published
index if that is given, and is served over HTTP on loopback. `cellfluxrl data build` is compared with a
straightforward loop over fields that does the same with tifffile and scikit-image in one process.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy import ndimage as ndi
from scipy.spatial import cKDTree
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import regionprops
from skimage.segmentation import watershed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from data.synthetic_plate import SyntheticPlate, published_rows, write_plate, write_tables
from file_server import FileServer

CROP_SIZE = 96
CHANNELS = ("DAPI", "Tubulin", "Actin")


def straightforward_loop(archive: Path, rows: pd.DataFrame, output: Path) -> int:
    """Read, correct, segment, cut, stretch and write: one field after the other, at full resolution."""
    with zipfile.ZipFile(archive) as file:
        names = {Path(name).name: name for name in file.namelist()}

        def read(row: pd.Series) -> np.ndarray:
            return np.stack(
                [tifffile.imread(io.BytesIO(file.read(names[row[f"Image_FileName_{c}"]]))) for c in CHANNELS]
            )

        sites = rows["Image_FileName_DAPI"].str.extract(r"_s(\d)_")[0]
        illumination = {}
        for site in sorted(set(sites)):
            mean = np.mean([read(row) for _, row in rows[sites == site].iterrows()], axis=0)
            smooth = np.stack([gaussian(channel, 50) for channel in mean])
            illumination[site] = smooth / np.percentile(smooth, 2, axis=(1, 2), keepdims=True)
        crops, fields = [], []
        for (_, row), site in zip(rows.iterrows(), sites, strict=True):
            images = read(row) / illumination[site]
            smooth = gaussian(images[0], 2)
            mask = smooth > threshold_otsu(smooth)
            distance = gaussian(ndi.distance_transform_edt(mask), 2)
            peaks = peak_local_max(distance, min_distance=8, labels=ndi.label(mask)[0])
            markers = np.zeros(mask.shape, int)
            markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
            for region in regionprops(watershed(-distance, markers, mask=mask)):
                top, left = (round(center) - CROP_SIZE // 2 for center in region.centroid)
                crop = images[:, max(top, 0) : top + CROP_SIZE, max(left, 0) : left + CROP_SIZE]
                if region.area > 200 and crop.shape[1:] == (CROP_SIZE, CROP_SIZE):
                    crops.append(crop.astype(np.uint16))
                    fields.append(row["Image_FileName_DAPI"])
    roots = np.sqrt(np.stack(crops).astype(np.float32))
    low, high = np.percentile(roots, [0.5, 99.7], axis=(0, 2, 3))[:, None, :, None, None]
    images = np.round(255 * np.clip((roots - low) / (high - low), 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    pictures = [Image.fromarray(np.ascontiguousarray(image[..., ::-1])) for image in images]
    features = datasets.Features({"image": datasets.Image(), "field": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": pictures, "field": fields}, features=features).to_parquet(output)
    return len(crops)


def nuclei_found(folder: Path, plate: SyntheticPlate, shape: tuple[int, int]) -> tuple[float, float]:
    """Share of true nuclei, away from the border, with a crop centred within half a radius; share of crops on one."""
    parts = [
        datasets.Dataset.from_parquet(str(path)).select_columns(["field", "x", "y"]).to_pandas()
        for path in sorted(folder.glob("data/*/*.parquet"))
    ]
    crops = dict(list(pd.concat(parts).groupby("field")))
    margin = CROP_SIZE / 2 + 1
    found = expected = correct = 0
    for field, truth in plate.truth.groupby("field"):
        places = crops[field][["y", "x"]].to_numpy() if field in crops else np.empty((0, 2))
        nuclei = truth[["row", "column"]].to_numpy()
        distance, _ = cKDTree(nuclei).query(places) if len(places) else (np.empty(0), None)
        correct += int((distance <= truth["diameter"].mean() / 2).sum())
        inside = ((nuclei >= margin) & (nuclei <= np.array(shape) - margin)).all(axis=1)
        expected += int(inside.sum())
        if len(places):
            nearest, _ = cKDTree(places).query(nuclei[inside])
            found += int((nearest <= truth["diameter"].to_numpy()[inside] / 4).sum())
    return found / expected, correct / sum(map(len, crops.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="the published BBBC021_v1_image.csv; rows are invented without")
    parser.add_argument("--plate", default="Week4_27821")
    parser.add_argument("--cells_per_field", type=float, default=50)
    parser.add_argument("--num_proc", type=int, default=2)
    args = parser.parse_args()
    shape = (1024, 1280)
    if args.index:
        rows = pd.read_csv(args.index)
        rows = rows[rows["Image_Metadata_Plate_DAPI"] == args.plate]
    else:
        doses = [(name, 1.0) for name in ("taxol", "nocodazole", "cytochalasin B", "AZ138", "cisplatin")]
        rows = published_rows(args.plate, (("DMSO", 0.0), *doses), wells_per_compound=10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plate = write_plate(folder / "web", rows, shape, args.cells_per_field)
        write_tables(folder / "web", rows)
        with FileServer(folder / "web") as server:
            command = [sys.executable, "-m", "cellfluxrl.commands.cli", "data", "build", "--source", "bbbc021"]
            command += ["--base_url", server.url, "--output_dir", str(folder / "built"), "--plates", args.plate]
            start = time.perf_counter()
            subprocess.run([*command, "--num_proc", str(args.num_proc)], check=True)
            ours = time.perf_counter() - start
        recall, precision = nuclei_found(folder / "built", plate, shape)
        start = time.perf_counter()
        cut = straightforward_loop(plate.archive, rows, folder / "loop.parquet")
        loop = time.perf_counter() - start
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {len(rows)} fields of {shape}")
    print(f"cellfluxrl data build, {args.num_proc} processes, download included: {_speed(ours, len(rows))}")
    print(f"straightforward loop, one process, archive at hand: {_speed(loop, len(rows))}, {cut} crops")
    print(f"ratio: {loop / ours:.2f}")
    print(f"nuclei with a crop: {100 * recall:.1f} %; crops centred on a nucleus: {100 * precision:.1f} %")


def _speed(seconds: float, fields: int) -> str:
    return f"{seconds:.1f} s, {fields / seconds:.1f} fields/s"


if __name__ == "__main__":
    main()
