from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.evaluation.statistics.strata import stratified_sample

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(label_lists, st.data())
def test_every_label_is_there_and_no_row_twice(labels, data):
    count = data.draw(st.integers(len(set(labels)), len(labels)))
    rows = stratified_sample(labels, count)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert {labels[row] for row in rows} == set(labels)


@settings(max_examples=60, deadline=None)
@given(label_lists, st.data())
def test_a_label_with_more_rows_never_gets_fewer_places(labels, data):
    count = data.draw(st.integers(len(set(labels)), len(labels)))
    sizes, places = Counter(labels), Counter(labels[row] for row in stratified_sample(labels, count))
    for a in sizes:
        for b in sizes:
            assert sizes[a] <= sizes[b] or places[a] >= places[b]


def test_places_are_in_proportion():
    labels = ["a"] * 5000 + ["b"] * 3000 + ["c"] * 2000
    assert Counter(labels[row] for row in stratified_sample(labels, 100)) == {"a": 50, "b": 30, "c": 20}


def test_all_compounds_and_mechanisms_of_sorted_data_are_covered():
    labels = [(f"MoA {k % 12}", f"compound {k}") for k in range(26) for _ in range(1 + 40 * k)]
    sample = [labels[row] for row in stratified_sample(labels, 512)]
    assert set(sample) == set(labels)


def test_the_seed_decides():
    labels = ["a", "b"] * 100
    first, again, other = (stratified_sample(labels, 20, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("count", [0, 1, 6])
def test_counts_that_cannot_be_met_are_refused(count):
    with pytest.raises(ValueError, match=f"between 2, .* and 5, all rows; got {count}"):
        stratified_sample(["a", "a", "b", "b", "b"], count)
