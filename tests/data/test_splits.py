"""The published ways to hold cells out, and what each of them has to keep apart."""

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl import ControlTreatedPairs
from cellfluxrl.data.building.bbbc021_index import read_index
from cellfluxrl.data.compounds import CELLFLUX_HELD_OUT, CONTROL, known_compounds
from cellfluxrl.data.schema import CHANNEL_NAMES, cell_features, channel_names_of
from cellfluxrl.data.splits import SCHEMES, assign_splits, batch_of, resplit

COMPOUNDS = ("AZ841", "docetaxel", "emetine", "taxol")  # the first two are CellFlux's to hold out


def plate(name: str, *compounds: str) -> list[dict]:
    """One well for each compound, in order, at 1 uM."""
    return [
        {
            "plate": name,
            "batch": batch_of(name),
            "well": f"{'BCDEFG'[i // 10]}{i % 10 + 2:02d}",
            "compound": compound,
            "concentration": 0.0 if compound == CONTROL else 1.0,
            "is_control": compound == CONTROL,
        }
        for i, compound in enumerate(compounds)
    ]


def table(*plates: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([well for wells in plates for well in wells])


@st.composite
def well_tables(draw) -> pd.DataFrame:
    """Plates of two batches with two or more controls, any compounds, and each well in one to three rows."""
    plates = []
    for i in range(draw(st.integers(1, 5))):
        controls = [CONTROL] * draw(st.integers(2, 7))
        treated = draw(st.lists(st.sampled_from(COMPOUNDS), max_size=9))
        plates.append(plate(f"Week{draw(st.integers(1, 2))}_{i}", *draw(st.permutations(controls + treated))))
    wells = table(*plates)
    rows = draw(st.lists(st.integers(1, 3), min_size=len(wells), max_size=len(wells)))
    return wells.loc[np.repeat(wells.index, rows)].reset_index(drop=True)


@st.composite
def split_tables(draw) -> tuple[pd.DataFrame, str, list[str]]:
    wells = draw(well_tables())
    scheme = draw(st.sampled_from([scheme for scheme in SCHEMES if scheme != "published"]))
    held_out = {
        "plate": lambda: draw(st.lists(st.sampled_from(sorted(wells["plate"].unique())), max_size=2)),
        "cellflux": list,
        "leave_one_compound_out": lambda: [draw(st.sampled_from(COMPOUNDS))],
        "leave_one_batch_out": lambda: [draw(st.sampled_from(sorted(wells["batch"].unique())))],
    }[scheme]()
    return wells, scheme, held_out


def splits_or_refusal(wells: pd.DataFrame, scheme: str, held_out: list[str]) -> pd.Series | str:
    try:
        return assign_splits(wells, scheme, held_out)
    except ValueError as error:
        return str(error)


# --- what holds for any table ---


@given(split_tables(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_rows_of_a_well_stay_together_whatever_their_order_and_number(drawn, random):
    wells, scheme, held_out = drawn
    splits = splits_or_refusal(*drawn)
    order = list(wells.index) + random.choices(list(wells.index), k=5)
    random.shuffle(order)
    again = splits_or_refusal(wells.loc[order], scheme, held_out)
    if isinstance(splits, str):
        assert again == splits
        return
    assert splits.index.equals(wells.index)
    assert (wells.assign(split=splits).groupby(["plate", "well"])["split"].nunique() == 1).all()
    assert again.tolist() == splits[order].tolist()


@given(split_tables())
@settings(max_examples=150, deadline=None)
def test_every_treated_cell_has_a_control_of_its_plate_and_split(drawn):
    splits = splits_or_refusal(*drawn)
    if isinstance(splits, str):
        return
    wells = drawn[0].assign(split=splits)
    controls = set(wells[wells["is_control"]][["plate", "split"]].itertuples(index=False, name=None))
    for treated in wells[~wells["is_control"]].itertuples():
        assert (treated.plate, treated.split) in controls


@given(split_tables())
@settings(max_examples=150, deadline=None)
def test_what_is_held_out_is_never_trained_on_and_nothing_else_is_held_out(drawn):
    wells, scheme, held_out = drawn
    splits = splits_or_refusal(*drawn)
    column = {"plate": "plate", "leave_one_batch_out": "batch"}.get(scheme, "compound")
    names = CELLFLUX_HELD_OUT if scheme == "cellflux" else held_out
    treated = wells[~wells["is_control"]]
    held = treated[column].isin(names)
    if isinstance(splits, str):
        # Refused for a reason: not there, or one of the splits would have no treated cells.
        assert "unknown" in splits or "no treated cell is in the" in splits
        assert not held.any() or held.all()
    elif names:
        assert (splits[treated.index] == np.where(held, "test", "train")).all()


@given(well_tables())
@settings(max_examples=50, deadline=None)
def test_each_fold_holds_out_something_else_and_together_they_hold_out_all(wells):
    names = sorted(set(wells["compound"]) - {CONTROL})
    if len(names) > 1:
        tests = [assign_splits(wells, "leave_one_compound_out", [name]) == "test" for name in names]
        assert (sum(test[~wells["is_control"]].astype(int) for test in tests) == 1).all()


# --- the schemes ---


def test_the_last_treated_plate_is_held_out_by_default():
    wells = table(plate("A", CONTROL, "taxol"), plate("C", CONTROL), plate("B", CONTROL, "taxol"))
    assert set(wells["plate"][assign_splits(wells, "plate") == "test"]) == {"B"}
    assert set(assign_splits(wells[wells["plate"] != "B"], "plate")) == {"train"}
    assert set(wells["plate"][assign_splits(wells, "plate", ["A", "C"]) == "test"]) == {"A", "C"}


@pytest.mark.parametrize(("num_train", "num_test", "expected"), [(1, 1, 3), (9, 1, 1), (1, 9, 5), (2, 1, 2)])
def test_controls_of_a_plate_in_both_splits_are_divided_as_its_treated_wells(num_train, num_test, expected):
    wells = table(plate("P", *[CONTROL] * 6, *["taxol"] * num_train, *["emetine"] * num_test))
    splits = assign_splits(wells, "leave_one_compound_out", ["emetine"])
    assert (splits[wells["is_control"]] == "test").sum() == expected


def test_controls_for_testing_are_spread_over_the_plate():
    wells = table(plate("P", *[CONTROL] * 6, "taxol", "emetine"))
    splits = assign_splits(wells, "leave_one_compound_out", ["emetine"])
    assert splits.tolist() == ["train", "test", "train", "test", "train", "test", "train", "test"]


def test_controls_follow_treated_wells_that_are_in_one_split():
    wells = table(plate("P", CONTROL, "taxol"), plate("Q", CONTROL, "emetine"), plate("R", CONTROL))
    splits = assign_splits(wells, "leave_one_compound_out", ["taxol"])
    assert splits.tolist() == ["test", "test", "train", "train", "train"]


def test_one_control_well_cannot_be_divided():
    wells = table(plate("Q", CONTROL, CONTROL, "taxol"), plate("P", CONTROL, "taxol", "emetine"))
    with pytest.raises(ValueError, match="plate 'P' has treated cells in both splits and one control well, 'B02'"):
        assign_splits(wells, "leave_one_compound_out", ["emetine"])


def test_published_splits_are_taken_as_they_are():
    wells = table(plate("P", CONTROL, "taxol", "taxol", "taxol", "taxol"))
    wells["split"] = ["train", "train", "val", "ood", "test"]
    assert assign_splits(wells, "published").tolist() == ["train", "train", "test", "test", "test"]
    with pytest.raises(ValueError, match="unknown published split 'tets'; did you mean 'test'"):
        assign_splits(wells.replace({"split": {"val": "tets"}}), "published")
    with pytest.raises(ValueError, match="needs a column 'split'; the table has"):
        assign_splits(wells.drop(columns="split"), "published")


WELLS = table(plate("Week1_1", CONTROL, "taxol", "emetine", CONTROL), plate("Week2_1", CONTROL, "taxol"))


@pytest.mark.parametrize(
    ("scheme", "held_out", "message"),
    [
        ("plates", [], "unknown split scheme 'plates'; did you mean 'plate'"),
        ("plate", ["Week1_2"], "unknown plate 'Week1_2'; did you mean 'Week1_1'"),
        ("plate", ["Week1_1", "Week2_1"], "no treated cell is in the train split"),
        ("plate", "Week1_1", "must be a sequence of names, got the string 'Week1_1'"),
        ("leave_one_compound_out", ["taxoll"], "unknown compound 'taxoll'; did you mean 'taxol'"),
        ("leave_one_compound_out", [CONTROL], "unknown compound 'DMSO'; 2 known: emetine, taxol"),
        ("leave_one_compound_out", [], "needs exactly 1 names in held_out"),
        ("leave_one_compound_out", ["taxol", "emetine"], "needs exactly 1 names in held_out"),
        ("leave_one_batch_out", ["Week3"], "unknown batch 'Week3'; did you mean"),
        ("leave_one_batch_out", [], "needs exactly 1 names in held_out"),
        ("cellflux", ["taxol"], "needs exactly 0 names in held_out"),
        ("cellflux", [], "no treated cell is in the test split"),
    ],
)
def test_what_cannot_be_held_out_is_refused(scheme, held_out, message):
    with pytest.raises(ValueError, match=message):
        assign_splits(WELLS, scheme, held_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wells: wells.drop(columns="batch"), r"lacks the columns \['batch'\]"),
        (lambda wells: wells[:0], "has no rows"),
        (lambda wells: wells.assign(is_control="False"), "is_control must be true or false, got"),
        (lambda wells: wells.assign(plate=[None, *wells["plate"][1:]]), "column 'plate' must hold names, got"),
        (lambda wells: wells.assign(batch=list("abcdef")), "plate 'Week1_1' is in more than one batch:"),
        (lambda wells: wells.assign(well="B02"), r"well 'B02' of plate 'Week1_1' has more than one treatment: \['DM"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        assign_splits(change(WELLS), "leave_one_compound_out", ["taxol"])


# --- real wells ---


@pytest.fixture(scope="module")
def index(bbbc021_dir):
    return read_index(bbbc021_dir)


def test_cellflux_s_compounds_are_those_it_published(bbbc021_dir):
    published = pd.read_csv(bbbc021_dir / "compounds.csv")
    assert sorted(published.loc[published["cellflux_split"] == "ood", "compound"]) == sorted(CELLFLUX_HELD_OUT)
    assert set(CELLFLUX_HELD_OUT) < set(known_compounds().index)


@pytest.mark.parametrize("scheme", ["plate", "cellflux", "leave_one_compound_out", "leave_one_batch_out"])
def test_bbbc021_can_be_split(index, scheme):
    held_out = {"leave_one_compound_out": ["taxol"], "leave_one_batch_out": ["Week4"]}.get(scheme, [])
    wells = index.assign(split=assign_splits(index, scheme, held_out))
    controls = wells[wells["is_control"]].groupby(["plate", "split"])["well"].nunique()
    treated = wells[~wells["is_control"]].groupby(["plate", "split"]).size()
    assert set(treated.index) == set(controls.index)
    assert controls.groupby("plate").sum().eq(6).all()


def test_bbbc021_has_38_compounds_and_10_weeks_to_hold_out(index):
    assert index["compound"][~index["is_control"] & (index["moa"] != "")].nunique() == 38
    assert sorted(index["batch"].unique()) == sorted(f"Week{week}" for week in range(1, 11))
    assert (index["plate"].map(batch_of) == index["batch"]).all()


# --- a data set that is built ---


@pytest.fixture(params=[False, True], ids=["arrays", "PNG"])
def cells(request):
    """Two cells a well, whose pixels say which row they are."""
    wells = table(plate("Week1_1", *[CONTROL] * 4, "taxol", "emetine"), plate("Week1_2", CONTROL, "taxol"))
    wells = wells.loc[np.repeat(wells.index, 2)].drop(columns="batch").reset_index(drop=True)
    features = cell_features(CHANNEL_NAMES, 4, published=request.param)
    rows = []
    for i, well in enumerate(wells.to_dict(orient="records")):
        pixels = np.full((4, 4, 3) if request.param else (3, 4, 4), i, dtype=np.uint8)
        texts = {"smiles": "", "moa": "", "field": "", "split": "train"}
        rows.append({**well, **texts, "image": pixels, "site": 1, "replicate": 1, "cell_id": i, "x": 0.0, "y": 0.0})
    return datasets.Dataset.from_list(rows, features=features)


def test_a_data_set_is_split_anew(cells):
    again = resplit(cells, "leave_one_compound_out", ["taxol"])
    assert set(again["test"]["compound"]) == {CONTROL, "taxol"}
    assert "taxol" not in again["train"]["compound"]
    ids = []
    for name, split in again.items():
        assert split.features == cells.features
        assert split.column_names == cells.column_names
        assert channel_names_of(split) == CHANNEL_NAMES
        assert set(split["split"]) == {name}
        ControlTreatedPairs(split)
        for row in split.with_format("numpy"):
            assert (row["image"] == row["cell_id"]).all()
            ids.append(int(row["cell_id"]))
    assert sorted(ids) == list(range(len(cells)))


def test_a_data_set_that_was_split_can_be_split_again(cells):
    once = resplit(cells, "leave_one_compound_out", ["taxol"])
    twice = resplit(once, "plate", ["Week1_2"])
    assert set(twice["test"]["plate"]) == {"Week1_2"}
    assert sorted([*twice["train"]["cell_id"], *twice["test"]["cell_id"]]) == list(range(len(cells)))
    same = resplit(twice, "published")
    assert same["test"].to_dict() == twice["test"].to_dict()


def test_one_treated_plate_makes_no_test_split(cells):
    alone = cells.filter(lambda row: row["plate"] == "Week1_2")
    assert list(resplit(alone, "plate")) == ["train"]


def test_images_are_not_copied(cells):
    again = resplit(cells, "plate")
    buffers = [split.data.column("image").chunk(0).buffers()[-1].address for split in again.values()]
    assert set(buffers) == {cells.data.column("image").chunk(0).buffers()[-1].address}
