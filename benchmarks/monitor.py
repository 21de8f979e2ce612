"""How often the monitor of post-training gives a false alarm, and what it finds.

Run as `OMP_NUM_THREADS=1 python benchmarks/monitor.py`. Synthetic rewards -|s| of seven statistics s, normal with
standard deviation 1 in real samples; 8 groups of 8 rollouts an iteration, of which a third of the variance is the
group's; 100 iterations, 20 runs.
"""

import torch

from cellfluxrl.rl.monitor import Monitor, moments, squared_deviations

RUNS, ITERATIONS, GROUPS, ROLLOUTS, STATISTICS = 20, 100, 8, 8, 7
REAL, BASE = 400, 640


def rollouts(groups: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    """Draw (groups * ROLLOUTS, STATISTICS) statistics."""
    shared = torch.randn(groups, 1, STATISTICS, generator=generator)
    own = torch.randn(groups, ROLLOUTS, STATISTICS, generator=generator)
    return (spread * ((1 / 3) ** 0.5 * shared + (2 / 3) ** 0.5 * own)).flatten(0, 1)


def alarms(spread: float, standard_errors: float, window: int) -> tuple[float, float]:
    """Shares of runs with an alarm of over-optimisation, and of lost diversity."""
    passed, fell = 0, 0
    label = torch.zeros(BASE, dtype=torch.long)
    for run in range(RUNS):
        generator = torch.Generator().manual_seed(run)
        real = -torch.randn(REAL, STATISTICS, generator=generator).abs()
        base = squared_deviations(rollouts(BASE // ROLLOUTS, 1.0, generator), label)
        monitor = Monitor(
            {str(k): moments(real[:, k], label[:REAL], 1) for k in range(STATISTICS)},
            moments(base, label, 1),
            standard_errors=standard_errors,
            window=window,
        )
        groups = torch.arange(GROUPS).repeat_interleave(ROLLOUTS)
        warnings = []
        for _ in range(ITERATIONS):
            vectors = rollouts(GROUPS, spread, generator)
            rewards = {str(k): -vectors[:, k].abs() for k in range(STATISTICS)}
            warnings += monitor.update(rewards, label[: len(groups)], groups, vectors)
        passed += any("over-optimised" in warning for warning in warnings)
        fell += any("diversity" in warning for warning in warnings)
    return passed / RUNS, fell / RUNS


def main() -> None:
    print("| spread | window | standard errors | runs with a reward passed | runs with diversity lost |")
    print("| --- | --- | --- | --- | --- |")
    for spread in (1.0, 0.9, 0.8, 0.7):
        for window, standard_errors in ((1, 3.0), (10, 1.0), (10, 2.0), (10, 3.0)):
            passed, fell = alarms(spread, standard_errors, window)
            print(f"| {spread:g} | {window} | {standard_errors:g} | {passed:.0%} | {fell:.0%} |")


if __name__ == "__main__":
    main()
