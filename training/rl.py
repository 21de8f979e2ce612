"""Post-train a pretrained pipeline with the biological rewards; `--help` has examples."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from tqdm import tqdm

from cellfluxrl.checkpoints import find_checkpoint, frozen_copy, load_checkpoint, save_checkpoint
from cellfluxrl.data.calibration import control_levels
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.data.records import write_record
from cellfluxrl.hub.arguments import hub_repository, publish_run
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.pipelines.cellflux_rl import CellFluxRLPipeline
from cellfluxrl.rewards.plugins import load_plugins
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rewards.workers import RewardWorkers
from cellfluxrl.rl.curriculum import check_curriculum, overrides_at
from cellfluxrl.rl.interrupt import Interrupt, Interrupted
from cellfluxrl.rl.lora import add_lora, merged
from cellfluxrl.rl.monitor import Monitor
from cellfluxrl.rl.trainer import RLTrainer
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.training.cell_task import CellTask, parse_reward_weights
from cellfluxrl.training.common import Log, conditions_of, load_labelled_cells, make_accelerator
from cellfluxrl.training.options import RLArguments, parse_script
from cellfluxrl.training.watch import make_monitor, save_samples, watch


def load_suite(args: RLArguments, cells: datasets.DatasetDict) -> RewardSuite:
    """Load the reward suite, or fit one on the training cells."""
    if args.rewards:
        return RewardSuite.from_pretrained(args.rewards)
    classifier = MoAClassifier.from_pretrained(args.classifier)
    return RewardSuite.fit(cells["train"], classifier, seed=args.seed, plugins=args.plugins or ())


def arguments_at(args: RLArguments, iteration: int) -> RLArguments:
    """The arguments in an iteration: those that were given, and what the curriculum changes of them."""
    return dataclasses.replace(args, **overrides_at(args.curriculum or [], iteration))


def weights_of(args: RLArguments, suite: RewardSuite) -> dict[str, float] | None:
    """The weights of the rewards; `None` for those of the suite."""
    return parse_reward_weights(args.reward_weights, list(suite.weights)) if args.reward_weights else None


def check_fit(pairs: ControlTreatedPairs, pipeline: CellFluxPipeline, suite: RewardSuite) -> None:
    """See that data, pipeline and rewards are made for each other.

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
    workers: RewardWorkers | None = None,
) -> RLTrainer:
    """The trainer of a copy of the pipeline's network, which itself stays the base to compare with."""
    with accelerator.local_main_process_first():  # it decodes the images, the others find them
        pairs = ControlTreatedPairs(cells["train"])
    check_fit(pairs, pipeline, suite)
    scheduler = CellFluxFlowMatchScheduler.from_config(pipeline.scheduler.config)
    task = CellTask(pairs, conditions_of(pipeline.encoder, pairs), suite, scheduler, args, workers)
    unet = frozen_copy(pipeline.unet).requires_grad_(True)
    if args.use_lora:
        add_lora(unet, args.lora_rank, args.seed)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return RLTrainer(unet, scheduler, task, arguments_at(args, 0), accelerator)


def reward_workers(
    args: RLArguments, accelerator: Accelerator, suite: RewardSuite
) -> AbstractContextManager[RewardWorkers | None]:
    """The processes that measure rollouts, for a `with` block; `None` where this one does."""
    count = args.reward_workers
    if count is None:
        count = 0 if accelerator.device.type == "cpu" else 2
    return RewardWorkers(suite, count, args.reward_timeout) if count else nullcontext()


def run(args: RLArguments, accelerator: Accelerator, trainer: RLTrainer, suite: RewardSuite, monitor: Monitor) -> None:
    """Run the iterations that are left.

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
            now = arguments_at(args, trainer.iteration)
            values = trainer.step(now, weights_of(now, suite))
            warnings = watch(monitor, trainer, task, suite)
            log.write(trainer.iteration, values | monitor.values() | ({"warnings": warnings} if warnings else {}))
            if accelerator.is_main_process:
                for warning in warnings:
                    progress.write(f"warning: after iteration {trainer.iteration}, {warning}", file=sys.stderr)
                if args.sample_steps and trainer.iteration % args.sample_steps == 0:
                    save_samples(trainer, task)
            progress.set_postfix(show(values))
            progress.update()

            interrupted, failure = any_process(accelerator, flag=interrupt.requested), trainer.failure()
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


def any_process(accelerator: Accelerator, *, flag: bool) -> bool:
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
    check_curriculum(args.curriculum or [])
    stages = [
        arguments_at(args, iteration) for iteration in [0, *(entry["from_step"] for entry in args.curriculum or [])]
    ]
    load_plugins(args.plugins or ())
    if pipeline is None and args.pretrained_model_name_or_path is None:
        raise ValueError("--pretrained_model_name_or_path is missing: name the pipeline to post-train")
    if suite is None and (args.rewards is None) == (args.classifier is None):
        raise ValueError("give either --rewards, a fitted suite, or --classifier, to fit one with")
    cells = cells or load_labelled_cells(args)
    if pipeline is None:
        pipeline = CellFluxPipeline.from_pretrained(args.pretrained_model_name_or_path)
    suite = (suite or load_suite(args, cells)).to(accelerator.device)
    for stage in stages:
        weights_of(stage, suite)

    with reward_workers(args, accelerator, suite) as workers:
        # 2. Trainer; resume, or see that there is something to learn
        trainer = build_trainer(args, accelerator, cells, pipeline, suite, workers)
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
        run(args, accelerator, trainer, suite, monitor)

    # 4. Save
    levels = pipeline.config.control_levels or control_levels(trainer.task.pairs)
    trained = CellFluxRLPipeline(merged(trainer.average), pipeline.scheduler, pipeline.encoder, suite, levels)
    if accelerator.is_main_process:
        trained.save_pretrained(Path(args.output_dir))
        write_record(args.output_dir, "rl", args, cells)
    accelerator.wait_for_everyone()
    return trained


def launch(args: RLArguments) -> None:
    """Post-train in as many processes as `accelerate` has started; an interrupted run exits with status 130."""
    repo_id = hub_repository(args)
    accelerator = make_accelerator(args, tensorboard=True)
    try:
        train(args, accelerator)
    except Interrupted as interrupted:
        accelerator.print(f"\n{interrupted}", file=sys.stderr)
        accelerator.end_training()
        sys.exit(130)
    if repo_id and accelerator.is_main_process:
        publish_run(args, repo_id, CellFluxRLPipeline)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    launch(parse_script(RLArguments, argv))


if __name__ == "__main__":
    main(sys.argv[1:])
