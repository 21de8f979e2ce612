"""The columns and the fixed rows of an evaluation's tables."""

from __future__ import annotations

from dataclasses import dataclass

from cellfluxrl.evaluation.measuring import Evaluators

CONTROL_ROW = "copy of control"
REAL_ROW = "real treated"
AS_REAL = "as real"


@dataclass(frozen=True)
class Column:
    """What is measured, in a sentence, and whether it is a reward or was made with the classifier of the rewards."""

    note: str
    better: str  # "higher", "lower", "as real" (neither more nor less than real cells have), or what is right, as "1"
    optimised: bool = False


def columns_of(evaluators: Evaluators, *, with_training: bool) -> dict[str, Column]:
    """The columns of the tables, in order: the optimised ones first."""
    suite, name, optimised = evaluators.suite, evaluators.extractor.name, not evaluators.features_are_held_out
    rewards = {reward.name: reward.description or f"reward {reward.name!r} of the suite" for reward in suite.rewards}
    rewards["combined"] = "weighted mean of the rewards; above real cells is over-optimised"
    rewards["accuracy_rewards"] = "share whose mechanism the classifier of the rewards names"
    columns = {reward: Column(note, AS_REAL, optimised=True) for reward, note in rewards.items()}
    if evaluators.judge is not None:
        columns["judge"] = Column("probability of the true mechanism by the held-out classifier", AS_REAL)
        columns["accuracy_judge"] = Column("share whose mechanism the held-out classifier names", AS_REAL)
    frechet = f"Frechet distance to real cells, as FID, on the features of {name}"
    columns |= {
        "frechet": Column(f"{frechet}; biased by the sample size", "lower", optimised),
        "frechet_infinity": Column(f"{frechet}, extrapolated to infinitely many cells", "lower", optimised),
        "kernel": Column(f"kernel distance to real cells, as KID, on the features of {name}", "lower", optimised),
        "wasserstein": Column(
            "Wasserstein-1 distance to real cells of five shapes and counts by the second segmenter, mean, in their "
            "standard deviations",
            "lower",
        ),
        "spread": Column(f"spread of the features of {name} over that of real cells", "1", optimised),
        "spread_within": Column(
            "spread of these shapes and counts within each mechanism over that of real cells; less is over-optimised",
            AS_REAL,
        ),
        "measurable": Column("share in which the second segmenter finds a nucleus and its cell", AS_REAL),
        "coverage": Column("share of the real cells that have one of these among their neighbours", "higher"),
        "two_sample": Column("accuracy of distinguishing these from real cells by the morphology panel", "0.5"),
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
