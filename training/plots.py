"""Draw what post-training logged: one run, several runs, or a folder of runs.

    python training/plots.py runs/rl --output_dir plots
    python training/plots.py runs/study --output_dir plots

A run is a folder with the log.jsonl of training/rl.py; in a folder of runs each is named by its label, with seeds of
one label as LABEL/seed0, LABEL/seed1, ... What is drawn depends on what is there:

- rewards.png: each reward against the iteration, with its spread over the rollouts, and the real cells' level where
  the run has a real_rewards.json ({reward: [mean, standard error]}, in the run's form of the rewards).
- monitor.png: how far each reward is above real cells, and diversity as a share of the base's.
- training.png: distance to the base, share of groups without signal, gradient norm, rates, ...
- r_histogram.png: the preferences r over time.
- seconds.png: what an iteration's time is spent on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellfluxrl.figures import COLORS, DOTS_PER_INCH, TEXT_COLOR, smoothed, styled
from cellfluxrl.training.runs import Run, by_group, find_runs, reward_names

TRAINING_PANELS = {
    "distance_to_base": "distance to the base",
    "kl": "distance to the base, where trained",
    "distance_to_old": "distance to the sampling policy",
    "kl_weight": "KL weight",
    "loss": "loss",
    "dead_groups": "share of groups without signal",
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
    "old_decay": "decay of the sampling policy",
    "sample_growth": "|rollout| / |source|",
    "r/std": "spread of r",
    "non_finite_rewards": "rollouts without a reward",
    "skipped_no_signal": "steps skipped: no signal",
    "skipped_non_finite": "steps skipped: not finite",
}
SECONDS = {"seconds/sampling": "sampling", "seconds/rewards": "rewards", "seconds/update": "update"}
HISTOGRAM = "r/histogram"
HISTOGRAM_TOP = 0.4  # share; ten bins would have 0.1 each
COLUMNS = 3
FEW_RUNS = 3  # more of them hide each other's spread


def draw_rewards(path: Path, runs: Sequence[Run]) -> None:
    """Each reward's mean over the rollouts, its spread, and the real cells' level."""
    figure, panels = _panels(reward_names(runs))
    for name, axes in panels.items():
        for run, color in _colored(runs):
            steps, means = run.curve(f"reward/{name}")
            spread_steps, spreads = run.curve(f"reward_std/{name}" if name != "combined" else _combined_std(run))
            if len(runs) <= FEW_RUNS and len(steps) and np.array_equal(steps, spread_steps):
                middle, spread = smoothed(means), smoothed(spreads)
                axes.fill_between(steps, middle - spread, middle + spread, color=color, alpha=0.12, linewidth=0)
            _draw_curve(axes, runs, run, f"reward/{name}", color)
            if name in run.real:
                mean, error = run.real[name]
                axes.axhspan(mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
                axes.axhline(mean, color=color, linewidth=1.2, linestyle="--", label=f"{run.group}: real cells")
        _level_of_zero(axes)
    _finish(figure, path)


def _combined_std(run: Run) -> str:
    return "reward_std/combined" if "reward_std/combined" in run.keys else "reward/std"


def draw_monitor(path: Path, runs: Sequence[Run]) -> None:
    """How far each reward is above real cells, and diversity."""
    names = [*(f"excess/{name}" for name in reward_names(runs)), "diversity"]
    keys = [name for name in names if any(name in run.keys for run in runs)]
    figure, panels = _panels(keys)
    for key, axes in panels.items():
        axes.axhline(1 if key == "diversity" else 0, color="#555555", linewidth=1.2)
        axes.set_title("diversity / base" if key == "diversity" else f"{key.removeprefix('excess/')} - real cells")
        for run, color in _colored(runs):
            _draw_curve(axes, runs, run, key, color)
    _finish(figure, path)


def draw_training(path: Path, runs: Sequence[Run]) -> None:
    """Everything else that is a curve."""
    keys = [key for key in TRAINING_PANELS if any(key in run.keys for run in runs)]
    figure, panels = _panels(keys)
    for key, axes in panels.items():
        axes.set_title(TRAINING_PANELS[key])
        for run, color in _colored(runs):
            _draw_curve(axes, runs, run, key, color)
        values = np.concatenate([run.curve(key)[1] for run in runs])
        if values.min(initial=0) >= 0:
            axes.set_ylim(0, None if values.max(initial=0) > 0 else 1)
    _finish(figure, path)


def _draw_curve(axes: Axes, runs: Sequence[Run], run: Run, key: str, color: str) -> None:
    """The smoothed curve; behind it what was logged, unless there are many."""
    steps, values = run.curve(key)
    if len(steps):
        if len(runs) <= FEW_RUNS:
            axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps, smoothed(values), color=color, linewidth=1.8 if len(runs) <= FEW_RUNS else 1, label=run.group)


def _level_of_zero(axes: Axes) -> None:
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)


def _colored(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Runs of one group have one colour."""
    groups = list(by_group(runs))
    colors = COLORS if len(groups) <= len(COLORS) else [to_hex(colormaps["turbo"](x)) for x in _spread_out(groups)]
    color = dict(zip(groups, colors, strict=False))
    return [(run, color[run.group]) for run in runs]


