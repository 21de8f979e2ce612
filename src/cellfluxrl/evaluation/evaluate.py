"""From images to everything that an evaluation says of them: tables, comparisons and claims, each with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.evaluation.claims import AS_REAL, CONTROL_ROW, REAL_ROW, Claim, claims_of_model, claims_of_pair
from cellfluxrl.evaluation.comparison import COLUMN_NOTES
from cellfluxrl.evaluation.features.morphology import morphology_feature_names
from cellfluxrl.evaluation.measuring import (
    CandidateMeasurements,
    Evaluators,
    Measurements,
    measure_candidates,
    measure_cells,
)
from cellfluxrl.evaluation.statistics.distances import frechet_infinity, frechet_interval, kernel_distance
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
class Column:
    """What is measured.

    Args:
        note: What it is, in a sentence.
        better: `"higher"`, `"lower"`, `"as real"` (neither more nor less than real cells have), or what is right, such
            as `"1"`.
        optimised: Whether it is a reward, or was made with the classifier of the rewards.
    """

    note: str
    better: str
    optimised: bool = False


@dataclass(frozen=True)
class Images:
    """The cells that are compared, uint8 of shape `(N, C, H, W)`.

    Args:
        control, real: A control, and a treated cell, of each of N conditions.
        reference: M other treated cells, which every row is compared with.
        generated: By model, `(N, K, C, H, W)`: K samples of each control, the first of which is evaluated and the
            others are candidates. Those that `match` chose are a model of their own.
        moa, compound (`list[str]` of length N), reference_moa, reference_compound (`list[str]` of length M): Of each.
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
    """What [`evaluate`] returns; `docs/evaluation.md` explains it. `images` has the chosen sets beside those given."""

    models: list[str]
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


