"""`cellfluxrl pretrain`: its options, which are known and checked without loading torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from cellfluxrl.arguments import CommandParser, argument_parser, option, parse_arguments
from cellfluxrl.hub.arguments import HubArguments


@dataclass
class PretrainArguments(HubArguments):
    """Pretrain the velocity network by flow matching from control to treated cells.

    Writes a pipeline that CellFluxPipeline.from_pretrained loads (averaged weights), checkpoints, and log.jsonl.

    To train on several devices: accelerate launch -m cellfluxrl.training.pretrain [options].

    Examples:
      cellfluxrl pretrain --dataset_name my_cells --output_dir runs/base
      cellfluxrl pretrain --dataset_name my_cells --output_dir runs/base --resume_from_checkpoint latest
      accelerate launch training/pretrain.py --config training/configs/simulated.yaml
      accelerate launch -m cellfluxrl.training.pretrain --dataset_name crops --data_dir crops --output_dir runs/base
    """

    preset: str = option("small", "preset of CellFluxUNet2DModel")
    pretrained_model_name_or_path: str | None = option(None, "a pipeline to go on from, instead of a new network")
    train_batch_size: int = option(32, "pairs a step and process")
    dataloader_num_workers: int = option(0, "processes that read ahead; 0: the training process reads")
    max_train_steps: int = option(1000, "optimisation steps")
    learning_rate: float = option(1e-3, "peak rate; it falls to zero along a cosine")
    lr_warmup_steps: int = option(50, "steps over which the rate rises from zero")
    weight_decay: float = option(0.01, "of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    ema_decay: float = option(0.99, "decay of the averaged weights, which are what is saved")
    condition_norm: str | None = option(None, "'log1p', 'unit_rms' or both as 'log1p_unit_rms'; CellFlux has none")
    log_dose: bool = option(False, "condition on log10 of the concentration, too")
    condition_dropout: float = option(0.2, "probability, per sample, of training without the compound")
    source_noise: str = option("band_limited", "'white' as CellFlux, or 'band_limited'")
    source_noise_scale: float = option(0.7, "standard deviation of the source noise, images being in [-1, 1]")
    source_noise_detail: float = option(0.0, "share of white noise in band-limited noise, as a standard deviation")
    source_noise_probability: float = option(
        1.0, "probability, per sample, that the control gets noise (CellFlux: 0.5)"
    )
    control_gain: float = option(0.0, "spread of the random brightness, as a log, that controls get in each channel")
    solver: str = option("exponential_ab2", "of the saved pipeline, see docs/schedulers.md")
    time_grid: str = option("uniform", "of the saved pipeline: 'uniform' or 'edm'")
    log_steps: int = option(10, "steps between lines of log.jsonl")
    checkpointing_steps: int = option(500, "steps between checkpoints")
    checkpoints_total_limit: int = option(2, "checkpoints that are kept")
    resume_from_checkpoint: str | None = option(None, "'latest', or the folder of a checkpoint")


def parser() -> CommandParser:
    return argument_parser(PretrainArguments, "cellfluxrl pretrain", inspect.getdoc(PretrainArguments))


def parse(argv: Sequence[str] | None = None) -> PretrainArguments:
    """The options; a mistake ends the process with one line."""
    return parse_arguments(
        PretrainArguments, "pretrain", inspect.getdoc(PretrainArguments), argv, prog="cellfluxrl pretrain"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from cellfluxrl.training.pretrain import launch

    launch(args)
