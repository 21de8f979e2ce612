"""Figures of a sweep of post-training runs, after those of the CellFluxRL paper: the ablation, and KL weights."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellfluxrl.figures import COLORS, DOTS_PER_INCH, MARKERS, TEXT_COLOR, styled
from cellfluxrl.training.runs import Estimate, Row, Run, by_group, over_seeds, reward_names

DISTANCE_KEYS = ("distance_to_base", "kl")  # at fixed probes; at the training points, in older logs
KL = re.compile(r"[/_-]?kl[_-]?([\d.]+(?:e-?\d+)?)")


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