def _spread_out(items: Sequence[object]) -> np.ndarray:
    return np.linspace(0.05, 0.95, len(items))


def _panels(names: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.3 * lines + 0.4), layout="constrained", dpi=DOTS_PER_INCH)
    panels = {}
    for i, name in enumerate(names):
        axes = panels[name] = styled(figure.add_subplot(lines, columns, i + 1))
        axes.set_title(name, fontsize=10, color=TEXT_COLOR)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, panels


def _finish(figure: Figure, path: Path) -> None:
    """One legend for all panels, and the file."""
    handles = {}
    for axes in figure.axes:
        axes.title.set(fontsize=10, color=TEXT_COLOR)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        columns = max(1, int(figure.get_figwidth() * 10 / (max(map(len, handles)) + 6)))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)
    figure.savefig(path)


def draw_histograms(path: Path, runs: Sequence[Run]) -> None:
    """The shares of r in bins from 0 to 1 against the iteration, one panel a label, mean over its seeds."""
    groups = by_group([run for run in runs if HISTOGRAM in run.keys])
    figure, panels = _panels(list(groups))
    for group, axes in zip(groups.values(), panels.values(), strict=True):
        logs = [[line for line in run.log if HISTOGRAM in line] for run in group]
        shared = min(map(len, logs))
        shares = np.mean([[line[HISTOGRAM] for line in log[:shared]] for log in logs], axis=0).T
        steps = (logs[0][0]["step"] - 0.5, logs[0][shared - 1]["step"] + 0.5)
        image = axes.imshow(shares, aspect="auto", origin="lower", vmin=0, vmax=HISTOGRAM_TOP, extent=(*steps, 0, 1))
        axes.grid(False)
        axes.set_ylabel("r")
        bar = figure.colorbar(image, ax=axes, extend="max")
        bar.ax.tick_params(labelsize=8, colors=TEXT_COLOR)
        bar.set_label("share", fontsize=8, color=TEXT_COLOR)
    _finish(figure, path)


def draw_seconds(path: Path, runs: Sequence[Run]) -> None:
    """Mean seconds of an iteration, by what they are spent on."""
    groups = by_group([run for run in runs if all(len(run.curve(key)[1]) for key in SECONDS)])
    seconds = np.array(
        [[np.mean([run.curve(key)[1].mean() for run in group]) for key in SECONDS] for group in groups.values()]
    )
    figure = Figure(figsize=(6.8, 1.2 + 0.34 * len(groups)), layout="constrained", dpi=DOTS_PER_INCH)
    axes = styled(figure.add_subplot())
    axes.grid(axis="y", visible=False)
    rows, left = range(len(groups)), np.cumsum(seconds, axis=1) - seconds
    for k, (name, color) in enumerate(zip(SECONDS.values(), COLORS, strict=False)):
        axes.barh(rows, seconds[:, k], left=left[:, k], color=color, label=name, height=0.7)
    for i, (row, total) in enumerate(zip(seconds, seconds.sum(axis=1), strict=True)):
        share = row[list(SECONDS).index("seconds/rewards")] / total
        axes.text(total, i, f"  {total:.3g} s, rewards {share:.0%}", va="center", fontsize=8, color=TEXT_COLOR)
    axes.set_yticks(rows, list(groups))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * seconds.sum(axis=1).max())
    axes.set_xlabel("seconds of an iteration, mean")
    _finish(figure, path)


def draw_all(runs: Sequence[Run], output_dir: str | Path) -> list[Path]:
    """Draw every figure that there is data for, and return the files."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keys = set().union(*(run.keys for run in runs))
    figures: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "rewards": (True, lambda path: draw_rewards(path, runs)),
        "monitor": (any(k.startswith("excess/") or k == "diversity" for k in keys), lambda p: draw_monitor(p, runs)),
        "training": (bool(keys & TRAINING_PANELS.keys()), lambda path: draw_training(path, runs)),
        "r_histogram": (HISTOGRAM in keys, lambda path: draw_histograms(path, runs)),
        "seconds": (any(run.keys >= SECONDS.keys() for run in runs), lambda path: draw_seconds(path, runs)),
    }
    written = []
    for name, (is_there, draw) in figures.items():
        if is_there:
            draw(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of several")
    parser.add_argument("--output_dir", required=True, help="where the PNG files go")
    args = parser.parse_args(argv)
    for path in draw_all(find_runs(args.runs), args.output_dir):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
