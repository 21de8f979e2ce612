"""What an evaluation shows and what it does not, in sentences made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cellfluxrl.evaluation.columns import AS_REAL, CONTROL_ROW, REAL_ROW, Column
from cellfluxrl.evaluation.statistics.intervals import Interval
from cellfluxrl.evaluation.statistics.neighbours import COPY_RATE, Memorisation
from cellfluxrl.evaluation.statistics.paired import PairedTest

SIGNIFICANT = 0.05
COPY_P_VALUE = 0.01  # an accusation wants more than one in twenty
HOLDS, NOT_SHOWN, NOT_REFUTED, FAILS = "holds", "not shown", "not refuted", "fails"

# By column, what is claimed of the difference to the controls, and whether higher (1) or lower (-1) values show it.
BETTER_THAN_CONTROLS = {
    "accuracy_judge": ("The held-out classifier names the mechanism more often than in the untreated controls", 1),
    "kernel": ("The cells are closer to real treated cells than the untreated controls are", -1),
    "wasserstein": ("Shapes and counts by the second segmenter are closer to real ones than the controls' are", -1),
    "effect_error": ("The effects of the compounds on morphology are nearer to the real ones than no effect is", -1),
}
# By column, that there is no difference to real cells: before and after the value, and which differences refute it.
ALIKE_REAL_CELLS = {
    "effect_slope": ("The effects are as large as the real ones: slope ", "", (1, -1)),
    "coverage": ("The cells are as diverse as real cells: coverage ", "", (-1,)),
    "spread_within": (
        "The cells of a mechanism differ from each other as much as real ones, in shapes and counts: ",
        " of the real spread",
        (-1,),
    ),
    "combined": ("The cells are not over-optimised: combined reward ", "", (1,)),
}


@dataclass(frozen=True)
class Claim:
    """A claim about a column of a model, in a sentence with its numbers, and what became of it.

    The verdict is `"holds"` if the interval lies on the right side of `null`, `"fails"` if on the wrong one, else
    `"not shown"`; of a claim that there is no difference, which no number of cells can show, `"not refuted"`.
    """

    model: str
    column: str
    text: str
    optimised: bool
    value: Interval
    null: float  # what the value would be if there were nothing to claim
    verdict: str
    against: str = ""  # the model that this one is compared with; empty for a claim about this one alone

    @property
    def excludes_null(self) -> bool:
        """Whether the 95 % interval excludes `null`."""
        return self.value.low > self.null or self.value.high < self.null


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.3g}"


def _shown(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{_number(interval.value)} (no interval)"
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _verdict(value: Interval, better: int) -> str:
    """`better` is 1 if values above 0 are claimed, -1 for below."""
    above, below = value.low > 0, value.high < 0
    if not (above or below):
        return NOT_SHOWN
    return HOLDS if above == (better > 0) else FAILS


def claims_of_model(
    model: str,
    rows: Mapping[str, Mapping[str, Interval]],
    paired: Mapping[tuple[str, str], Mapping[str, PairedTest]],
    copies: Mapping[str, Memorisation],
    columns: Mapping[str, Column],
) -> list[Claim]:
    """What can be asked of any model: each claim with the value of the real cells, which is as good as it gets."""
    row, real, against = rows[model], rows[REAL_ROW], paired[(model, CONTROL_ROW)]
    claims = []

    def claim(column: str, text: str, value: Interval, null: float, verdict: str) -> None:
        sentence = f"{text}. Real cells: {_shown(real[column])}."
        claims.append(Claim(model, column, sentence, columns[column].optimised, value, null, verdict))

    def claim_alike(column: str, text: str, value: Interval, null: float, *, is_refuted: bool) -> None:
        claim(column, text, value, null, FAILS if is_refuted else NOT_REFUTED)

    for column, (text, better) in BETTER_THAN_CONTROLS.items():
        if column in row:
            found = against[column].difference
            sentence = f"{text}: {_shown(row[column])}, difference to the controls {_shown(found)}"
            claim(column, sentence, found, 0.0, _verdict(found, better))
    value = row["effect_correlation"]
    text = f"Effects of the compounds go with the real ones: correlation {_shown(value)}"
    claim("effect_correlation", text, value, 0.0, _verdict(value, 1))
    value = row["two_sample"]
    text = f"The panel cannot distinguish the cells from real cells: accuracy {_shown(value)}, 0.5 is chance"
    claim_alike("two_sample", text, value, 0.5, is_refuted=value.low > 0.5)
    for column, (before, after, wrong) in ALIKE_REAL_CELLS.items():
        found = difference_of_sets(row[column], real[column])
        text = f"{before}{_shown(row[column])}{after}, difference {_shown(found)}"
        is_refuted = any(_verdict(found, direction) == HOLDS for direction in wrong)
        claim_alike(column, text, found, 0.0, is_refuted=is_refuted)
    if model in copies:
        found, p_value = copies[model].copies, copies[model].p_value
        text = (
            f"The cells are not copies of training cells: {_shown(found)} stick to one, "
            f"p = {_number(p_value)} for as many by chance"
        )
        claim_alike("copies", text, found, COPY_RATE, is_refuted=p_value < COPY_P_VALUE)
    return claims


def difference_of_sets(ours: Interval, theirs: Interval) -> Interval:
    """The difference of two independent values, by the square root of the summed squared errors."""
    error = math.hypot(ours.error, theirs.error)
    value = ours.value - theirs.value
    return Interval(value, value - 1.96 * error, value + 1.96 * error, error)


def claims_of_pair(
    ours: str,
    theirs: str,
    rows: Mapping[str, Mapping[str, Interval]],
    paired: Mapping[tuple[str, str], Mapping[str, PairedTest]],
    columns: Mapping[str, Column],
) -> list[Claim]:
    """Which gains of one model over another there are: first in what was optimised, then on held-out evidence."""
    claims = []
    for column, test in sorted(paired[(ours, theirs)].items(), key=lambda item: not columns[item[0]].optimised):
        better, what = 1, "higher is better"
        if columns[column].better == "lower":
            better, what = -1, "lower is better"
        elif columns[column].better == AS_REAL:
            better, what = _as_real(rows[ours][column], rows[theirs][column], rows[REAL_ROW][column])
        shown = better != 0 and test.adjusted < SIGNIFICANT  # False for NaN
        text = (
            f"{ours} is better than {theirs} in {column} ({what}): difference {_shown(test.difference)} over "
            f"{test.count} pairs, p = {_number(test.p_value)}, {_number(test.adjusted)} after Holm's correction."
        )
        verdict = _verdict(test.difference, better) if shown else NOT_SHOWN
        claims.append(Claim(ours, column, text, columns[column].optimised, test.difference, 0.0, verdict, theirs))
    return claims


def _as_real(ours: Interval, theirs: Interval, real: Interval) -> tuple[int, str]:
    """Which direction is better where neither more nor less than real cells have is right."""
    differences = [difference_of_sets(row, real) for row in (ours, theirs)]
    if not any(difference.low > 0 for difference in differences):
        return 1, f"higher is better, up to the real cells' {_number(real.value)}"
    if not any(difference.high < 0 for difference in differences):
        return -1, f"lower is better, down to the real cells' {_number(real.value)}"
    return 0, f"on either side of the real cells' {_number(real.value)}"
