"""How much the network listens to the compound, by what is done to the fingerprint first (`condition_norm`).

    OMP_NUM_THREADS=1 python benchmarks/condition_use.py                         # ~5 minutes on one quiet core

Pretrains one small network on simulated cells for each normalization, all from the same weights and on the same
batches, and compares, on the same held-out points: the loss; the mean cosine between the velocities under the true
and a swapped compound (1: ignored); and by what share the loss rises with the swapped compound (0: ignored).
The last column is the mean cosine between the conditions of two compounds as the linear layer sees them.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.models.unet import CONDITION_NORMS, CellFluxUNet2DModel, normalized_condition
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training.common import encoder_of, load_cells
from cellfluxrl.training.condition_use import condition_use
from cellfluxrl.training.pretrain import PretrainArguments, Pretrainer


def pretrained(norm: str | None, prediction_type: str, pairs, conditions, scheduler, args) -> Pretrainer:
    """A network after `args.max_train_steps` steps, the same ones for every `norm`."""
    torch.manual_seed(args.seed)
    unet = CellFluxUNet2DModel.from_preset(
        "small",
        sample_size=args.image_size,
        model_channels=32,
        channel_mult=(1, 2),
        attention_resolutions=(2,),
        prediction_type=prediction_type,
        condition_norm=norm,
    )
    trainer = Pretrainer(unet, pairs, conditions, scheduler, args, Accelerator(cpu=True))
    for batch in itertools.islice(trainer.batches(), args.max_train_steps):
        trainer.step(batch)
    return trainer


@torch.no_grad()
def measure(trainer: Pretrainer, count: int) -> dict[str, float]:
    generator = seeded_generator(trainer.args.seed, "condition use")
    generators = [seeded_generator(trainer.args.seed, "condition use", i) for i in range(count)]
    batch = trainer.flow_batch(trainer.pairs.draw(count, generator), generators, 0.0)
    predicted = trainer.average(batch.path.x_t, batch.path.t, batch.condition, return_dict=False)[0]
    use = condition_use(trainer.average, batch.path, batch.condition, generator)
    return {"loss": float((predicted - batch.path.velocity).square().mean()), **use}


def mean_cosine(conditions: torch.Tensor, norm: str | None) -> float:
    compounds = conditions.unique(dim=0)
    seen = F.normalize(compounds if norm is None else normalized_condition(compounds, norm), dim=1)
    cosines = seen @ seen.T
    return float(cosines[~torch.eye(len(seen), dtype=torch.bool)].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_train_steps", type=int, default=400)
    parser.add_argument("--image_size", type=int, default=32, help="height and width of the simulated cells")
    parser.add_argument("--prediction_type", default="target", help="'target', as the small preset, or 'velocity'")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each normalization")
    parser.add_argument("--count", type=int, default=512, help="points on the paths that are compared")
    options = parser.parse_args()

    print(f"$ python {' '.join(sys.argv)}")
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'condition_norm':15} seed  loss     swapped cosine  swapped loss  condition cosine  seconds")
    with tempfile.TemporaryDirectory() as folder:
        args = PretrainArguments(
            output_dir=folder,
            image_size=options.image_size,
            simulated_cells_per_moa=100,
            max_train_steps=options.max_train_steps,
            train_batch_size=32,
            time_logit_mean=0.5,
            time_logit_std=1.4,
        )
        cells = load_cells(args)
        pairs = ControlTreatedPairs(cells["train"])
        conditions = encoder_of(cells).encode(pairs.conditions["compound"].tolist())
        scheduler = CellFluxFlowMatchScheduler(source_noise=args.source_noise, source_noise_scale=0.7)
        for args.seed in range(options.seeds):
            for norm in (None, *CONDITION_NORMS):
                start = time.perf_counter()
                trainer = pretrained(norm, options.prediction_type, pairs, conditions, scheduler, args)
                found = measure(trainer, options.count)
                print(
                    f"{norm or 'none':15} {args.seed:4}  {found['loss']:.5f}  {found['swapped_cosine']:14.5f} "
                    f"{found['swapped_loss_increase']:12.2%}  {mean_cosine(conditions, norm):16.3f} "
                    f"{time.perf_counter() - start:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
