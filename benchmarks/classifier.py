"""Crops per second of the MoA classifier on one core, and its accuracy and calibration on held-out plates.

    OMP_NUM_THREADS=1 python benchmarks/classifier.py
    OMP_NUM_THREADS=1 python benchmarks/classifier.py --data_dir DIR     and train it on real crops, PLATE.npz a plate

Accuracy is that of the configuration in training/configs. The held-out cells are also shown blurred, noisy and dimmed:
what a generated image may be without meaning another mechanism.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from cellfluxrl import MoAClassifier
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor, to_uint8
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import moa
from cellfluxrl.training.common import load_labelled_cells, make_accelerator
from cellfluxrl.training.options import parse_arguments

BATCH, BATCHES = 256, 8
CONFIGS = files("cellfluxrl.training") / "configs"


def throughput(classifier: MoAClassifier, image_size: int) -> float:
    """Crops per second: the best of a few batches, the one least disturbed by other programs."""
    images = 2 * torch.rand(BATCH, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) - 1
    seconds = []
    with torch.inference_mode():
        classifier(images)
        for _ in range(BATCHES):
            start = time.perf_counter()
            classifier(images)
            seconds.append(time.perf_counter() - start)
    return BATCH / min(seconds)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Half way to the mean over 3x3 pixels."""
    return images.lerp(F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1), 0.5)


def noisy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=seeded_generator(0, "noise"))
    return images + 0.04 * noise


def dimmed(images: torch.Tensor) -> torch.Tensor:
    """15 % darker."""
    return 0.85 * (images + 1) - 1


def changed(cells: datasets.Dataset, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """The images of a data set, changed, as uint8."""
    return to_uint8(change(images_to_tensor(open_images(cells)[:])))


def trained_table(args: moa.MoAArguments, accelerator: Accelerator) -> None:
    """Train, and print one row for each kind of held-out cells."""
    cells = load_labelled_cells(args)
    start = time.process_time()
    classifier, metrics = moa.train(args, accelerator, cells)
    print(f"{args.max_train_steps} steps in {time.process_time() - start:.0f} s of processor time")
    labels = classifier.class_indices(cells["test"]["moa"])
    rows = {"calibration cells": metrics["calibration"], "held-out plates": metrics}
    for change in (blurred, noisy, dimmed):
        logits, _ = moa.predict(classifier, torch.from_numpy(changed(cells["test"], change)))
        name = f"held-out plates, {change.__name__}"
        rows[name] = moa.classification_metrics(logits, labels, metrics["temperature"])
    for name, row in rows.items():
        print(f"{name:>24}: {moa.describe(row)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=os.environ.get("CELLFLUXRL_BBBC021_DIR"), help="folder of real crops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simulated", action="store_true", help="train on simulated cells too")
    given = parser.parse_args()
    torch.set_num_threads(1)

    classifier = MoAClassifier(moas=[CONTROL, *MOAS]).eval()
    print(f"{sum(p.numel() for p in classifier.parameters()):,} parameters, {len(MOAS) + 1} classes, one core")
    for image_size in (48, 96):
        print(f"{image_size}x{image_size}: {throughput(classifier, image_size):6.0f} crops/s in batches of {BATCH}")

    for name, options in (
        ("simulated", [] if given.simulated else None),
        ("bbbc021", ["--data_dir", given.data_dir] if given.data_dir else None),
    ):
        if options is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            shared = ["--config", str(CONFIGS / f"{name}.yaml"), "--output_dir", folder, "--cpu"]
            args = parse_arguments(moa.MoAArguments, "moa", "", [*shared, "--seed", str(given.seed), *options])
            print(f"\n{name}.yaml, seed {given.seed}")
            trained_table(args, make_accelerator(args))


if __name__ == "__main__":
    main()