def columns_of(evaluators: Evaluators, with_training: bool) -> dict[str, Column]:
    """The columns of the tables, in order: the optimised ones first."""
    name = evaluators.extractor.name
    own_features = evaluators.judge is None and "Inception" not in name
    columns = {
        reward: Column(COLUMN_NOTES.get(reward, f"reward {reward!r} of the suite"), AS_REAL, optimised=True)
        for reward in evaluators.suite.weights
    }
    columns["combined"] = Column("weighted mean of the rewards; above real cells is over-optimised", AS_REAL, True)
    columns["accuracy_rewards"] = Column("share whose mechanism the classifier of the rewards tells", AS_REAL, True)
    if evaluators.judge is not None:
        columns["judge"] = Column("probability of the true mechanism by the held-out classifier", AS_REAL)
        columns["accuracy_judge"] = Column("share whose mechanism the held-out classifier tells", AS_REAL)
    frechet = f"Frechet distance to real cells, as FID, on the features of {name}"
    columns |= {
        "frechet": Column(f"{frechet}; biased by the sample size", "lower", own_features),
        "frechet_infinity": Column(f"{frechet}, extrapolated to infinitely many cells", "lower", own_features),
        "kernel": Column(f"kernel distance to real cells, as KID, on the features of {name}", "lower", own_features),
        "wasserstein": Column(
            "Wasserstein-1 distance to real cells of five shapes and counts by the second segmenter, mean, in their "
            "standard deviations",
            "lower",
        ),
        "spread": Column(f"spread of the features of {name} over that of real cells", "1", own_features),
        "spread_within": Column(
            "spread of these shapes and counts within each mechanism over that of real cells; less is over-optimised",
            AS_REAL,
        ),
        "measurable": Column("share in which the second segmenter finds a nucleus and its cell", AS_REAL),
        "coverage": Column("share of the real cells that have one of these among their neighbours", "higher"),
        "two_sample": Column("accuracy of telling these from real cells by the morphology panel", "0.5"),
        "effect_correlation": Column(
            "Pearson correlation with the real effects of compounds on the morphology panel", "higher"
        ),
        "effect_sign": Column("share of the clear effects that have the real direction", AS_REAL),
        "effect_slope": Column(
            "size of the effects over that of the real ones; noise keeps it below 1 for real cells too", AS_REAL
        ),
        "effect_error": Column(
            "mean absolute error of the effects of compounds, in standard deviations of control cells", "lower"
        ),
    }
    if with_training:
        columns["copies"] = Column("share that sticks to one training cell as 1 % of new real cells do", "0.01")
        columns["nearest_training"] = Column(
            "distance to the nearest training cell over that of new real cells; below 1 are copies or averages", "1"
        )
    return columns


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
        images: With the first model in question, and possibly a second one to compare it with.
        evaluators: What measures them.
        best_of_n: Draw the curves of the best, and of the matched, of so many candidates; the matched of the largest
            number are a row of their own, `"NAME, match of N"`.
        seed: Of all resampling.
        measure: How a set of cells is measured; `cellfluxrl evaluate` keeps the results in files.

    Raises:
        ValueError: If sets of images do not fit each other, or too few candidates were generated.

    Example:
        >>> results = evaluate(images, Evaluators(suite, extractor, OtsuSegmenter(), judge))    # doctest: +SKIP
        >>> results.rows["real treated"]["kernel"], results.paired[("rl", "base")]["judge"]     # doctest: +SKIP
    """
    _check(images, best_of_n)
    given = list(images.generated)
    most = max(best_of_n, default=0)
    candidates = {m: measure_candidates(images.generated[m][:, :most], images.moa, evaluators) for m in given if most}
    if most > 1:
        images = _with_matched(images, candidates, evaluators)
    sets = {CONTROL_ROW: images.control, **{name: g[:, 0] for name, g in images.generated.items()}}
    sets[REAL_ROW] = images.real
    rows = {name: measure(cells, images.moa, evaluators, name) for name, cells in sets.items()}
    reference = measure(images.reference, images.reference_moa, evaluators, "reference")
    training = None if images.training is None else evaluators_features(images.training, evaluators)

    columns = columns_of(evaluators, training is not None)
    effects = _effects(rows, reference, images, evaluators.suite.channel_names, seed)
    copies = {}
    if training is not None:
        copies = {name: memorisation(m.features, training, reference.features, seed=seed) for name, m in rows.items()}
    groups = moa_codes(images)
    table = {
        name: {**_describe(m, reference, groups, seed), **_describe_effects(effects, name, seed)}
        for name, m in rows.items()
    }
    for name, found in copies.items():
        table[name] |= {"copies": found.copies, "nearest_training": found.distance_ratio}
    models = list(images.generated)
    between = [(given[0], other) for other in given[1:]]
    between += [(chosen, model) for model, chosen in zip(given, models[len(given) :], strict=False)]
    pairs = [(model, CONTROL_ROW) for model in models] + between
    paired = {(a, b): _compare(rows[a], rows[b], reference, effects, (a, b), groups, seed) for a, b in pairs}
    claims = [c for model in models for c in claims_of_model(model, table, paired, copies, columns)]
    claims += [c for ours, theirs in between for c in claims_of_pair(ours, theirs, table, paired, columns)]
    return Results(
        models=models,
        images=images,
        evaluators=_names(evaluators),
        columns=columns,
        rows=table,
        by_moa={n: _by_group(m, reference, images.moa, images.reference_moa, seed) for n, m in rows.items()},
        by_compound={
            n: _by_group(m, reference, images.compound, images.reference_compound, seed) for n, m in rows.items()
        },
        effects=effects,
        memorisation=copies,
        paired=paired,
        best_of_n={
            model: _best_of_n(measured, images, evaluators, reference, best_of_n, seed)
            for model, measured in candidates.items()
        },
        claims=claims,
        measurements={**rows, "reference": reference},
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
    for name, cells in images.generated.items():
        if name in (CONTROL_ROW, REAL_ROW, "reference"):
            raise ValueError(f"a model cannot be called {name!r}, which is a row of its own")
        if best_of_n and not 1 <= min(best_of_n) <= max(best_of_n) <= cells.shape[1]:
            raise ValueError(
                f"best_of_n={list(best_of_n)} needs as many samples of each control, got {cells.shape[1]}"
            )


def check_counts(cells: int, reference: int) -> None:
    """Raise a `ValueError` for too few cells, or too few real ones to compare with."""
    if min(cells, reference) < 2 * MINIMUM_CELLS:
        raise ValueError(
            f"an evaluation needs at least {2 * MINIMUM_CELLS} cells and as many real ones to compare with, got "
            f"{cells} and {reference}"
        )


def evaluators_features(images: np.ndarray, evaluators: Evaluators) -> np.ndarray:
    """Features of uint8 images."""
    parts = [images[start : start + 256] for start in range(0, len(images), 256)]
    return np.concatenate([evaluators.extractor(images_to_tensor(part)) for part in parts])


def _names(evaluators: Evaluators) -> dict[str, str]:
    return {
        "features": evaluators.extractor.name,
        "features are held out": str(evaluators.judge is not None or "Inception" in evaluators.extractor.name),
        "segmenter of the rewards": type(evaluators.suite.segmenter).name,
        "second segmenter": type(evaluators.segmenter).name,
        "held-out classifier": "none" if evaluators.judge is None else f"width {evaluators.judge.config.width}",
    }


# --------------------------------------------------------------------------------------------------------------------
# A row of the table
# --------------------------------------------------------------------------------------------------------------------


def moa_codes(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the mechanisms of the sample, and of the reference."""
    names = {name: code for code, name in enumerate(dict.fromkeys([*images.moa, *images.reference_moa]))}
    own, real = ([names[name] for name in moa] for moa in (images.moa, images.reference_moa))
    return np.array(own), np.array(real)


