"""From images to everything that an evaluation says of them: tables, comparisons and claims, each with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cellfluxrl.evaluation.claims import Claim, claims_of_model, claims_of_pair
from cellfluxrl.evaluation.columns import CONTROL_ROW, REAL_ROW, Column, columns_of
from cellfluxrl.evaluation.features.morphology import morphology_feature_names
from cellfluxrl.evaluation.measuring import (
    CandidateMeasurements,
    Evaluators,
    Measurements,
    measure_candidates,
    measure_cells,
)
from cellfluxrl.evaluation.statistics.distances import frechet_infinity, kernel_distance
from cellfluxrl.evaluation.statistics.effects import EffectAgreement, effect_agreement, effects_by_group
from cellfluxrl.evaluation.statistics.intervals import (
    Interval,
    bootstrap_interval,
    half_sampling_interval,
    mean_interval,
)
from cellfluxrl.evaluation.statistics.metrics import frechet_distance, mean_wasserstein, relative_spread, spread_within
from cellfluxrl.evaluation.statistics.neighbours import Memorisation, coverage, memorisation
from cellfluxrl.evaluation.statistics.paired import (
    PairedTest,
    adjust,
    paired_kernel_distances,
    paired_means,
    paired_statistics,
)
from cellfluxrl.evaluation.statistics.strata import rows_by_group
from cellfluxrl.evaluation.statistics.two_sample import MINIMUM_CELLS, two_sample_test
from cellfluxrl.pipelines.selection import choose_candidates, scores_of

SELECTIONS = ("best", "match")
MOST_FEATURES = 512  # of a Frechet distance with an interval: the time grows with the third power
RESAMPLES = 300


@dataclass(frozen=True)
class Images:
    """The cells that are compared, uint8 of shape `(N, C, H, W)`.

    Args:
        control, real: A control, and a treated cell, of each of N conditions.
        reference: M other treated cells, which every row is compared with.
        generated: By model, `(N, K, C, H, W)`: K samples of each control, the first of which is evaluated and the
            others are candidates. Those that are chosen among them become a separate model.
        moa, compound, reference_moa, reference_compound: Of each condition, and of each of the M.
        training: Treated training cells.
    """

    control: np.ndarray
    real: np.ndarray
    reference: np.ndarray
    generated: dict[str, np.ndarray]
    moa: list[str]
    compound: list[str]
    reference_moa: list[str]
    reference_compound: list[str]
    training: np.ndarray | None = None


@dataclass(frozen=True)
class GroupRow:
    """One mechanism or compound in one row: how many cells, how many real ones, and its columns."""

    count: int
    reference: int
    values: dict[str, Interval]


@dataclass(frozen=True)
class Effects:
    """Effect sizes of K compounds on F features: of the reference, and of each row."""

    compounds: list[str]
    features: list[str]
    reference: np.ndarray
    rows: dict[str, np.ndarray]
    agreement: dict[str, EffectAgreement]


@dataclass(frozen=True)
class Results:
    """What [`evaluate`] returns; `docs/evaluation.md` explains it. `images` has the chosen sets beside those given.

    Args:
        models: The rows that were generated.
        chosen: Those of them that were chosen among candidates, and the model that each is of.
    """

    models: list[str]
    chosen: dict[str, str]
    images: Images
    evaluators: dict[str, str]
    columns: dict[str, Column]
    rows: dict[str, dict[str, Interval]]
    by_moa: dict[str, dict[str, GroupRow]]
    by_compound: dict[str, dict[str, GroupRow]]
    effects: Effects
    memorisation: dict[str, Memorisation]
    paired: dict[tuple[str, str], dict[str, PairedTest]]
    best_of_n: dict[str, dict[str, dict[int, dict[str, Interval]]]]
    claims: list[Claim]
    measurements: dict[str, Measurements]
    notes: list[str] = field(default_factory=list)


def evaluate(
    images: Images,
    evaluators: Evaluators,
    best_of_n: Sequence[int] = (),
    seed: int = 0,
    measure: Callable[[np.ndarray, Sequence[str], Evaluators, str], Measurements] = measure_cells,
) -> Results:
    """Compare generated cells with real treated ones, by the rewards and by what no reward has seen.

    The rows `"copy of control"` and `"real treated"` are always there: what no model should be worse than, and what a
    perfect one would reach with as many cells.

    Args:
        images: With the first model in question, and possibly others to compare it with.
        evaluators: What measures them.
        best_of_n: Draw the curves of the best, and of the matched, of so many candidates; those of the largest number
            are separate rows, `"NAME, best of N"` and `"NAME, match of N"`. A model with a single sample of each
            control takes no part.
        seed: Of all resampling.
        measure: How a set of cells is measured; `cellfluxrl evaluate` keeps the results in files.

    Raises:
        ValueError: If sets of images do not fit each other, or too few candidates were generated.

    Example:
        >>> results = evaluate(images, Evaluators(suite, extractor, OtsuSegmenter(), judge))    # doctest: +SKIP
        >>> results.rows["real treated"]["kernel"], results.paired[("rl", "base")]["judge"]     # doctest: +SKIP
    """
    _check(images, best_of_n)
    given, most = list(images.generated), max(best_of_n, default=0)
    candidates = {
        model: measure_candidates(cells[:, :most], images.moa, evaluators)
        for model, cells in images.generated.items()
        if 0 < most <= cells.shape[1]
    }
    images, chosen = _with_chosen(images, candidates, evaluators) if most > 1 else (images, {})
    models = list(images.generated)
    sets = {CONTROL_ROW: images.control, **{name: g[:, 0] for name, g in images.generated.items()}}
    sets[REAL_ROW] = images.real
    measured = {name: measure(cells, images.moa, evaluators, name) for name, cells in sets.items()}
    reference = measure(images.reference, images.reference_moa, evaluators, "reference")

    columns = columns_of(evaluators, with_training=images.training is not None)
    effects = _effects(measured, reference, images, evaluators.suite.channel_names, seed)
    groups = _moa_codes(images)
    rows = {
        name: {**_describe(m, reference, groups, seed), **_describe_effects(effects, name, seed)}
        for name, m in measured.items()
    }
    copies = {}
    if images.training is not None:
        training = evaluators.features(images.training)
        for name, m in measured.items():
            copies[name] = memorisation(m.features, training, reference.features, seed=seed)
            rows[name] |= {"copies": copies[name].copies, "nearest_training": copies[name].distance_ratio}
    between = [*((given[0], other) for other in given[1:]), *chosen.items()]
    pairs = [(model, CONTROL_ROW) for model in models] + between
    paired = {(a, b): _compare(measured[a], measured[b], reference, effects, (a, b), groups, seed) for a, b in pairs}
    claims = [c for model in models for c in claims_of_model(model, rows, paired, copies, columns)]
    claims += [c for ours, theirs in between for c in claims_of_pair(ours, theirs, rows, paired, columns)]
    by_moa, by_compound = (
        {name: _by_group(m, reference, ours, theirs, seed) for name, m in measured.items()}
        for ours, theirs in ((images.moa, images.reference_moa), (images.compound, images.reference_compound))
    )
    return Results(
        models=models,
        chosen=chosen,
        images=images,
        evaluators=_names(evaluators),
        columns=columns,
        rows=rows,
        by_moa=by_moa,
        by_compound=by_compound,
        effects=effects,
        memorisation=copies,
        paired=paired,
        best_of_n={m: _best_of_n(c, images, evaluators, reference, best_of_n, seed) for m, c in candidates.items()},
        claims=claims,
        measurements={**measured, "reference": reference},
    )


def _check(images: Images, best_of_n: Sequence[int]) -> None:
    if not images.generated:
        raise ValueError("there are no generated cells to evaluate")
    lengths = {"real": len(images.real), "moa": len(images.moa), "compound": len(images.compound)}
    lengths |= {name: len(cells) for name, cells in images.generated.items()}
    for name, length in lengths.items():
        if length != len(images.control):
            raise ValueError(f"{name} must be as many as the {len(images.control)} controls, got {length}")
    check_counts(len(images.control), len(images.reference))
    for name in images.generated:
        if name in (CONTROL_ROW, REAL_ROW, "reference"):
            raise ValueError(f"a model cannot be called {name!r}, which is the name of another row")
    samples = [cells.shape[1] for cells in images.generated.values()]
    least, most = min(best_of_n, default=1), max(best_of_n, default=1)
    if least < 1 or most > max(samples) or any(1 < count < most for count in samples):
        raise ValueError(f"best_of_n={list(best_of_n)} needs as many samples of each control, got {min(samples)}")


def check_counts(cells: int, reference: int) -> None:
    """Raise a `ValueError` for too few cells, or too few real ones to compare with."""
    if min(cells, reference) < 2 * MINIMUM_CELLS:
        raise ValueError(
            f"an evaluation needs at least {2 * MINIMUM_CELLS} cells and as many real ones to compare with, got "
            f"{cells} and {reference}"
        )


def _names(evaluators: Evaluators) -> dict[str, str]:
    return {
        "features": evaluators.extractor.name,
        "features are held out": str(evaluators.features_are_held_out),
        "segmenter of the rewards": type(evaluators.suite.segmenter).name,
        "second segmenter": type(evaluators.segmenter).name,
        "held-out classifier": "none" if evaluators.judge is None else f"width {evaluators.judge.config.width}",
    }


def _moa_codes(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the mechanisms of the sample, and of the reference."""
    _, codes = np.unique([*images.moa, *images.reference_moa], return_inverse=True)
    return codes[: len(images.moa)], codes[len(images.moa) :]


