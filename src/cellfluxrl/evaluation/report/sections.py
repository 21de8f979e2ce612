"""The report of an evaluation: `report.html`, made of its results and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellfluxrl.evaluation.claims import FAILS, HOLDS, Claim
from cellfluxrl.evaluation.columns import CONTROL_ROW, REAL_ROW
from cellfluxrl.evaluation.evaluate import GroupRow, Results
from cellfluxrl.evaluation.report.html import MISSING, Section, Table, format_interval, write_report
from cellfluxrl.evaluation.statistics.intervals import Interval

INTERVALS = "Each value with its 95 % interval below it. A dash means not measured."
COLUMNS_AT_ONCE = 9


def findings(results: Results) -> list[str]:
    """The results in a few sentences."""
    optimised = [name for name, column in results.columns.items() if column.optimised]
    sentences = [
        f"Rewards, and what is made with their classifier, may have been optimised: {', '.join(optimised)}. "
        "Everything else was never optimised."
    ]
    for model in (model for model in results.models if model not in results.chosen):
        claims = [c for c in results.claims if c.model == model and not c.against and not c.optimised]
        held = sum(c.verdict == HOLDS for c in claims)
        failed = [c.column for c in claims if c.verdict == FAILS]
        sentences.append(
            f"{model}: of {len(claims)} claims on held-out evidence {held} hold and "
            f"{len(failed)} fail{' (' + ', '.join(failed) + ')' if failed else ''}; the others are open."
        )
    for ours, theirs in results.paired:
        if theirs in results.models:
            sentences += _gains(results, ours, theirs)
    return [*sentences, *results.notes]


def _gains(results: Results, ours: str, theirs: str) -> list[str]:
    """Which gains of one model over another hold."""
    sentences = []
    for optimised, kind in ((True, "what may have been optimised"), (False, "held-out evidence")):
        claims = [c for c in results.claims if (c.model, c.against, c.optimised) == (ours, theirs, optimised)]
        better, worse = ([c.column for c in claims if c.verdict == verdict] for verdict in (HOLDS, FAILS))
        open_claims = len(claims) - len(better) - len(worse)
        sentences.append(
            f"{ours} against {theirs}, on {kind}: better in {', '.join(better) or 'nothing'}; worse in "
            f"{', '.join(worse) or 'nothing'}; no difference shown in the other {open_claims}."
        )
    return sentences


def verdicts(results: Results) -> dict[str, dict[str, Claim]]:
    """By model and column, the claims about each model alone: held-out evidence first."""
    claims = sorted((claim for claim in results.claims if not claim.against), key=lambda claim: claim.optimised)
    return {model: {c.column: c for c in claims if c.model == model} for model in results.models}


def _evidence_sections(results: Results) -> list[Section]:
    """Which claims about each model hold, and which gains over the other one."""
    every = verdicts(results)
    columns = list(dict.fromkeys(column for claims in every.values() for column in claims))
    table = Table(
        "What became of the claims about each model, with the 95 % interval that says so.",
        columns,
        {
            model: [
                (claims[c].verdict, format_interval(claims[c].value)[1]) if c in claims else (MISSING, "")
                for c in columns
            ]
            for model, claims in every.items()
        },
    )
    sections = [
        Section(
            "What holds on held-out evidence",
            paragraphs=[
                "A claim holds if its 95 % interval lies on the right side of no difference, and fails if it lies "
                "on the wrong one. That two things are alike cannot be shown by any number of cells, only refuted. A "
                "gain that is only in what was optimised is one in the rewards, and not shown to be one in biology.",
            ],
            tables=[table],
        )
    ]
    first = results.models[0]
    for model, claims in every.items():
        sections.append(_claims_section(f"Claims about {model}", claims.values(), folded=model != first))
    for ours, theirs in results.paired:
        if theirs in results.models:
            gains = [c for c in results.claims if (c.model, c.against) == (ours, theirs)]
            folded = (ours, theirs) != (first, results.models[1])
            sections.append(_claims_section(f"Gains of {ours} over {theirs}", gains, folded=folded))
    return sections


def _claims_section(title: str, claims: Iterable[Claim], *, folded: bool) -> Section:
    lines = [f"{'Optimised' if c.optimised else 'Held out'}, {c.verdict}. | {c.text}" for c in claims]
    return Section(title, findings=lines, folded=folded)


def _measurements_section(results: Results, pictures: Mapping[str, Path]) -> Section:
    tables = []
    for optimised, kind in ((True, "May have been optimised."), (False, "Never optimised.")):
        names = [name for name, column in results.columns.items() if column.optimised is optimised]
        for columns in np.array_split(names, -(-len(names) // COLUMNS_AT_ONCE)):
            rows = {name: [row.get(c, Interval(math.nan)) for c in columns] for name, row in results.rows.items()}
            tables.append(Table(f"{kind} {INTERVALS}", columns.tolist(), rows, REAL_ROW))
    return Section(
        "Measurements",
        paragraphs=[
            f"The row “{REAL_ROW}” is the other half of the real cells: what a perfect model reaches with as many "
            f"cells. The row “{CONTROL_ROW}” is not a model at all. Reward above the real cells' is over-optimisation."
        ],
        tables=tables,
        notes={f"{name} ({c.better})": c.note for name, c in results.columns.items()},
        pictures=[("All measures with 95 % intervals; the band is that of real cells", pictures["measures"])],
    )


def _paired_section(results: Results) -> Section:
    return Section(
        "Paired comparisons",
        paragraphs=[
            "Differences on the same controls, between models also with the same noise. P-values are of sign flips of "
            "the pairs (means), or of swaps of their members (distances); effect_error pairs compounds. Holm's "
            "correction is over the lines of a table."
        ],
        tables=[
            Table(
                f"{ours} minus {theirs}",
                ["difference", "p", "p, corrected", "pairs"],
                {name: [t.difference, t.p_value, t.adjusted, t.count] for name, t in tests.items()},
            )
            for (ours, theirs), tests in results.paired.items()
        ],
        folded=True,
    )


def _groups_section(
    title: str, groups: Mapping[str, Mapping[str, GroupRow]], models: Sequence[str], picture: Path
) -> Section:
    tables = []
    for row in [*models, REAL_ROW]:
        by_group = groups[row]
        columns = list(next(iter(by_group.values())).values)
        lines = {name: [g.count, g.reference, *(g.values[c] for c in columns)] for name, g in by_group.items()}
        tables.append(Table(f"{row}. {INTERVALS}", ["cells", "real cells", *columns], lines))
    caption = f"{title}: 95 % intervals; beside the names the numbers of cells, and of real ones to compare with"
    return Section(title, tables=tables, pictures=[(caption, picture)], folded=True)


def _effects_section(results: Results, pictures: Mapping[str, Path]) -> Section:
    lines = {
        name: [a.pearson, a.spearman, a.same_sign, a.slope, a.pairs, a.clear_pairs]
        for name, a in results.effects.agreement.items()
    }
    columns = ["Pearson", "Spearman", "same sign", "slope", "pairs", "clear ones"]
    count = len(results.effects.features)
    return Section(
        "Effects of compounds on morphology",
        paragraphs=[
            f"Robust effect sizes, treated against control, of {len(results.effects.compounds)} compounds on {count} "
            f"features in the manner of CellProfiler. The row “{REAL_ROW}”, half of the real cells against the other "
            "half, is the ceiling that the noise of so many cells allows."
        ],
        tables=[Table(f"Agreement with the real effects. {INTERVALS}", columns, lines, REAL_ROW)],
        pictures=[("Each dot is a compound and a feature", pictures["effects"])],
    )


def _memorisation_section(results: Results) -> Section:
    lines = {
        name: [m.copies, m.distance_ratio, m.nearer_to_training, m.nearer_to_training_real, m.p_value]
        for name, m in results.memorisation.items()
    }
    columns = ["copies", "distance ratio", "nearer to training", "the same, real cells", "p"]
    first = next(iter(results.memorisation.values()))
    return Section(
        "Memorised training cells",
        paragraphs=[
            f"Nearest neighbours among {first.training} training cells, on the features of "
            f"{results.evaluators['features']}. A copy sticks to one training cell as only 1 % of new real cells do; "
            "p is that of as many copies by chance."
        ],
        tables=[Table(INTERVALS, columns, lines, REAL_ROW)],
    )


def _pictures_sections(results: Results, pictures: Mapping[str, Path]) -> list[Section]:
    """Those of the pictures of cells that were drawn."""
    captions = {
        "cells": "The same cells in every row, outlined as the rewards see them; actin red, tubulin green, DNA blue",
        "grid": "Cells of every compound",
    }
    details = {}
    for model in results.models:
        details[f"trajectories {model}"] = f"{model}: from the control with source noise to the treated cell"
        details[f"failures {model}"] = f"{model}: the cells with the lowest combined reward, outlined"
    sections = []
    for title, every, folded in (("Cells", captions, False), ("Trajectories and failures", details, True)):
        shown = [(caption, pictures[name]) for name, caption in every.items() if name in pictures]
        if shown:
            sections.append(Section(title, pictures=shown, folded=folded))
    return sections


def write_evaluation_report(
    path: str | Path,
    title: str,
    results: Results,
    pictures: Mapping[str, Path],
    settings: Mapping[str, Any],
    more: Sequence[Section] = (),
) -> None:
    """Write `report.html` with the pictures of [`draw_all`], and further sections before the details."""
    sections = [*_evidence_sections(results), _measurements_section(results, pictures)]
    if results.best_of_n:
        caption = "The best, and the matched, of N candidates; the band is that of real cells"
        sections.append(Section("Best of N", pictures=[(caption, pictures["best_of_n"])]))
    sections += [*_pictures_sections(results, pictures), *more, _effects_section(results, pictures)]
    if results.memorisation:
        sections.append(_memorisation_section(results))
    sections.append(_paired_section(results))
    sections.append(_groups_section("By mechanism of action", results.by_moa, results.models, pictures["by_moa"]))
    sections.append(_groups_section("By compound", results.by_compound, results.models, pictures["by_compound"]))
    shown = {**results.evaluators, **{k: v for k, v in settings.items() if v not in (None, (), [])}}
    write_report(path, title, findings(results), sections, shown)