def _describe(
    cells: Measurements, reference: Measurements, groups: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Interval]:
    """The columns that need no compounds."""
    row = {name: mean_interval(values, seed=seed) for name, values in cells.rewards.items()}
    row["accuracy_rewards"] = mean_interval(cells.correct["rewards"], seed=seed)
    if "judge" in cells.correct:
        row["judge"] = mean_interval(cells.probabilities["judge"], seed=seed)
        row["accuracy_judge"] = mean_interval(cells.correct["judge"], seed=seed)
    a, b = cells.features, reference.features
    counts, few_features = [len(a), len(b)], a.shape[1] <= MOST_FEATURES
    row["frechet"] = frechet_interval(a, b, 50, seed) if few_features else Interval(frechet_distance(a, b))
    if min(counts) // 2 > a.shape[1]:
        row["frechet_infinity"] = frechet_infinity(a, b, 30 if few_features else 0, seed)
    row["kernel"] = kernel_distance(a, b, seed=seed)
    x, y = cells.statistics, reference.statistics
    row["wasserstein"] = half_sampling_interval(lambda i, j: mean_wasserstein(x[i], y[j]), counts, 200, seed)
    g, h = groups
    row["spread_within"] = half_sampling_interval(
        lambda i, j: spread_within(x[i], g[i], y[j], h[j]), counts, RESAMPLES, seed
    )
    row["spread"] = bootstrap_interval(lambda i, j: relative_spread(a[i], b[j]), counts, RESAMPLES, seed)
    whole = cells.measurable
    row["measurable"] = mean_interval(whole, seed=seed)
    if min(whole.sum(), reference.measurable.sum()) >= MINIMUM_CELLS:
        row["coverage"] = coverage(cells.morphology, reference.morphology, seed=seed)
        row["two_sample"] = two_sample_test(cells.morphology, reference.morphology, seed).accuracy
    else:
        row |= {"coverage": Interval(math.nan), "two_sample": Interval(math.nan)}
    return row


