"""Random access to 10,000 crops in batches of 64, as training reads them.

Run as `OMP_NUM_THREADS=1 python benchmarks/random_access.py` on Linux. Compared are `open_images`, one `.npy` file for
each crop (as the original code bases keep them), and `datasets` itself, for crops as published (PNG in Parquet) and as
arrays. Every way is measured in a process of its own, which imports what training imports to read, opens and reads;
memory is the peak of what is resident, with the imports and mapped files. All files have been read before: no disk is
measured.
"""

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from cellfluxrl.data import pairs  # noqa: F401, what training imports to read
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.schema import cell_features

COUNT, SIZE, BATCH = 10_000, 96, 64
CHANNELS = ("dna", "tubulin", "actin")
SLOW_BATCHES = 10  # of a way that takes milliseconds a crop


def make_crops() -> Iterator[np.ndarray]:
    """Yield COUNT crops of simulated cells, of which a few hundred differ, turned and shifted."""
    from cellfluxrl.data.simulated import MOAS, simulate_cells

    cells = simulate_cells([MOAS[i % len(MOAS)] for i in range(240)], image_size=SIZE).image
    for i in range(COUNT):
        yield np.roll(np.rot90(cells[i % len(cells)], i // len(cells), axes=(1, 2)), i, axis=2)


def rows(published: bool) -> Iterator[dict]:
    """Yield rows of the cell schema."""
    text = dict.fromkeys(("compound", "smiles", "moa", "plate", "well", "field", "split"), "")
    numbers = dict.fromkeys(("concentration", "site", "replicate", "cell_id", "x", "y"), 0)
    for crop in make_crops():
        picture = Image.fromarray(np.ascontiguousarray(crop[::-1].transpose(1, 2, 0))) if published else crop
        yield {"image": picture, "is_control": False, **text, **numbers}


def load(folder: Path, name: str) -> datasets.Dataset:
    """Load the data set of one format, from its Parquet file or from the cache of `datasets`."""
    return datasets.load_dataset(
        "parquet", data_files=str(folder / f"{name}.parquet"), split="train", cache_dir=str(folder / "cache")
    )


def prepare(folder: Path) -> None:
    """Write the data set in both formats, and every crop as a file."""
    for name, published in (("published", True), ("arrays", False)):
        features = cell_features(CHANNELS, SIZE, published=published)
        made = datasets.Dataset.from_generator(
            rows, features=features, gen_kwargs={"published": published}, cache_dir=str(folder / "made")
        )
        made.to_parquet(folder / f"{name}.parquet")
        load(folder, name)
    (folder / "files").mkdir()
    for i, crop in enumerate(make_crops()):
        np.save(folder / "files" / f"{i}.npy", crop)
    start = time.perf_counter()
    open_images(load(folder, "published"))
    print(f"decoding the published data set once: {COUNT / (time.perf_counter() - start):.0f} crops/s")


def reader_of(way: str, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that returns the crops of some rows."""
    if way == "open_images":
        images = open_images(load(folder, "published"))
        return lambda chosen: images[chosen]
    if way == "files":
        return lambda chosen: np.stack([np.load(folder / "files" / f"{i}.npy") for i in chosen])
    cells = load(folder, way).with_format("numpy", columns=["image"])
    return lambda chosen: cells[chosen.tolist()]["image"]


def measure(way: str, folder: Path) -> None:
    """Print crops per second, the best of ten runs after a warm-up, and the peak of resident memory in MB."""
    read = reader_of(way, folder)
    order = np.random.default_rng(0).permutation(COUNT)
    batches = np.array_split(order, COUNT // BATCH)[: None if way in ("open_images", "files") else SLOW_BATCHES]
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        for chosen in batches:
            read(chosen)
        seconds.append(time.perf_counter() - start)
    # Not ru_maxrss, which counts what the parent had when it started this process.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(sum(map(len, batches)) / min(seconds[1:]), int(peak[1]) * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="of files made by an earlier run; by default they are temporary")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    if arguments.measure:
        measure(arguments.measure, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "files").is_dir():
            folder.mkdir(exist_ok=True)
            prepare(folder)
        print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}")
        print(f"{COUNT} crops of {len(CHANNELS)} x {SIZE} x {SIZE} uint8, batches of {BATCH}\n")
        print(f"{'':36}{'crops/s':>10}{'peak MB':>10}")
        titles = {
            "open_images": "open_images",
            "files": "one .npy file a crop, np.load",
            "arrays": "datasets, arrays in Arrow",
            "published": "datasets, as published (PNG)",
        }
        for way, title in titles.items():
            command = [sys.executable, __file__, "--measure", way, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            speed, peak = map(float, done.stdout.split())
            print(f"{title:36}{speed:10.0f}{peak:10.0f}")


if __name__ == "__main__":
    main()
