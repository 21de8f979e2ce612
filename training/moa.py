"""Train a classifier of the mechanism of action, and report its accuracy and calibration on held-out plates.

    accelerate launch training/moa.py --config training/configs/simulated.yaml
    accelerate launch training/moa.py --config training/configs/simulated.yaml --seed 101 --width 32

Writes the classifier (`MoAClassifier.from_pretrained`), metrics.json and log.jsonl.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cellfluxrl.arguments import SharedArguments, option, parse_arguments
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.pairs import images_to_tensor, random_dihedral
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.models.moa_classifier import MoAClassifier, expected_calibration_error
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training.common import Log, load_labelled_cells, make_accelerator


@dataclass
class MoAArguments(SharedArguments):
    width: int = option(24, "channels of the first stage")
    train_batch_size: int = option(64, "cells a step and process")
    max_train_steps: int = option(400, "optimisation steps")
    learning_rate: float = option(3e-3, "peak of the one-cycle schedule")
    weight_decay: float = option(0.01, "of AdamW")
    label_smoothing: float = option(0.05, "share of the target given to the other classes")
    validation_share: float = option(0.1, "share of the training cells kept for calibration")
    log_steps: int = option(10, "steps between lines of log.jsonl")


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


def held_out_metrics(classifier: MoAClassifier, cells: datasets.Dataset) -> dict[str, float]:
    """Accuracy, balanced accuracy and expected calibration error."""
    logits, _ = predict(classifier, torch.from_numpy(open_images(cells)[:]))
    labels = classifier.class_indices(cells["moa"])
    probabilities = logits.softmax(dim=1)
    correct = (probabilities.argmax(dim=1) == labels).float()
    per_class = [float(correct[labels == k].mean()) for k in labels.unique()]
    return {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": sum(per_class) / len(per_class),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
        "cells": len(labels),
    }


def train(
    args: MoAArguments, accelerator: Accelerator, cells: datasets.DatasetDict | None = None
) -> tuple[MoAClassifier, dict[str, float]]:
    """Train, calibrate, report on the held-out plates and save; returns the classifier and its metrics."""
    cells = cells or load_labelled_cells(args)
    channel_names = channel_names_of(cells["train"])
    images = open_images(cells["train"])
    moas = sorted(set(cells["train"]["moa"]))
    torch.manual_seed(args.seed)
    classifier = MoAClassifier(moas=moas, channel_names=list(channel_names), width=args.width)
    labels = classifier.class_indices(cells["train"]["moa"])
    order = torch.randperm(len(images), generator=seeded_generator(args.seed, "validation split"))
    held, kept = order.tensor_split([int(args.validation_share * len(order))])

    optimizer = torch.optim.AdamW(classifier.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    model, optimizer = accelerator.prepare(classifier, optimizer)
    schedule = OneCycleLR(optimizer.optimizer, args.learning_rate, total_steps=args.max_train_steps)
    # Classes are balanced by the draw: controls outnumber every mechanism on a plate.
    class_weights = 1 / torch.bincount(labels[kept], minlength=len(moas)).clamp(min=1).float()
    log = Log(accelerator, args.output_dir)
    batch_size = args.train_batch_size * accelerator.num_processes
    share = slice(
        accelerator.process_index * args.train_batch_size, (accelerator.process_index + 1) * args.train_batch_size
    )
    model.train()
    progress = tqdm(range(args.max_train_steps), desc="MoA classifier", disable=not accelerator.is_main_process)
    for step in progress:
        generator = seeded_generator(args.seed, "classifier", step)
        drawn = kept[torch.multinomial(class_weights[labels[kept]], batch_size, replacement=True, generator=generator)]
        batch = random_dihedral(images_to_tensor(images[drawn.numpy()]), generator)[share].to(accelerator.device)
        logits = model(batch, return_dict=False)[0]
        target = labels[drawn][share].to(logits.device)
        loss = F.cross_entropy(logits, target, label_smoothing=args.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % args.log_steps == 0:
            log.write(step + 1, {"loss": float(loss.detach())})
            progress.set_postfix(loss=f"{float(loss.detach()):.3f}")

    # The accelerator wrapped the forward pass for training; calibration and use are in float32.
    classifier = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    logits, _ = predict(classifier, torch.from_numpy(images[held.numpy()]))
    classifier.temperature.fill_(fit_temperature(logits, labels[held]))
    metrics = held_out_metrics(classifier, cells["test"]) | {"temperature": float(classifier.temperature)}
    if accelerator.is_main_process:
        classifier.save_pretrained(args.output_dir)
        (Path(args.output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2))
        accelerator.print(f"held-out plates: {metrics}")
    accelerator.wait_for_everyone()
    return classifier, metrics


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(MoAArguments, "moa", __doc__, argv)
    accelerator = make_accelerator(args)
    train(args, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
