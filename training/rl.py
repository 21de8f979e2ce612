"""Post-train a pretrained pipeline with the biological rewards (DiffusionNFT, or another --objective).

    accelerate launch training/rl.py --config training/configs/rl_bbbc021.yaml
    accelerate launch --multi_gpu --num_processes 2 training/rl.py --config training/configs/simulated.yaml --cpu

Needs a pipeline from training/pretrain.py and a classifier from training/moa.py, or a fitted reward suite. Writes a
pipeline that `CellFluxRLPipeline.from_pretrained` loads (averaged weights), checkpoints, and log.jsonl. Ctrl-C saves a
checkpoint at the end of the running iteration.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from tqdm import tqdm

from cellfluxrl.arguments import SharedArguments, option, parse_arguments
from cellfluxrl.averaging import frozen_copy
from cellfluxrl.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.errors import unknown_name
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
from cellfluxrl.rewards.suite import FORMS, RewardSuite
from cellfluxrl.rewards.workers import RewardWorkers
from cellfluxrl.rl.curriculum import check_curriculum, overrides_at
from cellfluxrl.rl.interrupt import Interrupt, Interrupted
from cellfluxrl.rl.lora import add_lora, merged
from cellfluxrl.rl.monitor import Monitor
from cellfluxrl.rl.settings import RLSettings
from cellfluxrl.rl.trainer import RLTrainer
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.training.common import Log, conditions_of, load_labelled_cells, make_accelerator
from cellfluxrl.training.rl_task import TIME_SAMPLINGS, CellTask, parse_reward_weights, with_weights
from cellfluxrl.training.rl_watch import make_monitor, save_samples, watch

GROUP_BY = ("control", "condition")


@dataclass
class RLArguments(SharedArguments):
    pretrained_model_name_or_path: str | None = option(None, "the pretrained pipeline")
    classifier: str | None = option(None, "folder of the MoA classifier that the reward suite is fitted with")
    rewards: str | None = option(None, "folder of a fitted reward suite, instead of --classifier")
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


def load_suite(args: RLArguments, cells: datasets.DatasetDict) -> RewardSuite:
    """Load the reward suite, or fit one on the training cells."""
    if args.rewards:
        return RewardSuite.from_pretrained(args.rewards)
    return RewardSuite.fit(cells["train"], MoAClassifier.from_pretrained(args.classifier), seed=args.seed)


def check_arguments(args: RLArguments) -> None:
    """
    Refuse what can be refused before anything is loaded.

    Raises:
        ValueError: For a word that is not known, or a number that leaves nothing to do.
    """
    for name, allowed in (("reward_form", FORMS), ("group_by", GROUP_BY), ("time_sampling", TIME_SAMPLINGS)):
        if getattr(args, name) not in allowed:
            raise unknown_name(name, getattr(args, name), allowed)
    for name in ("conditions_per_step", "controls_per_condition", "rollouts_per_control", "checkpoints_total_limit"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    check_curriculum(args.curriculum or [])
    for iteration in [0, *(entry["from_step"] for entry in args.curriculum or [])]:
        settings_at(args, iteration)


def settings_at(args: RLArguments, iteration: int) -> RLSettings:
    """The trainer's settings in an iteration: the arguments, and what the curriculum changes of them."""
    values = vars(args) | overrides_at(args.curriculum or [], iteration)
    return RLSettings(**{field.name: values[field.name] for field in dataclasses.fields(RLSettings)})


def weights_at(args: RLArguments, iteration: int, suite: RewardSuite) -> dict[str, float] | None:
    """The weights of the rewards in an iteration; `None` for those of the suite."""
    text = overrides_at(args.curriculum or [], iteration).get("reward_weights", args.reward_weights)
    return parse_reward_weights(text, list(suite.weights)) if text else None


def check_fit(pairs: ControlTreatedPairs, pipeline: CellFluxPipeline, suite: RewardSuite) -> None:
    """
    See that data, pipeline and rewards are made for each other.

    Raises:
        ValueError: If their channels, MoAs or image sizes differ.
    """
    if pairs.channel_names != pipeline.channel_names or pairs.channel_names != suite.channel_names:
        raise ValueError(
            f"channels differ: data set {pairs.channel_names}, pipeline {pipeline.channel_names}, "
            f"rewards {suite.channel_names}"
        )
    moas = sorted(set(pairs.conditions["moa"]))
    for moa, index in zip(moas, suite.classifier.class_indices(moas).tolist(), strict=True):
        if suite.count[index] == 0:
            raise ValueError(f"the rewards were fitted without cells of MoA {moa!r}, which the data set has")
    size = tuple(pairs.images.shape[2:])
    if suite.config.image_size and size != tuple(suite.config.image_size):
        raise ValueError(
            f"the images of the data set are {size} pixels, the rewards were fitted on {suite.config.image_size}"
        )


def build_trainer(
    args: RLArguments,
    accelerator: Accelerator,
    cells: datasets.DatasetDict,
    pipeline: CellFluxPipeline,
    suite: RewardSuite,
) -> RLTrainer:
    """The trainer of a copy of the pipeline's network, which itself stays the base to compare with."""
    with accelerator.local_main_process_first():  # it decodes the images, the others find them
        pairs = ControlTreatedPairs(cells["train"])
    check_fit(pairs, pipeline, suite)
    scheduler = CellFluxFlowMatchScheduler.from_config(pipeline.scheduler.config)
    task = CellTask(pairs, conditions_of(pipeline.encoder, pairs), suite, scheduler, args)
    unet = frozen_copy(pipeline.unet).requires_grad_(True)
    if args.use_lora:
        add_lora(unet, args.lora_rank, args.seed)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return RLTrainer(unet, scheduler, task, settings_at(args, 0), accelerator)