def _describe(
    cells: Measurements, reference: Measurements, groups: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Interval]:
    """The columns that need no compounds."""
    row = {name: mean_interval(values, seed=seed) for name, values in cells.per_cell.items()}
    a, b = cells.features, reference.features
    counts, few_features = [len(a), len(b)], a.shape[1] <= MOST_FEATURES
    row["frechet"] = half_sampling_interval(
        lambda i, j: frechet_distance(a[i], b[j]), counts, 50 if few_features else 0, seed
    )
    if min(counts) // 2 > a.shape[1]:
        row["frechet_infinity"] = frechet_infinity(a, b, 30 if few_features else 0, seed)
    row["kernel"] = kernel_distance(a, b, seed=seed)
    x, y = cells.statistics, reference.statistics
    row["wasserstein"] = half_sampling_interval(lambda i, j: mean_wasserstein(x[i], y[j]), counts, 200, seed)
    g, h = groups
    row["spread_within"] = half_sampling_interval(
        lambda i, j: spread_within(x[i], g[i], y[j], h[j]), counts, RESAMPLES, seed
    )
    row["spread"] = _spread(a, b, RESAMPLES, seed)
    row["measurable"] = mean_interval(cells.measurable, seed=seed)
    if min(cells.measurable.sum(), reference.measurable.sum()) >= MINIMUM_CELLS:
        row["coverage"] = coverage(cells.morphology, reference.morphology, seed=seed)
        row["two_sample"] = two_sample_test(cells.morphology, reference.morphology, seed).accuracy
    else:
        row |= {"coverage": Interval(math.nan), "two_sample": Interval(math.nan)}
    return row


