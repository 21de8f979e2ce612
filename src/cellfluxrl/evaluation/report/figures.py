"""The pictures of an evaluation, as PNG files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.evaluation.columns import CONTROL_ROW, REAL_ROW
from cellfluxrl.evaluation.evaluate import GroupRow, Images, Results
from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.evaluation.statistics.strata import rows_by_group
from cellfluxrl.figures import COLORS, DOTS_PER_INCH, MARKERS, TEXT_COLOR, image_grid, outlined, styled
from cellfluxrl.rewards.suite import RewardSuite

PANELS_PER_LINE = 4
PER_COMPOUND = 3  # crops of a compound in the grid
SHOWN = 12  # cells in a row of outlined ones
TRAJECTORIES = 6
FRAMES = 8


def _errors(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far the ends of the intervals are below and above; 0 where they are not known."""
    values, low, high = np.array([(i.value, i.low, i.high) for i in intervals], dtype=np.float64).T
    return values, np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)


def _panels(titles: Sequence[str], size: tuple[float, float], per_line: int, *, sharey: bool = False) -> list[Axes]:
    """One panel for each title, in a figure of this size in inches."""
    figure = Figure(figsize=size, layout="constrained", dpi=DOTS_PER_INCH)
    panels = figure.subplots(-(-len(titles) // per_line), per_line, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in panels[len(titles) :]:
        axes.remove()
    for axes, title in zip(panels, titles, strict=False):
        styled(axes).set_title(title, fontsize=9, color=TEXT_COLOR)
    return panels[: len(titles)]


def _save(panels: Sequence[Axes], path: Path, *, legend: bool = False) -> None:
    figure = panels[0].figure
    if legend:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(path)


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    """One line for each name from top to bottom."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_yticklabels(names, fontsize=8)


def draw_measures(path: Path, rows: Mapping[str, Mapping[str, Interval]], columns: Sequence[str]) -> None:
    """One panel for each column: every row with its 95 % interval, and the real cells' as a band."""
    columns = [c for c in columns if any(np.isfinite(row[c].value) for row in rows.values() if c in row)]
    width, names = min(PANELS_PER_LINE, len(columns)), list(rows)
    size = (2.9 * width, (0.75 + 0.24 * len(rows)) * -(-len(columns) // width) + 0.2)
    panels = _panels(columns, size, width)
    for k, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        real = rows[REAL_ROW].get(column, Interval(np.nan))
        if np.isfinite(real.low):
            axes.axvspan(real.low, real.high, color="#888888", alpha=0.2, linewidth=0)
        for place, (name, color) in enumerate(zip(names, itertools.cycle(COLORS), strict=False)):
            if column in rows[name]:
                values, errors = _errors([rows[name][column]])
                axes.errorbar(values, [place], xerr=errors, color=color, marker="o", markersize=4, capsize=2)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        _name_lines(axes, names if k % width == 0 else [""] * len(names))
    _save(panels, path)


def draw_groups(path: Path, groups: Mapping[str, Mapping[str, GroupRow]], columns: Sequence[str]) -> None:
    """Columns of each mechanism or compound, with the number of cells beside its name, one colour for each row."""
    first = next(iter(groups.values()))
    size = (3.1 * len(columns) + 1.8, 0.27 * len(first) + 1.1)
    panels = _panels(columns, size, len(columns), sharey=True)
    for axes, column in zip(panels, columns, strict=True):
        for k, (row, color, marker) in enumerate(
            zip(groups, itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=False)
        ):
            values, errors = _errors([groups[row][name].values[column] for name in first])
            places = np.arange(len(first)) + (k - (len(groups) - 1) / 2) * 0.7 / len(groups)
            axes.errorbar(values, places, xerr=errors, fmt=marker, color=color, markersize=3, linewidth=0.9, label=row)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    _name_lines(panels[0], [f"{name}  ({group.count}, {group.reference})" for name, group in first.items()])
    _save(panels, path, legend=True)


def draw_effects(path: Path, results: Results) -> None:
    """Effects of every compound on every feature, against the real ones."""
    effects, rows = results.effects, [*results.models, REAL_ROW]
    names = {REAL_ROW: "other half of the real cells"}
    titles = [f"{names.get(row, row)}\nr = {effects.agreement[row].pearson.value:.2f}" for row in rows]
    panels = _panels(titles, (3.1 * len(rows), 3.3), len(rows))
    known = effects.reference[np.isfinite(effects.reference)]
    limit = float(np.quantile(np.abs(known), 0.99)) * 1.1 if len(known) else 1.0
    for axes, row, color in zip(panels, rows, itertools.cycle(COLORS), strict=False):
        axes.scatter(effects.reference, effects.rows[row], s=4, color=color, alpha=0.25, linewidth=0)
        axes.plot([-limit, limit], [-limit, limit], color="#555555", linewidth=0.8)
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_aspect("equal")
        axes.set_xlabel("real effect")
    panels[0].set_ylabel("effect")
    _save(panels, path)


def draw_best_of_n(path: Path, results: Results) -> None:
    """What best-of-N and matching gain, in what is chosen by and in what is not."""
    curves = {
        f"{model}, {selection}": values
        for model, by_selection in results.best_of_n.items()
        for selection, values in by_selection.items()
    }
    columns = list(next(iter(next(iter(curves.values())).values())))
    panels = _panels(columns, (3.1 * len(columns), 3.0), len(columns))
    for axes, column in zip(panels, columns, strict=True):
        for (name, curve), color, marker in zip(
            curves.items(), itertools.cycle(COLORS), itertools.cycle(MARKERS), strict=False
        ):
            values, errors = _errors([curve[n][column] for n in curve])
            axes.errorbar(
                list(curve), values, yerr=errors, color=color, marker=marker, capsize=2, markersize=4, label=name
            )
        real = results.rows[REAL_ROW][column]
        axes.axhspan(real.low, real.high, color="#888888", alpha=0.25, linewidth=0, label=REAL_ROW)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(list(curve)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("N candidates")
    _save(panels, path, legend=True)


def _sets(images: Images) -> dict[str, np.ndarray]:
    """Controls, what each model makes of them, and real treated cells."""
    generated = {name: cells[:, 0] for name, cells in images.generated.items()}
    return {"control": images.control, **generated, REAL_ROW: images.real}


def draw_cells(path: Path, images: Images, suite: RewardSuite) -> None:
    """The same cells in every row, outlined as the rewards see them."""
    chosen = np.linspace(0, len(images.control) - 1, SHOWN).round().astype(int)
    image_grid({name: _outlined(cells[chosen], suite) for name, cells in _sets(images).items()}, path)


def _outlined(crops: np.ndarray, suite: RewardSuite) -> np.ndarray:
    masks = suite.segment(crops)
    return outlined(images_to_tensor(crops), masks.nuclei, masks.cells)


def draw_grid(path: Path, results: Results) -> None:
    """Crops of every compound, of every set that was not chosen among candidates."""
    images, rows = results.images, {}
    sets = {name: cells for name, cells in _sets(images).items() if name not in results.chosen}
    by_compound = rows_by_group(images.compound)
    for compound in sorted(by_compound, key=lambda c: (images.moa[by_compound[c][0]], c)):
        chosen = np.resize(by_compound[compound], PER_COMPOUND)
        moa = images.moa[chosen[0]]
        title = compound if compound == moa else f"{compound} ({moa})"
        rows[title] = np.concatenate([outlined(images_to_tensor(s[chosen]), scale=2) for s in sets.values()])
    image_grid(rows, path, {k * PER_COMPOUND: name for k, name in enumerate(sets)})


def draw_failures(path: Path, results: Results, model: str, suite: RewardSuite) -> None:
    """The cells with the lowest combined reward, outlined as the rewards see them, their controls and real ones."""
    images = results.images
    worst = np.argsort(results.measurements[model].rewards["combined"])[:SHOWN]
    shown = {"worst": images.generated[model][worst, 0], "their control": images.control[worst]}
    shown["real, same condition"] = images.real[worst]
    image_grid({name: _outlined(crops, suite) for name, crops in shown.items()}, path)


def draw_trajectories(path: Path, trajectory: torch.Tensor, titles: Sequence[str]) -> None:
    """One row for each of N trajectories `(T, N, C, H, W)`, from the control with noise to the treated cell."""
    steps = np.unique(np.linspace(0, len(trajectory) - 1, min(FRAMES, len(trajectory))).round().astype(int))
    rows = {title: outlined(trajectory[steps, k]) for k, title in enumerate(titles)}
    headers = {place: f"step {step}" for place, step in enumerate(steps.tolist())}
    image_grid(rows, path, headers)


def draw_all(
    folder: Path,
    results: Results,
    suite: RewardSuite,
    trajectories: Mapping[str, tuple[torch.Tensor, Sequence[str]]],
) -> dict[str, Path]:
    """Draw everything; cells in colour only where there are three channels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}

    def draw(name: str, function: Callable[..., None], *args: Any, file: str = "") -> None:
        paths[name] = folder / f"{file or name}.png"
        function(paths[name], *args)

    draw("measures", draw_measures, results.rows, list(results.columns))
    columns = ("accuracy_judge", "accuracy_rewards", "combined", "kernel")
    columns = [column for column in columns if column in results.rows[CONTROL_ROW]]
    draw("by_moa", draw_groups, results.by_moa, columns)
    draw("by_compound", draw_groups, results.by_compound, columns)
    draw("effects", draw_effects, results)
    if results.best_of_n:
        draw("best_of_n", draw_best_of_n, results)
    if results.images.control.shape[1] == 3:
        draw("cells", draw_cells, results.images, suite)
        draw("grid", draw_grid, results)
        for k, model in enumerate(results.models):
            draw(f"failures {model}", draw_failures, results, model, suite, file=f"failures_{k}")
            if model in trajectories:
                draw(f"trajectories {model}", draw_trajectories, *trajectories[model], file=f"trajectories_{k}")
    return paths