def _by_group(
    cells: Measurements, reference: Measurements, groups: Sequence[str], reference_groups: Sequence[str], seed: int
) -> dict[str, GroupRow]:
    """The columns of each mechanism or compound that few cells allow."""
    theirs = rows_by_group(reference_groups)
    result = {}
    for group, rows in sorted(rows_by_group(groups).items()):
        own, others = cells.take(rows), theirs.get(group, np.empty(0, dtype=np.int64))
        mean = partial(mean_interval, seed=seed)
        values = {"combined": mean(own.rewards["combined"]), "accuracy_rewards": mean(own.correct["rewards"])}
        if "judge" in own.correct:
            values |= {"judge": mean(own.probabilities["judge"]), "accuracy_judge": mean(own.correct["judge"])}
        values["kernel"] = Interval(math.nan)
        if len(others):
            values["kernel"] = kernel_distance(own.features, reference.features[others], 100, seed)
        result[group] = GroupRow(len(rows), len(others), values)
    return result


# --------------------------------------------------------------------------------------------------------------------
# Effects of compounds
# --------------------------------------------------------------------------------------------------------------------


def _effects(
    rows: Mapping[str, Measurements],
    reference: Measurements,
    images: Images,
    channel_names: Sequence[str],
    seed: int,
) -> Effects:
    """Effects against the control cells of the sample, of the compounds that are in both halves."""
    control = rows[CONTROL_ROW].morphology
    known = set(images.reference_compound)
    compounds = sorted(c for c in set(images.compound) if c in known)
    real = effects_by_group(reference.morphology, images.reference_compound, control, compounds)
    own = {name: effects_by_group(m.morphology, images.compound, control, compounds) for name, m in rows.items()}
    agreement = {name: effect_agreement(real, effects, RESAMPLES, seed) for name, effects in own.items()}
    return Effects(compounds, list(morphology_feature_names(channel_names)), real, own, agreement)


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


# --------------------------------------------------------------------------------------------------------------------
# Comparisons
# --------------------------------------------------------------------------------------------------------------------


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
    tests = {name: paired_means(ours.rewards[name], theirs.rewards[name], seed) for name in ours.rewards}
    tests["accuracy_rewards"] = paired_means(ours.correct["rewards"], theirs.correct["rewards"], seed)
    if "judge" in ours.correct:
        tests["judge"] = paired_means(ours.probabilities["judge"], theirs.probabilities["judge"], seed)
        tests["accuracy_judge"] = paired_means(ours.correct["judge"], theirs.correct["judge"], seed)
    tests["kernel"] = paired_kernel_distances(ours.features, theirs.features, reference.features, seed)
    tests["wasserstein"] = paired_statistics(
        ours.statistics, theirs.statistics, lambda x: mean_wasserstein(x, reference.statistics), seed
    )
    own, real = groups
    tests["spread_within"] = paired_statistics(
        *(np.column_stack([m.statistics, own]) for m in (ours, theirs)),  # the mechanism goes along
        lambda x: spread_within(x[:, :-1], x[:, -1], reference.statistics, real),
        seed,
    )
    # Compounds, not cells, are what is paired here.
    tests["effect_error"] = paired_means(*(_effect_errors(effects, name) for name in names), seed=seed)
    return adjust(tests)


def _with_matched(images: Images, candidates: Mapping[str, CandidateMeasurements], evaluators: Evaluators) -> Images:
    """The sets that `match` chooses among the candidates of each model, as further models."""
    every = np.arange(len(images.moa))
    matched = {}
    for model, own in candidates.items():
        chosen = choose_candidates(
            evaluators.suite, scores_of(evaluators.suite, own.measured, images.moa), images.moa, "match"
        )
        count = len(own.features) // len(every)
        matched[f"{model}, match of {count}"] = images.generated[model][every, chosen.numpy()][:, None]
    return dataclasses.replace(images, generated={**images.generated, **matched})


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
            features = candidates.features[rows]
            values = {"combined": mean_interval(combined, seed=seed)}
            if evaluators.judge is not None:
                values["accuracy_judge"] = mean_interval(candidates.correct["judge"][rows], seed=seed)
            values["kernel"] = kernel_distance(features, reference.features, 100, seed)
            counts = [len(features), len(reference.features)]
            values["spread"] = bootstrap_interval(
                lambda i, j, x=features: relative_spread(x[i], reference.features[j]), counts, 100, seed
            )
            curves[selection][n] = values
    return curves
