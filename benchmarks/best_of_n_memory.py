"""Peak memory of choosing one of N candidates for each of 64 controls.

OMP_NUM_THREADS=1 python benchmarks/best_of_n_memory.py [--controls 64]

Candidates are made and chosen among for a group of controls at a time, so that at most `CANDIDATE_BYTES` of them are
in memory at once. The shipped base with 2 steps; a reward suite with a classifier of random weights and statistics
that were not fitted needs as much memory as any other. What N = 1 needs has been taken before: each line says by how
much the peak of the process has grown since.
"""

from __future__ import annotations

import argparse
import resource

import torch

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier, RewardSuite
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.pipelines.cellflux_rl import CANDIDATE_BYTES
from cellfluxrl.training.demo import SHIPPED_BASE

WAYS = {
    "best": {},
    "match": {"selection": "match"},
    "reject": {"selection": "reject"},
    "steer": {"search": "steer"},
    "noise": {"search": "noise"},
}


def pipeline() -> CellFluxRLPipeline:
    base = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    suite = RewardSuite(dict(MoAClassifier(moas=[CONTROL, *MOAS]).config), image_size=[48, 48])
    suite.count += 1
    suite.reference.normal_(generator=torch.Generator().manual_seed(0))
    pipe = CellFluxRLPipeline(base.unet, base.scheduler, base.encoder, suite.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peak() -> float:
    """Of the process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controls", type=int, default=64, help="images that are returned")
    parser.add_argument("--numbers", type=int, nargs="+", default=[4, 32], help="N, increasing")
    arguments = parser.parse_args()
    pipe, controls = pipeline(), simulate_cells([CONTROL] * arguments.controls, seed=1).image
    settings = {"compound": "taxol", "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}

    def generate(**way) -> None:
        pipe(controls, generator=torch.Generator().manual_seed(0), **settings, **way)

    generate()
    start = peak()
    megabytes = controls[0].size * 4 / 2**20
    print(
        f"{arguments.controls} controls, at most {CANDIDATE_BYTES / 2**20:.0f} MiB of candidates at once; "
        f"the process takes {start:.0f} MiB with N = 1"
    )
    for number in arguments.numbers:
        for name, way in WAYS.items():
            generate(best_of_n=number, **way)
            print(
                f"N = {number:3d} {name:7} {arguments.controls * number * megabytes:6.1f} MiB of candidates in all, "
                f"peak + {peak() - start:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
