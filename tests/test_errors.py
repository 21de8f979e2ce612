import pytest

from cellfluxrl.errors import unknown_name


def test_the_message_names_the_value_the_nearest_match_and_what_is_allowed():
    error = unknown_name("compound", "taxoll", ["taxol", "nocodazole"])
    assert isinstance(error, ValueError)
    assert str(error) == "unknown compound 'taxoll'; did you mean 'taxol'? 2 known: nocodazole, taxol"


def test_case_does_not_hide_the_nearest_match():
    assert "did you mean 'DMSO'?" in str(unknown_name("compound", "dmso", ["DMSO", "taxol"]))


def test_nothing_is_suggested_when_nothing_is_near():
    assert str(unknown_name("solver", "xyz", ["euler", "heun"])) == "unknown solver 'xyz'; 2 known: euler, heun"


@pytest.mark.parametrize("name", [None, 3, 2.5])
def test_values_that_are_no_text_are_shown_as_they_are(name):
    assert repr(name) in str(unknown_name("solver", name, ["euler"]))


def test_long_lists_are_cut_and_counted():
    message = str(unknown_name("plate", "x", (f"plate{i:03d}" for i in range(100))))
    assert "100 known" in message
    assert message.endswith("plate039, ...")
