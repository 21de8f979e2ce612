"""Speed of the procedural renderer: `OMP_NUM_THREADS=1 python benchmarks/simulator.py [--image_size 48]`."""

import argparse
import time

from cellfluxrl.data.simulated import MOAS, simulate_cells


def crops_per_second(count: int, image_size: int) -> float:
    """Render `count` crops over all MoAs, after a short warm-up, and return crops per second of wall time."""
    moa = [MOAS[i % len(MOAS)] for i in range(count)]
    simulate_cells(moa[:32], image_size=image_size)
    start = time.perf_counter()
    simulate_cells(moa, image_size=image_size)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="crops to render")
    parser.add_argument("--image_size", type=int, default=48, help="height and width in pixels")
    arguments = parser.parse_args()
    speed = crops_per_second(arguments.count, arguments.image_size)
    print(f"{speed:.0f} crops/s of {arguments.image_size} x {arguments.image_size} px ({arguments.count} crops)")


if __name__ == "__main__":
    main()
