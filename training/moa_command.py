"""`cellfluxrl moa`: its options, which are known and checked without loading torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from cellfluxrl.arguments import CommandParser, argument_parser, option, parse_arguments
from cellfluxrl.hub.arguments import HubArguments


@dataclass
class MoAArguments(HubArguments):
    """Train a classifier of the mechanism of action, calibrate it, and report its accuracy and calibration.

    Calibration takes a training plate that the network does not see; the report takes the test plates. Writes the
    classifier (MoAClassifier.from_pretrained loads it), metrics.json and log.jsonl.

    To train on several devices: accelerate launch -m cellfluxrl.training.moa [options].

    Examples:
      cellfluxrl moa --dataset_name my_cells --output_dir runs/moa
      cellfluxrl moa --dataset_name my_cells --output_dir runs/judge --seed 101 --width 24 --json
      accelerate launch training/moa.py --config training/configs/simulated.yaml
    """

    width: int = option(16, "channels of the network at half its image size")
    network_image_size: int = option(48, "height and width to which the network resamples the crops")
    train_batch_size: int = option(64, "cells a step and process")
    max_train_steps: int = option(1000, "optimisation steps")
    learning_rate: float = option(5e-3, "peak of the one-cycle schedule")
    weight_decay: float = option(0.01, "of AdamW")
    validation_share: float = option(0.1, "share of the training cells kept for calibration if no plate can be")
    log_steps: int = option(10, "steps between lines of log.jsonl")
    json: bool = option(False, "print the result as JSON, and nothing else")


def parser() -> CommandParser:
    return argument_parser(MoAArguments, "cellfluxrl moa", inspect.getdoc(MoAArguments))


def parse(argv: Sequence[str] | None = None) -> MoAArguments:
    """The options; a mistake ends the process with one line."""
    return parse_arguments(MoAArguments, "moa", inspect.getdoc(MoAArguments), argv, prog="cellfluxrl moa")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from cellfluxrl.training.moa import launch

    launch(args)
