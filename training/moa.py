"""Train, calibrate and report a classifier of the mechanism of action; `--help` has examples."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.data.pairs import random_dihedral
from cellfluxrl.data.records import write_record
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.evaluation.statistics.intervals import bootstrap_interval
from cellfluxrl.hub.arguments import hub_repository, publish_run
from cellfluxrl.models.moa_classifier import MoAClassifier, expected_calibration_error
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.terminal import print_json
from cellfluxrl.training.common import Log, load_labelled_cells, make_accelerator
from cellfluxrl.training.options import MoAArguments, parse_script

logger = logging.getLogger(__name__)

# How much plates differ after their normalisation, whose percentiles depend on what was treated on the plate: the mean
# intensity of the controls varies by a tenth (DNA) to a fifth (actin) between real plates.
GAIN_STD, OFFSET_STD = 0.12, 0.03
NOISE_STD = 0.06
SHIFT = 1 / 12


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary what says nothing about the mechanism: orientation, position, focus, gain, background and noise.

    Generated images are smoother than photographs; blur and noise keep that from changing their probabilities.

    Args:
        images: `(N, C, H, H)`; images in [-1, 1].
        generator: What all draws come from.
    """
    images = random_shift(random_dihedral(images, generator), generator)
    count, channels = images.shape[:2]
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=generator) * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    images = images.lerp(blurred, share)
    gain = (GAIN_STD * torch.randn(count, channels, 1, 1, generator=generator)).exp()
    offset = OFFSET_STD * torch.randn(count, channels, 1, 1, generator=generator)
    noise = NOISE_STD * torch.rand(count, 1, 1, 1, generator=generator)
    images = (images + 1) * gain - 1 + offset + noise * torch.randn(images.shape, generator=generator)
    return images.clamp(-1, 1)