def _spread(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> Interval:
    return bootstrap_interval(lambda i, j: relative_spread(a[i], b[j]), [len(a), len(b)], resamples, seed)


def _by_group(
    cells: Measurements, reference: Measurements, groups: Sequence[str], reference_groups: Sequence[str], seed: int
) -> dict[str, GroupRow]:
    """The columns of each mechanism or compound that few cells allow."""
    reference_rows = rows_by_group(reference_groups)
    result = {}
    for group, rows in sorted(rows_by_group(groups).items()):
        others = reference_rows.get(group, [])
        per_cell = cells.take(rows).per_cell
        chosen = [name for name in ("combined", "accuracy_rewards", "judge", "accuracy_judge") if name in per_cell]
        values = {name: mean_interval(per_cell[name], seed=seed) for name in chosen}
        values["kernel"] = Interval(math.nan)
        if len(others):
            values["kernel"] = kernel_distance(cells.features[rows], reference.features[others], 100, seed)
        result[group] = GroupRow(len(rows), len(others), values)
    return result


def _effects(
    rows: Mapping[str, Measurements],
    reference: Measurements,
    images: Images,
    channel_names: Sequence[str],
    seed: int,
) -> Effects:
    """Effects against the control cells of the sample, of the compounds that are in both halves."""
    control = rows[CONTROL_ROW].morphology
    compounds = sorted(set(images.compound) & set(images.reference_compound))
    real = effects_by_group(reference.morphology, images.reference_compound, control, compounds)
    ours = {name: effects_by_group(m.morphology, images.compound, control, compounds) for name, m in rows.items()}
    agreement = {name: effect_agreement(real, effects, RESAMPLES, seed) for name, effects in ours.items()}
    return Effects(compounds, list(morphology_feature_names(channel_names)), real, ours, agreement)


def _effect_errors(effects: Effects, row: str) -> np.ndarray:
    """Of each compound, the mean over features of |effect - real effect|; NaN where it has too few cells."""
    errors = np.abs(effects.rows[row] - effects.reference)
    known = np.isfinite(errors)
    total = np.where(known, errors, 0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(errors), np.nan), where=known.any(axis=1))