def reward_workers(
    args: RLArguments, accelerator: Accelerator, suite: RewardSuite
) -> AbstractContextManager[RewardWorkers | None]:
    """The processes that measure rollouts, for a `with` block; `None` where this one does."""
    count = args.reward_workers
    if count is None:
        count = 0 if accelerator.device.type == "cpu" else 2
    return RewardWorkers(suite, count, args.reward_timeout) if count else nullcontext()


def run(args: RLArguments, accelerator: Accelerator, trainer: RLTrainer, suite: RewardSuite, monitor: Monitor) -> None:
    """
    Run the iterations that are left.

    Raises:
        Interrupted: After Ctrl-C, when the running iteration is done and saved.
        FloatingPointError: If rewards or gradients are not finite again and again, when that is saved.
    """
    log, task = Log(accelerator, args.output_dir, trainer.iteration), trainer.task
    progress = tqdm(
        total=args.max_train_steps,
        initial=trainer.iteration,
        desc="post-training",
        disable=not accelerator.is_main_process,
    )
    with progress, Interrupt() as interrupt:
        while trainer.iteration < args.max_train_steps:
            weights = weights_at(args, trainer.iteration, suite)
            trainer.settings, trainer.reward_weights = settings_at(args, trainer.iteration), weights
            task.suite = with_weights(suite, weights)
            values = trainer.step()
            warnings = watch(monitor, trainer, task, suite)
            log.write(trainer.iteration, values | monitor.values() | ({"warnings": warnings} if warnings else {}))
            if accelerator.is_main_process:
                for warning in warnings:
                    progress.write(f"warning: after iteration {trainer.iteration}, {warning}", file=sys.stderr)
                if args.sample_steps and trainer.iteration % args.sample_steps == 0:
                    save_samples(trainer, task)
            progress.set_postfix(show(values))
            progress.update()

            interrupted, failure = any_process(accelerator, interrupt.requested), trainer.failure()
            done = trainer.iteration == args.max_train_steps or (args.stop_on_overoptimisation and monitor.stop)
            if interrupted or failure or done or trainer.iteration % args.checkpointing_steps == 0:
                save(args, accelerator, trainer, monitor)
            advice = f"checkpoint-{trainer.iteration} is saved; --resume_from_checkpoint latest goes on from it"
            if failure:
                raise FloatingPointError(f"stopped after iteration {trainer.iteration}: {failure}; {advice}")
            if done:
                break
            if interrupted:
                raise Interrupted(f"interrupted after iteration {trainer.iteration}; {advice}")


def show(values: Mapping[str, Any]) -> dict[str, str]:
    """What stands behind the progress bar."""
    return {
        "combined": f"{values.get('reward/combined', math.nan):.3f}",
        "distance": f"{values['distance_to_base']:.4f}",
    }


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process; the answer is the same in all of them."""
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def save(args: RLArguments, accelerator: Accelerator, trainer: RLTrainer, monitor: Monitor) -> None:
    """Write a checkpoint of the iterations that are done."""
    if accelerator.is_main_process:
        save_checkpoint(
            args.output_dir,
            trainer.iteration,
            trainer.state_tensors(),
            trainer.state() | {"monitor": monitor.state_dict()},
            keep=args.checkpoints_total_limit,
        )
    accelerator.wait_for_everyone()


def train(
    args: RLArguments,
    accelerator: Accelerator,
    cells: datasets.DatasetDict | None = None,
    pipeline: CellFluxPipeline | None = None,
    suite: RewardSuite | None = None,
) -> CellFluxRLPipeline:
    """Run the post-training and return the pipeline that was saved to `args.output_dir`."""
    # 1. Data, pipeline, rewards
    check_arguments(args)
    if pipeline is None and args.pretrained_model_name_or_path is None:
        raise ValueError("--pretrained_model_name_or_path is missing: name the pipeline to post-train")
    if suite is None and (args.rewards is None) == (args.classifier is None):
        raise ValueError("give either --rewards, a fitted suite, or --classifier, to fit one with")
    cells = cells or load_labelled_cells(args)
    if pipeline is None:
        pipeline = CellFluxPipeline.from_pretrained(args.pretrained_model_name_or_path)
    suite = (suite or load_suite(args, cells)).to(accelerator.device)
    for entry in args.curriculum or []:
        weights_at(args, entry["from_step"], suite)

    # 2. Trainer; resume, or see that there is something to learn
    trainer = build_trainer(args, accelerator, cells, pipeline, suite)
    monitor = make_monitor(trainer, trainer.task, suite)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if checkpoint:
        tensors, state = load_checkpoint(checkpoint)
        trainer.load_state(tensors, state, state["step"])
        monitor.load_state_dict(state["monitor"])
        accelerator.print(f"resumed from {checkpoint}")
    else:
        trainer.check()

    # 3. Iterations
    with reward_workers(args, accelerator, suite) as trainer.task.workers:
        run(args, accelerator, trainer, suite, monitor)

    # 4. Save
    trained = CellFluxRLPipeline(
        unet=merged(trainer.average), scheduler=pipeline.scheduler, encoder=pipeline.encoder, rewards=suite
    )
    if accelerator.is_main_process:
        trained.save_pretrained(Path(args.output_dir))
    accelerator.wait_for_everyone()
    return trained


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(RLArguments, "rl", __doc__, argv)
    accelerator = make_accelerator(args, tensorboard=True)
    try:
        train(args, accelerator)
    except Interrupted as interrupted:
        accelerator.print(f"\n{interrupted}", file=sys.stderr)
        accelerator.end_training()
        sys.exit(130)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
