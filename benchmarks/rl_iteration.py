"""Where an iteration of post-training spends its time, what it takes against K and image size, and its memory.

    OMP_NUM_THREADS=2 python benchmarks/rl_iteration.py                    # about 6 minutes
    OMP_NUM_THREADS=2 python benchmarks/rl_iteration.py --published        # the 56 M network, 3 iterations

Simulated cells; the shipped base (2.3 M), also for crops larger than the 48 x 48 that it was trained on, and the
published network with random weights; an untrained classifier, which takes as long as any. K is the number of rollouts
of each of 8 controls. Seconds are medians of the iterations after the first. Memory, of the published network only
because beside a small one all else counts more, is that of a process of its own, beyond what it held before the
trainer was built: resident, or on a GPU what torch allocates there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from cellfluxrl import (
    CellFluxFlowMatchScheduler,
    CellFluxPipeline,
    CellFluxUNet2DModel,
    MoAClassifier,
    RewardSuite,
    SimulatedCells,
)
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.training import rl
from cellfluxrl.training.common import encoder_of
from cellfluxrl.training.demo import SHIPPED_BASE

CONTROLS = 8


def pipeline_for(cells, image_size: int, preset: str) -> CellFluxPipeline:
    if preset == "small":
        return CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    encoder = encoder_of(cells)
    torch.manual_seed(0)
    unet = CellFluxUNet2DModel.from_preset(preset, sample_size=image_size, condition_dim=encoder.condition_dim)
    for module in unet.modules():  # some layers start at zero; rollouts would be copies
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
            module.reset_parameters()
    scheduler = CellFluxFlowMatchScheduler(source_noise="band_limited", source_noise_scale=0.7)
    return CellFluxPipeline(unet=unet, scheduler=scheduler, encoder=encoder)


def used() -> int:
    """Bytes that this process holds."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Run a few iterations; medians of the seconds, and memory in units of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        builder = SimulatedCells(
            cache_dir=folder, image_size=args.image_size, cells_per_moa=24, controls_per_plate=24, num_plates=2
        )
        builder.download_and_prepare()
        cells = builder.as_dataset()
        suite = RewardSuite.fit(cells["train"], MoAClassifier(moas=[CONTROL, *MOAS]).eval())
        pipeline = pipeline_for(cells, args.image_size, args.preset)
        own = rl.RLArguments(
            image_size=args.image_size,
            output_dir=folder,
            conditions_per_step=1,
            controls_per_condition=args.controls,
            rollouts_per_control=args.rollouts,
            train_batch_size=args.train_batch_size,
            mixed_precision="bf16",
            reward_workers=args.workers,
        )
        accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")
        weights = sum(p.numel() * p.element_size() for p in pipeline.unet.parameters())
        before = used()
        logs = []
        with rl.reward_workers(own, accelerator, suite) as workers:
            trainer = rl.build_trainer(own, accelerator, cells, pipeline, suite, workers)
            built = used()
            for _ in range(args.iterations):
                logs.append(trainer.step())
                print(".", end="", file=sys.stderr, flush=True)
        optimizer = sum(
            v.numel() * v.element_size() for s in trainer.optimizer.state.values() for v in s.values() if v.ndim
        )
    seconds = {name: [log[f"seconds/{name}"] for log in logs[1:]] for name in ("sampling", "rewards", "update")}
    return {
        **{name: statistics.median(values) for name, values in seconds.items()},
        "weights_mb": weights / 1e6,
        "copies": (built - before) / weights,
        "optimizer": optimizer / weights,
    }


def in_own_process(**options: float) -> dict[str, float]:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, "--one", *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def row(label: str, r: dict[str, float]) -> str:
    total = r["sampling"] + r["rewards"] + r["update"]
    shares = " | ".join(f"{r[name]:.2f} s, {r[name] / total:.1%}" for name in ("sampling", "rewards", "update"))
    return f"| {label} | {total:.2f} s | {shares} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--published", action="store_true", help="the 56 M network of CellFlux instead")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--image_size", type=int, default=48)
    parser.add_argument("--controls", type=int, default=CONTROLS)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=4)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}; torch {torch.__version__}; {Path(__file__).name}\n")
    print("| | an iteration | sampling | rewards | update |\n| --- | --- | --- | --- | --- |")
    if args.published:
        few = {"controls": 2, "rollouts": 2, "train_batch_size": 4, "iterations": 3}
        result = in_own_process(preset="bbbc021", image_size=args.image_size, **few)
        print(row(f"56 M, {args.image_size}x{args.image_size}, 4 rollouts", result))
        print(
            f"\nweights {result['weights_mb']:.0f} MB; the trainer holds {result['copies']:.2f} times as much "
            f"beside the pipeline, and its optimiser {result['optimizer']:.2f} times as much"
        )
    else:
        print(row("K = 8, 48x48, rewards in this process", in_own_process()))
        print(row("K = 8, 48x48, one reward worker", in_own_process(workers=1)))
        for rollouts in (4, 16):
            print(row(f"K = {rollouts}, 48x48", in_own_process(rollouts=rollouts)), flush=True)
        for size in (64, 96):
            print(row(f"K = 4, {size}x{size}", in_own_process(rollouts=4, image_size=size, iterations=3)), flush=True)


if __name__ == "__main__":
    main()