def _describe_effects(effects: Effects, row: str, seed: int) -> dict[str, Interval]:
    agreement = effects.agreement[row]
    errors = _effect_errors(effects, row)
    errors = errors[np.isfinite(errors)]
    return {
        "effect_correlation": agreement.pearson,
        "effect_sign": agreement.same_sign,
        "effect_slope": agreement.slope,
        "effect_error": mean_interval(errors, seed=seed),
    }


def _compare(
    ours: Measurements,
    theirs: Measurements,
    reference: Measurements,
    effects: Effects,
    names: tuple[str, str],
    groups: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> dict[str, PairedTest]:
    """Paired tests of all columns that allow one, adjusted for their number."""
    tests = {name: paired_means(values, theirs.per_cell[name], seed) for name, values in ours.per_cell.items()}
    tests["kernel"] = paired_kernel_distances(ours.features, theirs.features, reference.features, seed)
    tests["wasserstein"] = paired_statistics(
        ours.statistics, theirs.statistics, lambda x: mean_wasserstein(x, reference.statistics), seed
    )
    generated, real = groups
    tests["spread_within"] = paired_statistics(
        *(np.column_stack([m.statistics, generated]) for m in (ours, theirs)),  # each row with its mechanism
        lambda x: spread_within(x[:, :-1], x[:, -1], reference.statistics, real),
        seed,
    )
    # Compounds, not cells, are what is paired here.
    tests["effect_error"] = paired_means(*(_effect_errors(effects, name) for name in names), seed=seed)
    return adjust(tests)


def _with_chosen(
    images: Images, candidates: Mapping[str, CandidateMeasurements], evaluators: Evaluators
) -> tuple[Images, dict[str, str]]:
    """The sets that are chosen among the candidates of each model, as further models; and whose they are."""
    suite, every, sets, chosen = evaluators.suite, np.arange(len(images.moa)), {}, {}
    for model, measured in candidates.items():
        scores = scores_of(suite, measured.measured, images.moa)
        for selection in SELECTIONS:
            name = f"{model}, {selection} of {len(measured.verdicts) // len(every)}"
            selected = choose_candidates(suite, scores, images.moa, selection).numpy()
            sets[name], chosen[name] = images.generated[model][every, selected][:, None], model
    return dataclasses.replace(images, generated={**images.generated, **sets}), chosen


def _best_of_n(
    candidates: CandidateMeasurements,
    images: Images,
    evaluators: Evaluators,
    reference: Measurements,
    numbers: Sequence[int],
    seed: int,
) -> dict[str, dict[int, dict[str, Interval]]]:
    """By selection and N: what was optimised, and what was not."""
    scores = scores_of(evaluators.suite, candidates.measured, images.moa)
    per_control = max(numbers)
    curves: dict[str, dict[int, dict[str, Interval]]] = {}
    for selection in SELECTIONS:
        curves[selection] = {}
        for n in sorted(set(numbers)):
            chosen = choose_candidates(evaluators.suite, scores.first(n), images.moa, selection).numpy()
            rows = np.arange(len(chosen)) * per_control + chosen
            combined = scores.rewards["combined"].cpu().numpy()[np.arange(len(chosen)), chosen]
            a, b = candidates.verdicts.features[rows], reference.features
            values = {"combined": mean_interval(combined, seed=seed)}
            if evaluators.judge is not None:
                values["accuracy_judge"] = mean_interval(candidates.verdicts.correct["judge"][rows], seed=seed)
            values["kernel"] = kernel_distance(a, b, 100, seed)
            values["spread"] = _spread(a, b, 100, seed)
            curves[selection][n] = values
    return curves
