"""Draw a study of post-training: its ablation and its KL weights, after the figures of the CellFluxRL paper.

    python benchmarks/study_figures.py runs/study --output_dir runs/study/plots

- ablation.png, for runs labelled by the reward that they optimise: what it did to every reward.
- kl_sweep.png, for runs of different KL weights with rows in results.json: reward against the distance to the base
  and against the kernel distance to real cells (figure 6 of the paper).

Both read results.json of an evaluation, in the study's folder or given by --results, with rows "base" and "real
treated" beside the runs', which have the labels for names. Without it the ablation compares the first and the last
tenth of each log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellfluxrl.figures import COLORS, DOTS_PER_INCH, MARKERS, TEXT_COLOR, styled
from cellfluxrl.training.runs import Estimate, Run, by_group, find_runs, reward_names

Row = Mapping[str, Estimate]

DISTANCE_KEYS = ("distance_to_base", "kl")  # at fixed probes; at the training points, in older logs
KL = re.compile(r"[/_-]?kl[_-]?([\d.]+(?:e-?\d+)?)")


def read_results(paths: Sequence[Path]) -> dict[str, Row]:
    """The rows of `results.json` files of evaluations, together; what is not known is left out."""
    rows: dict[str, Row] = {}
    for path in paths:
        for label, row in json.loads(path.read_text())["rows"].items():
            known = {name: cell for name, cell in row.items() if cell["value"] is not None}
            rows[label] = {name: (cell["value"], cell["error"] or 0.0) for name, cell in known.items()}
    return rows


def mean_and_error(values: Sequence[float]) -> Estimate:
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


def ends(run: Run, key: str) -> tuple[Estimate, Estimate]:
    """Mean and standard error over the first and over the last tenth of the run."""
    values = run.curve(key)[1]
    tenth = max(1, len(values) // 10)
    return mean_and_error(values[:tenth]), mean_and_error(values[-tenth:])


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over seeds, with the error of their spread; one seed keeps its own error."""
    return estimates[0] if len(estimates) == 1 else mean_and_error([value for value, _ in estimates])


def optimized_reward(label: str, names: Sequence[str]) -> str | None:
    """The reward that a run is labelled by: `moa` for "moa" and for "only_moa"."""
    name = label.removeprefix("only_")
    return name if name in names else None


def ablation(runs: Sequence[Run], results: Mapping[str, Row]) -> dict[str, Row]:
    """By the optimised reward, the change of each reward: against the base's row, or from the start of the logs.

    Returns:
        Rows and columns in the order of the logs; empty without such runs.
    """
    names = reward_names(runs)
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
        moved = {name: ends(run, f"reward/{name}") for name in logged}
        before, after = ({name: pair[k] for name, pair in moved.items()} for k in (0, 1))
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
    names, points = reward_names(runs), []
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
        distance = over_seeds([ends(run, key)[1] for run in group])
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
        ("kernel", "combined", "kernel distance to real cells", "combined reward"),
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
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=6, frameon=False, fontsize=8)
    figure.savefig(path)


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of runs, each named by its label")
    parser.add_argument("--output_dir", required=True, type=Path, help="where the PNG files go")
    parser.add_argument("--results", action="append", help="a results.json; by default that in each RUN")
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    paths = args.results or [path for path in (Path(run) / "results.json" for run in args.runs) if path.is_file()]
    runs, results = find_runs(args.runs), read_results([Path(path) for path in paths])
    changes, points = ablation(runs, results), sweep(runs, results)
    if len(changes) >= 2:
        draw_ablation(args.output_dir / "ablation.png", changes)
        print(args.output_dir / "ablation.png")
    if len({point.kl_weight for point in points}) >= 2:
        draw_sweep(args.output_dir / "kl_sweep.png", points, results)
        print(args.output_dir / "kl_sweep.png")


if __name__ == "__main__":
    main()
