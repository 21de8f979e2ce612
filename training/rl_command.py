"""`cellfluxrl rl`: its options, which are known and checked without loading torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from cellfluxrl.arguments import CommandParser, argument_parser, option, parse_arguments
from cellfluxrl.hub.arguments import HubArguments


@dataclass
class RLArguments(HubArguments):
    """Post-train a pretrained pipeline with the biological rewards (DiffusionNFT, or another --objective).

    Needs a pipeline of `cellfluxrl pretrain` and a classifier of `cellfluxrl moa`, or a fitted reward suite. Writes a
    pipeline that CellFluxRLPipeline.from_pretrained loads (averaged weights), checkpoints, and log.jsonl. Ctrl-C saves
    a checkpoint at the end of the running iteration.

    To train on several devices: accelerate launch -m cellfluxrl.training.rl [options].

    Examples:
      cellfluxrl rl --dataset_name my_cells --pretrained_model_name_or_path runs/base --classifier runs/moa \\
          --output_dir runs/rl
      cellfluxrl rl --dataset_name my_cells --pretrained_model_name_or_path runs/base --rewards my_rewards \\
          --output_dir runs/rl --resume_from_checkpoint latest
      accelerate launch training/rl.py --config training/configs/rl_bbbc021.yaml --data_dir path/to/crops
    """

    pretrained_model_name_or_path: str | None = option(None, "the pretrained pipeline")
    classifier: str | None = option(None, "folder of the MoA classifier that the reward suite is fitted with")
    rewards: str | None = option(None, "folder of a fitted reward suite, instead of --classifier")
    plugins: list[str] | None = option(None, "modules that hold custom rewards or segmenters, such as my_rewards")
    reward_form: str = option("energy", "'energy' (real cells are the optimum) or 'deviation' (the paper's)")
    reward_weights: str | None = option(
        None, "as moa=2,roundness=1: weights of the rewards, the others count nothing; default: those of the suite"
    )
    objective: str = option(
        "nft", "'nft', 'rwr' (reward-weighted regression), 'best_of_n' (distillation) or 'dpo' (best against worst)"
    )
    conditions_per_step: int = option(2, "conditions (plate, compound, concentration) an iteration")
    controls_per_condition: int = option(4, "controls of each condition an iteration")
    rollouts_per_control: int = option(8, "rollouts of each control, with different noise")
    group_by: str = option("control", "rollouts that share a baseline: those of one 'control', or of one 'condition'")
    max_train_steps: int = option(100, "iterations of rollouts, scores and updates")
    num_inference_steps: int = option(6, "steps of the solver in rollouts")
    time_sampling: str = option(
        "continuous", "training times: 'continuous' as in pretraining, or 'discrete': the solver's"
    )
    inner_steps: int = option(2, "optimiser steps an iteration, each with fresh sources and times")
    train_batch_size: int = option(32, "rollouts that go through the network at a time, in each process")
    learning_rate: float = option(1e-4, "of AdamW, after the warm-up")
    lr_warmup_steps: int = option(10, "optimiser steps over which the rate rises from zero")
    weight_decay: float = option(0.0, "of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    use_lora: bool = option(False, "train low-rank adapters instead of all weights; needs peft")
    lora_rank: int = option(16, "rank of the adapters")
    gradient_checkpointing: bool = option(False, "compute activations twice instead of keeping them")
    mixing_weight: float = option(
        1.0, "of the trained policy in the implicit positive and negative ones (beta of nft)"
    )
    temperature: float = option(1.0, "of rwr, in standard deviations of the reward")
    dpo_beta: float = option(100.0, "of dpo: how strongly preferences are held to the pretrained velocity")
    kl_weight: float = option(
        0.1, "of the squared distance to the pretrained velocity; with --kl_target the first one"
    )
    kl_target: float = option(0.0, "adapt the KL weight to keep distance_to_base of the log here; 0: do not")
    advantage_std: str = option("global", "what advantages are divided by: 'global', 'group' or 'per_reward'")
    advantage_clip: float = option(2.0, "advantages of this many standard deviations give r = 0 or 1")
    old_decay_rate: float = option(0.005, "the decay of the sampling policy grows by this much an iteration ...")
    old_decay_max: float = option(0.7, "... up to this")
    ema_decay: float = option(0.95, "decay of the averaged weights, which are what is saved")
    curriculum: list[dict] | None = option(
        None, "in the YAML file: a list of {from_step, learning_rate, kl_weight, kl_target, reward_weights}"
    )
    shuffle_rewards: bool = option(False, "give each rollout the reward of a random other one: a control experiment")
    reward_workers: int | None = option(
        None, "processes that measure rollouts beside sampling; default: 2 beside a GPU, else none"
    )
    reward_timeout: float = option(60.0, "seconds that such a process may take for 32 images")
    diversity_share: float = option(0.95, "warn when diversity falls under this share of the base's")
    stop_on_overoptimisation: bool = option(
        False, "stop, with a checkpoint and the pipeline, at the first such warning or when a reward passes real cells"
    )
    sample_steps: int = option(25, "iterations between pictures of fixed controls in samples/; 0: none")
    checkpointing_steps: int = option(25, "iterations between checkpoints")
    checkpoints_total_limit: int = option(2, "checkpoints that are kept")
    resume_from_checkpoint: str | None = option(None, "'latest', or the folder of a checkpoint")


def parser() -> CommandParser:
    return argument_parser(RLArguments, "cellfluxrl rl", inspect.getdoc(RLArguments))


def parse(argv: Sequence[str] | None = None) -> RLArguments:
    """The options; a mistake ends the process with one line."""
    return parse_arguments(RLArguments, "rl", inspect.getdoc(RLArguments), argv, prog="cellfluxrl rl")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from cellfluxrl.training.rl import launch

    launch(args)
