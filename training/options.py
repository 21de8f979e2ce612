"""The options of the training scripts; importing them loads no torch, so that `--help` is quick.

The options of the post-training algorithm are declared with it: [`RLSettings`].
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import ClassVar, Literal, TypeVar

from cellfluxrl import arguments
from cellfluxrl.arguments import CommandParser, RunArguments, argument_parser, option, option_group
from cellfluxrl.hub.arguments import HubArguments
from cellfluxrl.rl.settings import RLSettings

CONFIGS = files("cellfluxrl.training") / "configs"

_data = option_group("data")
_network = option_group("network")
_noise = option_group("source noise")
_times = option_group("training times")
_sampling = option_group("sampling of the saved pipeline")
_rollouts = option_group("rollouts")
_rewards = option_group("rewards")
_optimiser = option_group("optimiser")
_progress = option_group("log and checkpoints")


@dataclass
class SharedArguments(RunArguments):
    """What every training script takes; in a YAML file these may stand outside the sections."""

    dataset_name: str = _data(
        "simulated", "'simulated', 'crops' with --data_dir, or a built data set: its folder or its name on the Hub"
    )
    data_dir: str | None = _data(None, "for 'crops': folder with one PLATE.npz a plate")
    test_plates: list[str] | None = _data(None, "plates of the test split; default: the last treated plate")
    image_size: int = _data(48, "height and width of the crops in pixels")
    simulated_cells_per_moa: int = _data(400, "simulated treated cells of each MoA, and controls of each plate")


@dataclass
class TimeArguments:
    """Training times of flow matching, which post-training draws as pretraining did."""

    time_logit_mean: float = _times(1.2, "training times are t = sigmoid(N(mean, std)); lower means earlier, ...")
    time_logit_std: float = _times(1.2, "... where the compound decides; CellFlux has 1.2 and 1.2")


@dataclass
class PretrainArguments(TimeArguments, HubArguments, SharedArguments):
    """Pretrain the velocity network by flow matching from control to treated cells.

    Writes a pipeline that CellFluxPipeline.from_pretrained loads (averaged weights), checkpoints, and log.jsonl.

    To train on several devices: accelerate launch -m cellfluxrl.training.pretrain [options].

    Examples:
      cellfluxrl pretrain --dataset_name my_cells --output_dir runs/base
      cellfluxrl pretrain --dataset_name my_cells --output_dir runs/base --resume_from_checkpoint latest
      accelerate launch training/pretrain.py --config training/configs/simulated.yaml
      accelerate launch -m cellfluxrl.training.pretrain --dataset_name crops --data_dir crops --output_dir runs/base
    """

    script: ClassVar[str] = "pretrain"

    preset: str = _network("small", "preset of CellFluxUNet2DModel")
    pretrained_model_name_or_path: str | None = _network(None, "a pipeline to train further, instead of a new network")
    condition_norm: Literal["log1p", "unit_rms", "log1p_unit_rms"] | None = _network(
        None, "normalisation of the compound's counts; CellFlux has none"
    )
    log_dose: bool = _network(False, "condition on log10 of the concentration, too")
    condition_dropout: float = _network(0.2, "probability, per sample, of training without the compound")
    source_noise: Literal["white", "band_limited"] = _noise("band_limited", "CellFlux has white noise")
    source_noise_scale: float = _noise(0.7, "standard deviation of the source noise, images being in [-1, 1]")
    source_noise_detail: float = _noise(0.0, "share of white noise in band-limited noise, as a standard deviation")
    source_noise_probability: float = _noise(
        1.0, "probability, per sample, that the control gets noise (CellFlux: 0.5)"
    )
    control_gain: float = _noise(0.0, "spread of the random brightness, as a log, that controls get in each channel")
    train_batch_size: int = _optimiser(32, "pairs a step and process")
    dataloader_num_workers: int = _optimiser(0, "processes that read ahead; 0: the training process reads")
    max_train_steps: int = _optimiser(1000, "optimisation steps")
    learning_rate: float = _optimiser(1e-3, "peak rate; it falls to zero along a cosine")
    lr_warmup_steps: int = _optimiser(50, "steps over which the rate rises from zero")
    weight_decay: float = _optimiser(0.01, "of AdamW")
    max_grad_norm: float = _optimiser(1.0, "gradients are clipped to this norm")
    ema_decay: float = _optimiser(0.99, "decay of the averaged weights, which are what is saved")
    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "exponential_ab2"] = _sampling(
        "exponential_ab2", "see docs/schedulers.md"
    )
    time_grid: Literal["uniform", "edm"] = _sampling("uniform", "where its steps end")
    log_steps: int = _progress(10, "steps between lines of log.jsonl")
    checkpointing_steps: int = _progress(500, "steps between checkpoints")
    checkpoints_total_limit: int = _progress(2, "checkpoints that are kept")
    resume_from_checkpoint: str | None = _progress(None, "'latest', or the folder of a checkpoint")


@dataclass
class MoAArguments(HubArguments, SharedArguments):
    """Train a classifier of the mechanism of action, calibrate it, and report its accuracy and calibration.

    Calibration takes a training plate that the network does not see; the report takes the test plates. Writes the
    classifier (MoAClassifier.from_pretrained loads it), metrics.json and log.jsonl.

    To train on several devices: accelerate launch -m cellfluxrl.training.moa [options].

    Examples:
      cellfluxrl moa --dataset_name my_cells --output_dir runs/moa
      cellfluxrl moa --dataset_name my_cells --output_dir runs/judge --seed 101 --width 24 --json
      accelerate launch training/moa.py --config training/configs/simulated.yaml
    """

    script: ClassVar[str] = "moa"

    width: int = _network(16, "channels of the network at half its image size")
    network_image_size: int = _network(48, "height and width to which the network resamples the crops")
    train_batch_size: int = _optimiser(64, "cells a step and process")
    max_train_steps: int = _optimiser(1000, "optimisation steps")
    learning_rate: float = _optimiser(5e-3, "peak of the one-cycle schedule")
    weight_decay: float = _optimiser(0.01, "of AdamW")
    validation_share: float = _data(0.1, "share of the training cells kept for calibration if no plate can be")
    log_steps: int = _progress(10, "steps between lines of log.jsonl")
    json: bool = option(False, "print the result as JSON, and nothing else")


@dataclass
class RLArguments(RLSettings, TimeArguments, HubArguments, SharedArguments):
    r"""Post-train a pretrained pipeline with the biological rewards (DiffusionNFT, or another --objective).

    Needs a pipeline of `cellfluxrl pretrain` and a classifier of `cellfluxrl moa`, or a fitted reward suite. Writes a
    pipeline that CellFluxRLPipeline.from_pretrained loads (averaged weights), checkpoints, and log.jsonl. Ctrl-C saves
    a checkpoint at the end of the running iteration.

    To train on several devices: accelerate launch -m cellfluxrl.training.rl [options].

    Examples:
      cellfluxrl rl --dataset_name my_cells --pretrained_model_name_or_path runs/base --classifier runs/moa \
          --output_dir runs/rl
      cellfluxrl rl --dataset_name my_cells --pretrained_model_name_or_path runs/base --rewards my_rewards \
          --output_dir runs/rl --resume_from_checkpoint latest
      accelerate launch training/rl.py --config training/configs/rl_bbbc021.yaml --data_dir path/to/crops
    """

    script: ClassVar[str] = "rl"

    pretrained_model_name_or_path: str | None = option(None, "the pretrained pipeline")
    classifier: str | None = _rewards(None, "folder of the MoA classifier that the reward suite is fitted with")
    rewards: str | None = _rewards(None, "folder of a fitted reward suite, instead of --classifier")
    plugins: list[str] | None = _rewards(None, "modules that hold custom rewards or segmenters, such as my_rewards")
    reward_form: Literal["energy", "deviation"] = _rewards(
        "energy", "energy: real cells are the optimum; deviation: the paper's"
    )
    reward_weights: str | None = _rewards(
        None, "as moa=2,roundness=1: weights of the rewards, the others count nothing; default: those of the suite"
    )
    conditions_per_step: int = _rollouts(2, "conditions (plate, compound, concentration) an iteration")
    controls_per_condition: int = _rollouts(4, "controls of each condition an iteration")
    rollouts_per_control: int = _rollouts(8, "rollouts of each control, with different noise")
    group_by: Literal["control", "condition"] = _rollouts("control", "what rollouts with one baseline have in common")
    max_train_steps: int = _optimiser(100, "iterations of rollouts, scores and updates")
    time_sampling: Literal["continuous", "discrete"] = _times(
        "continuous", "as in pretraining, or only at the times of the solver"
    )
    use_lora: bool = _optimiser(False, "train low-rank adapters instead of all weights; needs peft")
    lora_rank: int = _optimiser(16, "rank of the adapters")
    gradient_checkpointing: bool = _optimiser(False, "compute activations twice instead of keeping them")
    curriculum: list[dict] | None = _progress(
        None, "in the YAML file: a list of {from_step, learning_rate, kl_weight, kl_target, reward_weights}"
    )
    reward_workers: int | None = _rewards(
        None, "processes that measure rollouts beside sampling; default: 2 beside a GPU, else none"
    )
    reward_timeout: float = _rewards(60.0, "seconds that such a process may take for 32 images")
    diversity_share: float = _progress(0.95, "warn when diversity falls under this share of the base's")
    stop_on_overoptimisation: bool = _progress(
        False, "stop, with a checkpoint and the pipeline, at the first such warning or when a reward passes real cells"
    )
    sample_steps: int = _progress(25, "iterations between pictures of fixed controls in samples/; 0: none")
    checkpointing_steps: int = _progress(25, "iterations between checkpoints")
    checkpoints_total_limit: int = _progress(2, "checkpoints that are kept")
    resume_from_checkpoint: str | None = _progress(None, "'latest', or the folder of a checkpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("conditions_per_step", "controls_per_condition", "rollouts_per_control", "checkpoints_total_limit")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class DemoArguments(SharedArguments):
    """The whole chain: data, base, classifiers, rewards, post-training, evaluation, report.

    Without --data_dir the cells are simulated, and the base is the one that ships with the package; with it they are
    real BBBC021 crops, one PLATE.npz a plate. Ends with the tables of `cellfluxrl evaluate`, report.html in
    --output_dir, and a pipeline that CellFluxRLPipeline.from_pretrained loads. Run it again to resume where it was
    interrupted.

    Examples:
      cellfluxrl demo
      cellfluxrl demo --data_dir path/to/crops --output_dir runs/real
    """

    script: ClassVar[str] = "demo"

    output_dir: str = option("runs/demo", "where the results go")
    eval_controls: int = option(320, "held-out controls that are evaluated, most models with 4 samples of each")
    overwrite: bool = option(False, "start again even if --output_dir holds a demo with other settings")
    json: bool = option(False, "print the result as JSON, and nothing else")


SECTIONS = ("data", "pretrain", "moa", "rl", "demo")
SHARED = {f.name for cls in (SharedArguments, TimeArguments) for f in fields(cls)}

T = TypeVar("T")
Script = TypeVar("Script", PretrainArguments, MoAArguments, RLArguments, DemoArguments)


def parse_arguments(
    cls: type[T], section: str, description: str, argv: Sequence[str] | None = None, prog: str | None = None
) -> T:
    """[`cellfluxrl.arguments.parse_arguments`] for a YAML file that serves all scripts.

    The fields of [`SharedArguments`] and [`TimeArguments`] stand at its top level, those of a script in its section.
    """
    return arguments.parse_arguments(cls, section, description, argv, prog, sections=SECTIONS, shared=SHARED)


def script_parser(cls: type[Script]) -> CommandParser:
    """The parser of a script's options."""
    return argument_parser(cls, f"cellfluxrl {cls.script}", inspect.getdoc(cls) or "")


def parse_script(cls: type[Script], argv: Sequence[str] | None = None) -> Script:
    """The options of a script; a mistake on the command line ends the process with one line."""
    return parse_arguments(cls, cls.script, inspect.getdoc(cls) or "", argv, f"cellfluxrl {cls.script}")
