"""Post-train a pretrained pipeline with the biological rewards (DiffusionNFT).

    accelerate launch training/rl.py --config training/configs/simulated.yaml
    accelerate launch --multi_gpu --num_processes 2 training/rl.py --config training/configs/simulated.yaml --cpu

Needs a pipeline from training/pretrain.py and a classifier from training/moa.py, or a fitted reward suite. Writes a
pipeline that `CellFluxRLPipeline.from_pretrained` loads (averaged weights), checkpoints, and log.jsonl.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from cellfluxrl.rl.trainer import NFTSettings, NFTTrainer, Starts
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.training.common import Log, conditions_of, load_labelled_cells, make_accelerator
from cellfluxrl.training.pretrain import draw_times


@dataclass
class RLArguments(SharedArguments):
    pretrained_model_name_or_path: str | None = option(None, "the pretrained pipeline")
    classifier: str | None = option(None, "folder of the MoA classifier that the reward suite is fitted with")
    rewards: str | None = option(None, "folder of a fitted reward suite, instead of --classifier")
    reward_form: str = option("energy", "'energy' (real cells are the optimum) or 'deviation' (the paper's)")
    conditions_per_step: int = option(2, "conditions (plate, compound, concentration) an iteration")
    controls_per_condition: int = option(4, "controls of each condition an iteration")
    rollouts_per_control: int = option(8, "rollouts of each control, with different noise: a group")
    max_train_steps: int = option(100, "iterations of rollouts, scores and updates")
    num_inference_steps: int = option(6, "steps of the solver in rollouts")
    inner_steps: int = option(2, "optimiser steps an iteration, each with fresh sources and times")
    train_batch_size: int = option(32, "rollouts that go through the network at a time, in each process")
    learning_rate: float = option(1e-4, "of AdamW, constant")
    weight_decay: float = option(0.0, "of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    mixing_weight: float = option(
        1.0, "of the trained policy in the implicit positive and negative ones (beta of NFT)"
    )
    kl_weight: float = option(0.1, "of the squared distance to the pretrained velocity")
    advantage_clip: float = option(2.0, "advantages of this many standard deviations give r = 0 or 1")
    old_decay_rate: float = option(0.005, "the decay of the sampling policy grows by this much an iteration ...")
    old_decay_max: float = option(0.7, "... up to this")
    ema_decay: float = option(0.95, "decay of the averaged weights, which are what is saved")
    shuffle_rewards: bool = option(False, "give each rollout the reward of a random other one: a control experiment")
    checkpointing_steps: int = option(25, "iterations between checkpoints")
    checkpoints_total_limit: int = option(2, "checkpoints that are kept")
    resume_from_checkpoint: str | None = option(None, "'latest', or the folder of a checkpoint")


class CellTask:
    """
    Control cells of a plate in, treated cells out: what the trainer draws from, pairs with and is scored by.

    Args:
        pairs ([`ControlTreatedPairs`]): The training cells; rollouts start from their controls.
        conditions (`torch.Tensor` of shape `(K, D)`): Encoded compound of each row of `pairs.conditions`.
        suite ([`RewardSuite`]): Scores the rollouts.
        scheduler ([`CellFluxFlowMatchScheduler`]): Draws the source noise.
        args ([`RLArguments`]): Sizes of an iteration and the form of the reward.
    """

    def __init__(
        self,
        pairs: ControlTreatedPairs,
        conditions: torch.Tensor,
        suite: RewardSuite,
        scheduler: CellFluxFlowMatchScheduler,
        args: RLArguments,
    ):
        self.pairs, self.conditions, self.suite, self.scheduler, self.args = pairs, conditions, suite, scheduler, args
        self.moas = pairs.conditions["moa"].tolist()
        suite.classifier.class_indices(self.moas)

    def draw(self, generator: torch.Generator) -> Starts:
        args = self.args
        drawn = self.pairs.draw_conditions(args.conditions_per_step, generator)
        label = drawn.repeat_interleave(args.controls_per_condition)
        control = self.pairs.draw_controls(label, generator).repeat_interleave(args.rollouts_per_control, dim=0)
        group = torch.arange(len(label)).repeat_interleave(args.rollouts_per_control)
        label = label.repeat_interleave(args.rollouts_per_control)
        source = control + self.scheduler.sample_source_noise(tuple(control.shape), generator)
        return Starts(source=source, condition=self.conditions[label], group=group, label=label)

    def couple(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # A fresh control and fresh noise, never the rollout's own start: the coupling of base training is independent.
        control = self.pairs.draw_controls(labels, generator)
        return control + self.scheduler.sample_source_noise(tuple(control.shape), generator)

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return draw_times(count, generator, self.args.time_logit_mean, self.args.time_logit_std)

    def reward(self, samples: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        moa = [self.moas[label] for label in labels.tolist()]
        return self.suite(samples.clamp(-1, 1), moa=moa, form=self.args.reward_form)


def load_suite(args: RLArguments, cells: datasets.DatasetDict) -> RewardSuite:
    """Load the reward suite, or fit one on the training cells."""
    if args.rewards:
        return RewardSuite.from_pretrained(args.rewards)
    return RewardSuite.fit(cells["train"], MoAClassifier.from_pretrained(args.classifier), seed=args.seed)


def train(
    args: RLArguments,
    accelerator: Accelerator,
    cells: datasets.DatasetDict | None = None,
    pipeline: CellFluxPipeline | None = None,
    suite: RewardSuite | None = None,
) -> CellFluxRLPipeline:
    """Run the post-training and return the pipeline that was saved to `args.output_dir`."""
    # 1. Data, pipeline, rewards
    if args.reward_form not in FORMS:
        raise unknown_name("reward_form", args.reward_form, FORMS)
    if pipeline is None and args.pretrained_model_name_or_path is None:
        raise ValueError("--pretrained_model_name_or_path is missing: name the pipeline to post-train")
    if suite is None and (args.rewards is None) == (args.classifier is None):
        raise ValueError("give either --rewards, a fitted suite, or --classifier, to fit one with")
    cells = cells or load_labelled_cells(args)
    if pipeline is None:
        pipeline = CellFluxPipeline.from_pretrained(args.pretrained_model_name_or_path)
    suite = (suite or load_suite(args, cells)).to(accelerator.device)
    pairs = ControlTreatedPairs(cells["train"])
    if pairs.channel_names != pipeline.channel_names or pairs.channel_names != suite.channel_names:
        raise ValueError(
            f"channels differ: data set {pairs.channel_names}, pipeline {pipeline.channel_names}, "
            f"rewards {suite.channel_names}"
        )
    conditions = conditions_of(pipeline.encoder, pairs)
    scheduler = CellFluxFlowMatchScheduler.from_config(pipeline.scheduler.config)

    # 2. Trainer; resume
    # A copy is trained: the pipeline itself stays the base to compare with.
    unet = frozen_copy(pipeline.unet).requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    settings = NFTSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(NFTSettings)})
    task = CellTask(pairs, conditions, suite, scheduler, args)
    trainer = NFTTrainer(unet, scheduler, optimizer, task, settings, accelerator)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if checkpoint:
        tensors, state = load_checkpoint(checkpoint)
        trainer.load_state(tensors, state["step"])
        accelerator.print(f"resumed from {checkpoint}")

    # 3. Loop
    log = Log(accelerator, args.output_dir, trainer.iteration)
    progress = tqdm(
        total=args.max_train_steps,
        initial=trainer.iteration,
        desc="post-training",
        disable=not accelerator.is_main_process,
    )
    while trainer.iteration < args.max_train_steps:
        values = trainer.step()
        if not math.isfinite(values.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {values['loss']} at iteration {trainer.iteration}")
        log.write(trainer.iteration, values)
        progress.set_postfix(combined=f"{values['reward/combined']:.3f}", kl=f"{values.get('kl', 0):.4f}")
        progress.update()
        done = trainer.iteration == args.max_train_steps
        if (done or trainer.iteration % args.checkpointing_steps == 0) and accelerator.is_main_process:
            save_checkpoint(
                args.output_dir, trainer.iteration, trainer.state_tensors(), {}, keep=args.checkpoints_total_limit
            )
    progress.close()
    accelerator.wait_for_everyone()

    # 4. Save
    trained = CellFluxRLPipeline(
        unet=trainer.average, scheduler=pipeline.scheduler, encoder=pipeline.encoder, rewards=suite
    )
    if accelerator.is_main_process:
        trained.save_pretrained(Path(args.output_dir))
    accelerator.wait_for_everyone()
    return trained


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(RLArguments, "rl", __doc__, argv)
    accelerator = make_accelerator(args)
    train(args, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1:])