def random_shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each of `(N, C, H, H)` images by up to a twelfth of its size along both axes, mirrored at the border."""
    count, channels, size, _ = images.shape
    most = int(SHIFT * size)
    source = torch.arange(size) + torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return images[image, channel, source[0][:, None, :, None], source[1][:, None, None, :]]


def calibration_plate(cells: pd.DataFrame) -> str | None:
    """The plate to calibrate on: of those that can be spared, the one with most MoAs, then the one with fewest cells.

    A plate can be spared if it has at least two MoAs and each of them occurs on another plate too.

    Args:
        cells: `plate` and `moa` of each training cell.

    Returns:
        Its name, `None` if no plate can be spared.
    """
    counts = pd.crosstab(cells["plate"], cells["moa"])
    present = counts > 0
    number = present.sum(axis=1)
    unique = (present & (present.sum(axis=0) == 1)).any(axis=1)
    spare = [plate for plate in counts.index if number[plate] >= 2 and not unique[plate]]
    return min(spare, key=lambda plate: (-number[plate], counts.loc[plate].sum(), plate), default=None)


def calibration_split(cells: datasets.Dataset, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Split training cells into those to train on and those to calibrate on.

    Args:
        cells: Rows of the cell schema.
        share: Share of each MoA's cells that is kept for calibration if no plate can be spared
            ([`calibration_plate`]); with a warning, because cells of the same plates make calibration look better.
        seed: Which cells these are.

    Returns:
        Rows to train on, rows to calibrate on, and what the latter are.

    Raises:
        ValueError: If `share` is not between 0 and 1, or every MoA has a single cell.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1, got {share}")
    table = cells.select_columns(["plate", "moa"]).to_pandas()
    plate = calibration_plate(table)
    if plate is not None:
        held, source = (table["plate"] == plate).to_numpy(), f"plate {plate}"
    else:
        order = torch.randperm(len(table), generator=seeded_generator(seed, "validation split")).numpy()
        moas = table["moa"].iloc[order]
        size = moas.map(moas.value_counts())
        held = np.empty(len(table), dtype=bool)
        held[order] = moas.groupby(moas).cumcount() < np.minimum(np.ceil(share * size), size - 1)
        if not held.any():
            raise ValueError(f"no cell can be kept for calibration: each of the {len(table)} MoAs has a single cell")
        source = "cells of the training plates"
        logger.warning(
            "no plate can be kept for calibration without losing a mechanism: %d cells of the training plates are, "
            "which makes the calibration optimistic",
            held.sum(),
        )
    kept, held = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~held, held))
    return kept, held, source


@torch.no_grad()
def predict(
    classifier: MoAClassifier, images: torch.Tensor, batch_size: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and features of uint8 images, on the CPU."""
    outputs = [classifier(images_to_tensor(chunk).to(classifier.device)) for chunk in images.split(batch_size)]
    return torch.cat([o.logits for o in outputs]).cpu(), torch.cat([o.features for o in outputs]).cpu()


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that minimises the cross-entropy (Guo et al., 2017), searched on a grid from 0.25 to 4."""
    grid = torch.logspace(math.log10(0.25), math.log10(4), 161)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in grid])
    return float(grid[losses.argmin()])


def held_out_metrics(classifier: MoAClassifier, cells: datasets.Dataset) -> dict[str, Any]:
    """[`classification_metrics`] of a data set."""
    logits, _ = predict(classifier, torch.from_numpy(open_images(cells)[:]))
    return classification_metrics(logits, classifier.class_indices(cells["moa"]), float(classifier.temperature))


def classification_metrics(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> dict[str, Any]:
    """Accuracy, balanced accuracy and expected calibration error, the last also before calibration.

    Args:
        logits: `(N, K)`; calibrated logits.
        labels: `(N,)`; true classes.
        temperature: What the logits have been divided by.

    Returns:
        The metrics, their bootstrap `standard_errors` by name, and the number of `cells`.
    """
    probabilities, uncalibrated = logits.softmax(dim=1), (logits * temperature).softmax(dim=1)
    correct = (probabilities.argmax(dim=1) == labels).float()
    metrics = {
        "accuracy": lambda rows: float(correct[rows].mean()),
        "balanced_accuracy": lambda rows: _balanced(correct[rows], labels[rows]),
        "expected_calibration_error": lambda rows: expected_calibration_error(probabilities[rows], labels[rows]),
        "uncalibrated_error": lambda rows: expected_calibration_error(uncalibrated[rows], labels[rows]),
    }
    found = {name: bootstrap_interval(metric, [len(labels)], resamples=50) for name, metric in metrics.items()}
    values: dict[str, Any] = {name: interval.value for name, interval in found.items()}
    errors = {name: interval.error for name, interval in found.items()}
    return values | {"standard_errors": errors, "cells": len(labels)}


def _balanced(correct: torch.Tensor, labels: torch.Tensor) -> float:
    per_class = [float(correct[labels == k].mean()) for k in labels.unique()]
    return sum(per_class) / len(per_class)


def describe(metrics: dict[str, Any]) -> str:
    """One line: the metrics with their standard errors."""
    shown = {name: f"{metrics[name]:.3f} ± {error:.3f}" for name, error in metrics["standard_errors"].items()}
    return (
        f"{metrics['cells']} cells: accuracy {shown['accuracy']}, balanced accuracy {shown['balanced_accuracy']}, "
        f"expected calibration error {shown['expected_calibration_error']} "
        f"(before calibration {shown['uncalibrated_error']})"
    )


def train(
    args: MoAArguments, accelerator: Accelerator, cells: datasets.DatasetDict | None = None
) -> tuple[MoAClassifier, dict[str, Any]]:
    """Train, calibrate, report on the test plates and save; returns the classifier and its metrics."""
    cells = cells or load_labelled_cells(args)
    images = open_images(cells["train"])
    kept, held, held_source = calibration_split(cells["train"], args.validation_share, args.seed)
    torch.manual_seed(args.seed)
    classifier = MoAClassifier(
        moas=sorted(set(cells["train"]["moa"])),
        channel_names=list(channel_names_of(cells["train"])),
        width=args.width,
        image_size=args.network_image_size,
    )
    labels = classifier.class_indices(cells["train"]["moa"])
    _standardise(classifier, images, kept)
    classifier = _optimise(args, accelerator, classifier, images, labels, kept)

    logits, _ = predict(classifier, torch.from_numpy(images[held.numpy()]))
    temperature = fit_temperature(logits, labels[held])
    classifier.temperature.fill_(temperature)
    metrics = held_out_metrics(classifier, cells["test"]) | {
        "temperature": temperature,
        "calibrated_on": held_source,
        "calibration": classification_metrics(logits / temperature, labels[held], temperature),
    }
    if accelerator.is_main_process:
        classifier.save_pretrained(args.output_dir)
        (Path(args.output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2))
        write_record(args.output_dir, "moa", args, cells)
        if not args.json:
            print(f"calibrated on {held_source}, {describe(metrics['calibration'])}; temperature {temperature:.2f}")
            print(f"held-out plates, {describe(metrics)}")
    accelerator.wait_for_everyone()
    return classifier, metrics


def _standardise(classifier: MoAClassifier, images: Any, rows: torch.Tensor) -> None:
    """Let the network standardise each channel by the mean and standard deviation over the pixels of some images."""
    count, first, second = 0, 0.0, 0.0
    for chunk in rows.split(1024):
        pixels = images_to_tensor(images[chunk.numpy()]).double().transpose(0, 1).flatten(1)
        count, first, second = count + pixels.shape[1], first + pixels.sum(1), second + pixels.square().sum(1)
    mean = first / count
    classifier.channel_mean.copy_(mean)
    classifier.channel_std.copy_((second / count - mean.square()).clamp(min=1e-6).sqrt())


def _optimise(
    args: MoAArguments,
    accelerator: Accelerator,
    classifier: MoAClassifier,
    images: Any,
    labels: torch.Tensor,
    rows: torch.Tensor,
) -> MoAClassifier:
    """Train on the chosen rows; every step's batch depends on the seed and the step alone."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    model, optimizer = accelerator.prepare(classifier, optimizer)
    schedule = OneCycleLR(optimizer.optimizer, args.learning_rate, total_steps=args.max_train_steps)
    # Classes are balanced by the draw: controls outnumber every mechanism on a plate.
    class_weights = 1 / torch.bincount(labels[rows]).float()
    log = Log(accelerator, args.output_dir)
    batch_size = args.train_batch_size * accelerator.num_processes
    share = slice(
        accelerator.process_index * args.train_batch_size, (accelerator.process_index + 1) * args.train_batch_size
    )
    model.train()
    progress = tqdm(range(args.max_train_steps), desc="MoA classifier", disable=not accelerator.is_main_process)
    for step in progress:
        generator = seeded_generator(args.seed, "classifier", step)
        drawn = rows[torch.multinomial(class_weights[labels[rows]], batch_size, replacement=True, generator=generator)]
        batch = augment(images_to_tensor(images[drawn.numpy()]), generator)[share].to(accelerator.device)
        logits = model(batch, return_dict=False)[0]
        target = labels[drawn][share].to(logits.device)
        loss = F.cross_entropy(logits, target)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % args.log_steps == 0:
            log.write(step + 1, {"loss": float(loss.detach())})
            progress.set_postfix(loss=f"{float(loss.detach()):.3f}")
    # The accelerator wrapped the forward pass for training; calibration and use are in float32.
    return accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()


def launch(args: MoAArguments) -> None:
    """Train in as many processes as `accelerate` has started, and print how good the classifier is."""
    repo_id = hub_repository(args)
    accelerator = make_accelerator(args, tensorboard=True)
    _, metrics = train(args, accelerator)
    if repo_id and accelerator.is_main_process:
        publish_run(args, repo_id, MoAClassifier)
    if args.json and accelerator.is_main_process:
        print_json(metrics)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    launch(parse_script(MoAArguments, argv))


if __name__ == "__main__":
    main(sys.argv[1:])
