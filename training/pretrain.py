"""Pretrain the velocity network by flow matching from control to treated cells; `--help` has examples."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from cellfluxrl.checkpoints import (
    find_checkpoint,
    frozen_copy,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    update_average,
)
from cellfluxrl.data.calibration import control_levels
from cellfluxrl.data.pairs import ControlTreatedPairs, PairBatch
from cellfluxrl.data.records import write_record
from cellfluxrl.flow.batches import FlowBatch, draw_flow_batch
from cellfluxrl.flow.paths import flow_matching_loss
from cellfluxrl.hub.arguments import hub_repository, publish_run
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training.common import Log, conditions_of, encoder_of, load_cells, make_accelerator
from cellfluxrl.training.condition_use import condition_use
from cellfluxrl.training.options import PretrainArguments, parse_script
from cellfluxrl.training.samples import save_sample_grid

GRID_CONTROLS = 8  # columns of samples.png


def build_model(
    args: PretrainArguments, channel_names: tuple[str, ...], cells: datasets.DatasetDict
) -> tuple[CellFluxUNet2DModel, CompoundEncoder]:
    """A new network, or the one to go on from, and the encoder of the conditions that it takes."""
    if args.pretrained_model_name_or_path:
        pipeline = CellFluxPipeline.from_pretrained(args.pretrained_model_name_or_path)
        if tuple(pipeline.unet.config.channel_names) != channel_names:
            raise ValueError(
                f"{args.pretrained_model_name_or_path} has channels {tuple(pipeline.unet.config.channel_names)}, "
                f"the data set {channel_names}"
            )
        return pipeline.unet, encoder_of(cells, log_dose=pipeline.encoder.config.log_dose)
    encoder = encoder_of(cells, log_dose=args.log_dose)
    unet = CellFluxUNet2DModel.from_preset(
        args.preset,
        sample_size=args.image_size,
        in_channels=len(channel_names),
        out_channels=len(channel_names),
        channel_names=list(channel_names),
        condition_dim=encoder.condition_dim,
        condition_norm=args.condition_norm,
        dose_dim=int(args.log_dose),
        trained_unconditionally=args.condition_dropout > 0,
    )
    return unet, encoder


class Pretrainer:
    """Holds the network, the average of its weights, and the optimiser with its schedule.

    Everything random is a function of (seed, step): [`state_tensors`] and the step are all that a resumed run needs to
    be the same run.
    """

    def __init__(
        self,
        unet: CellFluxUNet2DModel,
        pairs: ControlTreatedPairs,
        conditions: torch.Tensor,
        scheduler: CellFluxFlowMatchScheduler,
        args: PretrainArguments,
        accelerator: Accelerator,
    ):
        self.pairs, self.conditions, self.scheduler = pairs, conditions, scheduler
        self.args, self.accelerator = args, accelerator
        self.unet = unet.train()
        self.average = frozen_copy(unet).to(accelerator.device)
        optimizer = torch.optim.AdamW(
            unet.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=args.weight_decay
        )
        self.schedule = get_cosine_schedule_with_warmup(optimizer, args.lr_warmup_steps, args.max_train_steps)
        self.model, self.optimizer = accelerator.prepare(unet, optimizer)
        self.done = 0

    def batches(self) -> Iterator[PairBatch]:
        """This process' pairs for the steps from `done` on, epoch after epoch."""
        args, rank, world_size = self.args, self.accelerator.process_index, self.accelerator.num_processes
        start, first = divmod(self.done, self.pairs.steps_per_epoch(args.train_batch_size, world_size))
        for epoch in itertools.count(start):
            batches = self.pairs.epoch_batches(args.train_batch_size, args.seed, epoch, rank, world_size)
            remaining = Subset(batches, range(first, len(batches)))
            yield from DataLoader(remaining, batch_size=None, num_workers=args.dataloader_num_workers)
            first = 0

    def flow_batch(self, pairs: PairBatch, generators: list[torch.Generator], condition_dropout: float) -> FlowBatch:
        """Draw points on the paths between pairs, on the device."""
        args = self.args
        return draw_flow_batch(
            pairs,
            self.conditions[pairs.condition],
            self.scheduler.sample_source_noise,
            generators,
            source_noise_probability=args.source_noise_probability,
            condition_dropout=condition_dropout,
            time_logit_mean=args.time_logit_mean,
            time_logit_std=args.time_logit_std,
            control_gain=args.control_gain,
        ).to(self.accelerator.device)

    def step(self, pairs: PairBatch) -> dict[str, torch.Tensor | float]:
        """Take one optimisation step on this process' share of the global batch."""
        args, accelerator = self.args, self.accelerator
        rank, size = accelerator.process_index, args.train_batch_size
        # A generator for each pair of the global batch: the numbers do not depend on how many processes share it.
        mine = range(rank * size, (rank + 1) * size)
        generators = [seeded_generator(args.seed, "pretraining", self.done, i) for i in mine]
        batch = self.flow_batch(pairs, generators, args.condition_dropout)
        torch.manual_seed(args.seed + 1_000_003 * (self.done + 1) + rank)  # the network's dropout
        with accelerator.autocast():
            inputs = batch.path.x_t, batch.path.t, batch.condition, batch.condition_mask
            velocity = self.model(*inputs, return_dict=False)[0].float()
            loss = flow_matching_loss(velocity, batch.path, self.unet.config.prediction_type).mean()
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        update_average(self.average, self.unet, min(args.ema_decay, (1 + self.done) / (10 + self.done)))
        self.done += 1
        return {"loss": loss.detach(), "grad_norm": grad_norm, "learning_rate": self.schedule.get_last_lr()[0]}

    def condition_use(self) -> dict[str, float]:
        """How much the averaged network listens to the compound, on pairs that are the same in every run."""
        generator = seeded_generator(self.args.seed, "condition use")
        generators = [seeded_generator(self.args.seed, "condition use", i) for i in range(256)]
        batch = self.flow_batch(self.pairs.draw(256, generator), generators, 0.0)
        return condition_use(self.average, batch.path, batch.condition, generator)

    def save_samples(self) -> None:
        """Write samples.png: controls, and what the averaged network makes of them."""
        generator = seeded_generator(self.args.seed, "pictures")
        pairs = self.pairs.draw(GRID_CONTROLS, generator)
        noise = self.scheduler.sample_source_noise(tuple(pairs.control.shape), generator)
        path = Path(self.args.output_dir) / "samples.png"
        conditions = self.conditions[pairs.condition]
        save_sample_grid(self.average, self.scheduler, pairs.control, conditions, noise, path, num_inference_steps=10)

    def state_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Everything that [`load_state`] needs besides the schedule's state, as named groups of tensors."""
        return {
            "model": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer.optimizer),
        }

    def load_state(self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.unet.load_state_dict(tensors["model"])
        self.average.load_state_dict(tensors["average"])
        restore_optimizer(self.optimizer.optimizer, tensors["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate  # neither of the two restores it
        self.done = state["step"]


def run(args: PretrainArguments, accelerator: Accelerator, trainer: Pretrainer, log: Log) -> None:
    """Take the steps that are left.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    progress = tqdm(
        total=args.max_train_steps,
        initial=trainer.done,
        desc="pretraining",
        disable=not accelerator.is_main_process,
    )
    batches = trainer.batches()
    while trainer.done < args.max_train_steps:
        values = trainer.step(next(batches))
        last = trainer.done == args.max_train_steps
        if last or trainer.done % args.log_steps == 0:
            values = {name: float(value) for name, value in values.items()}
            values["loss"] = float(accelerator.reduce(torch.tensor(values["loss"], device=accelerator.device), "mean"))
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"the loss is {values['loss']} at step {trainer.done}; lower --learning_rate")
            log.write(trainer.done, values)
            progress.set_postfix(loss=f"{values['loss']:.4f}")
        progress.update()
        if (last or trainer.done % args.checkpointing_steps == 0) and accelerator.is_main_process:
            save_checkpoint(
                args.output_dir,
                trainer.done,
                trainer.state_tensors(),
                {"schedule": trainer.schedule.state_dict()},
                keep=args.checkpoints_total_limit,
            )
    progress.close()


def train(
    args: PretrainArguments, accelerator: Accelerator, cells: datasets.DatasetDict | None = None
) -> CellFluxPipeline:
    """Run the pretraining and return the pipeline that was saved to `args.output_dir`."""
    # 1. Data, network, scheduler
    cells = cells or load_cells(args)
    with accelerator.local_main_process_first():  # it decodes the images, the others find them
        pairs = ControlTreatedPairs(cells["train"])
    torch.manual_seed(args.seed)
    unet, encoder = build_model(args, pairs.channel_names, cells)
    conditions = conditions_of(encoder, pairs)
    scheduler = CellFluxFlowMatchScheduler(
        solver=args.solver,
        time_grid=args.time_grid,
        source_noise=args.source_noise,
        source_noise_scale=args.source_noise_scale,
        source_noise_detail=args.source_noise_detail,
    )

    # 2. Trainer; resume
    trainer = Pretrainer(unet, pairs, conditions, scheduler, args, accelerator)
    checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if checkpoint:
        trainer.load_state(*load_checkpoint(checkpoint))
        accelerator.print(f"resumed from {checkpoint}")

    # 3. Steps
    log = Log(accelerator, args.output_dir, trainer.done)
    run(args, accelerator, trainer, log)
    accelerator.wait_for_everyone()

    # 4. Measure how much the compound is used, and save the averaged weights as a pipeline
    pipeline = CellFluxPipeline(trainer.average, scheduler, encoder, control_levels(pairs))
    if accelerator.is_main_process:
        log.write(args.max_train_steps, trainer.condition_use())
        pipeline.save_pretrained(args.output_dir)
        trainer.save_samples()
        write_record(args.output_dir, "pretrain", args, cells)
    accelerator.wait_for_everyone()
    return pipeline


def launch(args: PretrainArguments) -> None:
    """Train in as many processes as `accelerate` has started."""
    repo_id = hub_repository(args)
    accelerator = make_accelerator(args, tensorboard=True)
    train(args, accelerator)
    if repo_id and accelerator.is_main_process:
        publish_run(args, repo_id, CellFluxPipeline)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    launch(parse_script(PretrainArguments, argv))


if __name__ == "__main__":
    main(sys.argv[1:])
