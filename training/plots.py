"""Draw what post-training logged: one run, several runs, or a sweep.

    python training/plots.py runs/rl --output_dir plots
    python training/plots.py runs/sweep --output_dir plots

A run is a folder with the log.jsonl of training/rl.py; a sweep is a folder of runs, each named by its label, with
seeds of one label as LABEL/seed0, LABEL/seed1, ... What is drawn depends on what is there:

- rewards.png: each reward against the iteration, with its spread over the rollouts, and the real cells' level where
  the run has a real_rewards.json ({reward: [mean, standard error]}, in the run's form of the rewards).
- monitor.png: how far each reward is above real cells, and diversity as a share of the base's.
- training.png: distance to the base, share of groups without signal, gradient norm, rates, ...
- r_histogram.png: the preferences r over time.
- seconds.png: what an iteration's time is spent on.
- ablation.png, for runs labelled by the reward that they optimise: what it did to every reward.
- kl_sweep.png, for runs of different KL weights with rows in results.json: reward against the distance to the base
  and against the Frechet distance (CellFluxRL, figure 6).

The last two read results.json, in the sweep's folder or given by --results: {"rows": {label: {column: [value,
standard error]}}}, with rows "base" and "real treated" beside the runs'. Without it the ablation compares the first
and the last tenth of each log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellfluxrl.evaluation.comparison import REWARD_COLUMNS
from cellfluxrl.figures import COLORS, DOTS_PER_INCH, MARKERS, TEXT_COLOR, smoothed, styled

Estimate = tuple[float, float]  # value and standard error
Row = Mapping[str, Estimate]

DISTANCE_KEYS = ("distance_to_base", "kl")  # at fixed probes; at the training points, in older logs
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
SEED = re.compile(r"[/_-]?seed_?\d+$")
KL = re.compile(r"[/_-]?kl[_-]?([\d.]+(?:e-?\d+)?)")
COLUMNS = 3
FEW_RUNS = 3  # more of them hide each other's spread


@dataclass
class Run:
    """One run of post-training.

    Args:
        label: Its folder's name, within the sweep.
        log: Parsed lines of its log.jsonl.
        real: The rewards of real cells, if they are known.
    """

    label: str
    log: list[dict[str, Any]]
    real: dict[str, Estimate] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The label without the seed: runs of one group are repetitions."""
        return SEED.sub("", self.label) or self.label

    @cached_property
    def keys(self) -> set[str]:
        return {key for line in self.log for key in line}

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and finite values of a key."""
        pairs = [(line["step"], line[key]) for line in self.log if _is_finite(line.get(key))]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(steps), np.array(values, dtype=float)

    def ends(self, key: str) -> tuple[Estimate, Estimate]:
        """Mean and standard error over the first and over the last tenth of the run."""
        values = self.curve(key)[1]
        tenth = max(1, len(values) // 10)
        return _mean_and_error(values[:tenth]), _mean_and_error(values[-tenth:])


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean_and_error(values: Sequence[float]) -> Estimate:
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


# --------------------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------------------


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, or below them; logs without rewards, as those of pretraining, are passed over.

    Raises:
        ValueError: If a folder has none, or two runs have one label.
    """
    runs = []
    for folder in map(Path, folders):
        alone = (folder / "log.jsonl").is_file()
        paths = (
            [folder / "log.jsonl"] if alone else sorted([*folder.glob("*/log.jsonl"), *folder.glob("*/*/log.jsonl")])
        )
        found = [_read_run(path, folder.resolve().name if alone else _label(path, folder)) for path in paths]
        found = [run for run in found if any(key.startswith("reward/") for key in run.keys)]
        if not found:
            raise ValueError(f"no run in {str(folder)!r}: no log.jsonl with rewards, in it or up to two folders below")
        runs += found
    labels = [run.label for run in runs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two runs are called {label!r}: rename a folder, or put them into one and give that")
    return runs


def _label(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _read_run(path: Path, label: str) -> Run:
    log = []
    for line in path.read_text().splitlines():
        try:
            log.append(json.loads(line))
        except json.JSONDecodeError:  # cut off: the run was killed, or is about to write
            continue
    real = path.with_name("real_rewards.json")
    return Run(label, log, {k: tuple(v) for k, v in json.loads(real.read_text()).items()} if real.is_file() else {})


def read_results(paths: Sequence[Path]) -> dict[str, Row]:
    """The rows of results.json files, together."""
    rows = {}
    for path in paths:
        rows |= json.loads(path.read_text())["rows"]
    return {label: {name: tuple(pair) for name, pair in row.items()} for label, row in rows.items()}


def by_group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ only in the seed, by their common label."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over seeds, with the error of their spread; one seed keeps its own error."""
    return estimates[0] if len(estimates) == 1 else _mean_and_error([value for value, _ in estimates])


# --------------------------------------------------------------------------------------------------------------------
# Curves
# --------------------------------------------------------------------------------------------------------------------


def draw_rewards(path: Path, runs: Sequence[Run]) -> None:
    """Each reward's mean over the rollouts, its spread, and the real cells' level."""
    figure, panels = _panels(_reward_names(runs))
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


def _reward_names(runs: Sequence[Run]) -> list[str]:
    """Those of the evaluation table in its order, then others."""
    logged = {key.removeprefix("reward/") for run in runs for key in run.keys if key.startswith("reward/")}
    others = logged - {"std", *REWARD_COLUMNS}  # the first logs called the spread of combined reward/std
    return [name for name in REWARD_COLUMNS if name in logged] + sorted(others)


def draw_monitor(path: Path, runs: Sequence[Run]) -> None:
    """How far each reward is above real cells, and diversity."""
    names = [*(f"excess/{name}" for name in _reward_names(runs)), "diversity"]
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


# --------------------------------------------------------------------------------------------------------------------
# Sweeps
# --------------------------------------------------------------------------------------------------------------------


def optimized_reward(label: str, names: Sequence[str]) -> str | None:
    """The reward that a run is labelled by: `moa` for "moa" and for "only_moa"."""
    name = label.removeprefix("only_")
    return name if name in names else None


def ablation(runs: Sequence[Run], results: Mapping[str, Row]) -> dict[str, Row]:
    """By the optimised reward, the change of each reward: against the base's row, or from the start of the logs.

    Returns:
        Rows and columns in the order of the evaluation table; empty without such runs.
    """
    names = list(dict.fromkeys((*REWARD_COLUMNS, *_reward_names(runs))))  # a run may log what it optimises only
    changes: dict[str, Row] = {}
    for label, group in by_group(runs).items():
        optimized = optimized_reward(label, names)
        if optimized is not None:
            rows = [_change(run, results, names) for run in group]
            shared = [name for name in names if all(name in row for row in rows)]
            changes[optimized] = {name: over_seeds([row[name] for row in rows]) for name in shared}
    return {name: changes[name] for name in names if name in changes}


def _change(run: Run, results: Mapping[str, Row], names: Sequence[str]) -> Row:
    if run.label in results and "base" in results:
        before, after = results["base"], results[run.label]
    else:
        logged = [name for name in names if len(run.curve(f"reward/{name}")[1])]
        ends = {name: run.ends(f"reward/{name}") for name in logged}
        before, after = ({name: pair[k] for name, pair in ends.items()} for k in (0, 1))
    return {
        name: (after[name][0] - before[name][0], math.hypot(after[name][1], before[name][1]))
        for name in names
        if name in before and name in after
    }


def draw_ablation(path: Path, changes: Mapping[str, Row]) -> None:
    """A matrix: rows are what was optimised, columns what changed; colours compare within a column."""
    columns = list(dict.fromkeys(name for row in changes.values() for name in row))
    values = np.array([[row.get(name, (math.nan, 0))[0] for name in columns] for row in changes.values()])
    scale = np.nanmax(np.abs(values), axis=0, initial=1e-9)
    figure = Figure(
        figsize=(1.9 + 0.92 * len(columns), 1.5 + 0.48 * len(changes)), layout="constrained", dpi=DOTS_PER_INCH
    )
    axes = figure.add_subplot()
    axes.imshow(values / scale, cmap="RdBu", vmin=-1.3, vmax=1.3, aspect="auto")
    for i, (optimized, row) in enumerate(changes.items()):
        for j, name in enumerate(columns):
            if name in row:
                value, error = row[name]
                weight = "bold" if optimized == name else "normal"
                color = "white" if abs(value) > 0.85 * scale[j] else "black"
                style = {"ha": "center", "va": "center", "color": color}
                digits = 2 if error >= 0.005 else 3
                axes.text(j, i - 0.12, f"{value:+.{digits}f}", fontsize=8, weight=weight, **style)
                axes.text(j, i + 0.24, f"± {error:.{digits}f}", fontsize=6.5, **style)
    axes.set_xticks(range(len(columns)), [name.replace("_", "\n") for name in columns], fontsize=8, color=TEXT_COLOR)
    axes.set_yticks(range(len(changes)), list(changes), fontsize=8, color=TEXT_COLOR)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("optimised reward", fontsize=9, color=TEXT_COLOR)
    axes.set_xlabel("change of each reward (blue: up; colours compare within a column)", fontsize=9, color=TEXT_COLOR)
    figure.savefig(path)


@dataclass(frozen=True)
class SweepPoint:
    """The runs of one label, over their seeds.

    Args:
        series: The label without its KL weight.
        kl_weight: As in the label ("energy_kl0.1"), or as last logged.
        distance: To the base, over the last tenth of the run.
        row: Of the evaluation table.
    """

    series: str
    kl_weight: float | None
    distance: Estimate
    row: Row


def sweep(runs: Sequence[Run], results: Mapping[str, Row]) -> list[SweepPoint]:
    """The points of runs that have a row in the results and a distance to the base, by series and KL weight.

    Runs of a single reward have a figure of their own, the ablation.
    """
    names, points = _reward_names(runs), []
    for label, group in by_group([run for run in runs if run.label in results]).items():
        if optimized_reward(label, names):
            continue
        key = next((key for key in DISTANCE_KEYS if all(len(run.curve(key)[1]) for run in group)), None)
        if key is None:
            continue
        rows = [results[run.label] for run in group]
        row = {name: over_seeds([r[name] for r in rows]) for name in rows[0] if all(name in r for r in rows)}
        in_label, logged = KL.search(label), group[0].curve("kl_weight")[1]
        weight = float(in_label[1]) if in_label else float(logged[-1]) if len(logged) else None
        distance = over_seeds([run.ends(key)[1] for run in group])
        points.append(SweepPoint(KL.sub("", label) or "RL", weight, distance, row))
    return sorted(points, key=lambda point: (point.series, point.kl_weight or 0.0))


def draw_sweep(path: Path, points: Sequence[SweepPoint], results: Mapping[str, Row]) -> None:
    """Reward against the distance to the base and against two distances to real cells; one line a series."""
    zero: dict[str, Estimate] = {"distance": (0.0, 0.0)}
    special = {
        name: results[name] | (zero if name == "base" else {}) for name in ("base", "real treated") if name in results
    }
    figure = Figure(figsize=(11.4, 3.9), layout="constrained", dpi=DOTS_PER_INCH)
    panels = (
        ("distance", "combined", "distance to the base", "combined reward"),
        ("frechet_image", "combined", "Frechet distance, hand-made features", "combined reward"),
        ("distance", "wasserstein", "distance to the base", "Wasserstein distance to real cells"),
    )
    for k, (x, y, x_label, y_label) in enumerate(panels):
        axes = styled(figure.add_subplot(1, len(panels), k + 1))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        for style, (series, group) in zip(
            zip(itertools.cycle(COLORS), itertools.cycle((*MARKERS, "X")), strict=False),  # 42 that differ
            itertools.groupby(points, key=lambda point: point.series),
            strict=False,
        ):
            _draw_series(axes, [(p.row | {"distance": p.distance}, p.kl_weight) for p in group], x, y, style, series)
        _draw_special(axes, special, x, y)
        axes.margins(0.16, 0.14)
    _finish(figure, path)


def _draw_series(
    axes: Axes, rows: Sequence[tuple[Row, float | None]], x: str, y: str, style: tuple[str, str], label: str
) -> None:
    rows = [(row, weight) for row, weight in rows if x in row and y in row]
    if not rows:
        return
    (xs, x_errors), (ys, y_errors) = (np.transpose([row[key] for row, _ in rows]) for key in (x, y))
    color, marker = style
    axes.errorbar(
        xs, ys, xerr=x_errors, yerr=y_errors, color=color, marker=marker, capsize=2, linewidth=1, label=label
    )
    for a, b, (_, weight) in zip(xs, ys, rows, strict=True):
        if weight is not None and len(rows) > 1:
            axes.annotate(f"{weight:g}", (a, b), (4, 5), textcoords="offset points", fontsize=7, color=color)


def _draw_special(axes: Axes, rows: Mapping[str, Row], x: str, y: str) -> None:
    """The base as a point, real cells as a level."""
    if "base" in rows and x in rows["base"] and y in rows["base"]:
        (a, a_error), (b, b_error) = rows["base"][x], rows["base"][y]
        axes.errorbar(a, b, xerr=a_error, yerr=b_error, color="#333333", marker="*", ms=11, ls="", label="base")
    if "real treated" in rows and y in rows["real treated"]:
        mean, error = rows["real treated"][y]
        axes.axhspan(mean - error, mean + error, color="#888888", alpha=0.25, linewidth=0)
        axes.axhline(mean, color="#555555", linewidth=1.2, label="real cells")


# --------------------------------------------------------------------------------------------------------------------


def draw_all(runs: Sequence[Run], results: Mapping[str, Row], output_dir: str | Path) -> list[Path]:
    """Draw every figure that there is data for, and return the files."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keys = set().union(*(run.keys for run in runs))
    changes, points = ablation(runs, results), sweep(runs, results)
    figures: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "rewards": (True, lambda path: draw_rewards(path, runs)),
        "monitor": (any(k.startswith("excess/") or k == "diversity" for k in keys), lambda p: draw_monitor(p, runs)),
        "training": (bool(keys & TRAINING_PANELS.keys()), lambda path: draw_training(path, runs)),
        "r_histogram": (HISTOGRAM in keys, lambda path: draw_histograms(path, runs)),
        "seconds": (any(run.keys >= SECONDS.keys() for run in runs), lambda path: draw_seconds(path, runs)),
        "ablation": (len(changes) >= 2, lambda path: draw_ablation(path, changes)),
        "kl_sweep": (len({p.kl_weight for p in points}) >= 2, lambda path: draw_sweep(path, points, results)),
    }
    written = []
    for name, (is_there, draw) in figures.items():
        if is_there:
            draw(folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or of a sweep")
    parser.add_argument("--output_dir", required=True, help="where the PNG files go")
    parser.add_argument("--results", action="append", help="a results.json; by default that in each RUN")
    args = parser.parse_args(argv)
    paths = args.results or [path for path in (Path(run) / "results.json" for run in args.runs) if path.is_file()]
    for path in draw_all(find_runs(args.runs), read_results([Path(path) for path in paths]), args.output_dir):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
