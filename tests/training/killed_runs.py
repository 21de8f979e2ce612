"""Start a post-training again and again, and kill it at random moments; then let it finish.

    python killed_runs.py KILLS SEED LOG [options of training/rl.py ...]

The imports are done once: each run is a fork.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from cellfluxrl.training import rl


def count_lines(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def start(argv: list[str]) -> int:
    child = os.fork()
    if child == 0:
        rl.main(argv)
        os._exit(0)
    return child


def main() -> None:
    kills, seed, log, argv = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    chance = random.Random(seed)
    for _ in range(kills):
        before, child = count_lines(log), start([*argv, "--resume_from_checkpoint", "latest"])
        iterations = chance.randrange(4)  # that it may run
        while count_lines(log) < before + iterations and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))  # into an iteration, a checkpoint, or the start
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        print(
            "killed after", count_lines(log), "iterations;", sorted(p.name for p in log.parent.glob("*checkpoint-*"))
        )
    assert os.waitpid(start([*argv, "--resume_from_checkpoint", "latest"]), 0)[1] == 0


if __name__ == "__main__":
    main()
