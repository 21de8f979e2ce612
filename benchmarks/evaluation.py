"""Seconds that an evaluation of generated crops takes, generation excluded: the crops come from the simulator.

Run as `OMP_NUM_THREADS=1 python benchmarks/evaluation.py`; `--num 500` is quick. One training set, controls and two
sets of real cells of the same size are measured beside the generated ones.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from cellfluxrl import MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.simulated import simulate_cells
from cellfluxrl.evaluation.evaluate import Images, evaluate
from cellfluxrl.evaluation.features.extractors import classifier_extractor
from cellfluxrl.evaluation.measuring import Evaluators, measure_cells
from cellfluxrl.evaluation.report.figures import draw_all
from cellfluxrl.evaluation.report.sections import write_evaluation_report
from cellfluxrl.rewards.segmentation.otsu import OtsuSegmenter


def simulated_images(num: int) -> Images:
    """`num` crops of each set, over all compounds."""
    table = known_compounds()
    treated = table[table["moa"] != CONTROL]
    compound = [treated.index[i % len(treated)] for i in range(num)]
    moa = treated.loc[compound, "moa"].tolist()
    pictures = [simulate_cells(moa, seed=seed).image for seed in range(4)]
    return Images(
        control=simulate_cells([CONTROL] * num, seed=9).image,
        real=pictures[0],
        reference=pictures[1],
        generated={"generated": pictures[2][:, None]},
        moa=moa,
        compound=compound,
        reference_moa=moa,
        reference_compound=compound,
        training=pictures[3],
    )


def untrained_evaluators(folder: str) -> Evaluators:
    """Networks of the default size with random weights, which take as long as trained ones."""
    builder = SimulatedCells(cache_dir=folder, cells_per_moa=40, controls_per_plate=40, num_plates=2)
    builder.download_and_prepare()
    networks = [MoAClassifier(moas=[CONTROL, *MOAS], width=width).eval() for width in (16, 24)]
    suite = RewardSuite.fit(builder.as_dataset(split="train"), networks[0])
    return Evaluators(suite, classifier_extractor(networks[1], "held out"), OtsuSegmenter(), networks[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=5000, help="generated crops; default: 5000")
    args = parser.parse_args()
    torch.manual_seed(0)
    measuring = 0.0

    def timed(*measured):
        nonlocal measuring
        began = time.perf_counter()
        found = measure_cells(*measured)
        measuring += time.perf_counter() - began
        return found

    with tempfile.TemporaryDirectory() as folder:
        evaluators, images = untrained_evaluators(folder), simulated_images(args.num)
        start = time.perf_counter()
        results = evaluate(images, evaluators, measure=timed)
        evaluated = time.perf_counter()
        pictures = draw_all(Path(folder) / "plots", results, evaluators.suite, {})
        write_evaluation_report(Path(folder) / "report.html", "benchmark", results, pictures, {})
        end = time.perf_counter()
    print(f"{args.num} generated 48x48 crops, beside as many controls, real, reference and training crops:")
    print(f"  {measuring:.0f} s to segment, measure and classify")
    print(f"  {evaluated - start - measuring:.0f} s for distances, intervals and tests")
    print(f"  {end - evaluated:.0f} s for pictures and the report")
    print(f"  {end - start:.0f} s in all")


if __name__ == "__main__":
    main()
