"""Settings that change at given iterations."""

import pytest

from cellfluxrl.rl.curriculum import check_curriculum, overrides_at

CURRICULUM = [
    {"from_step": 3, "kl_weight": 0.3},
    {"from_step": 5, "learning_rate": 1e-5, "reward_weights": "moa=1"},
    {"from_step": 8, "kl_weight": 1},
]


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, {}),
        (2, {}),
        (3, {"kl_weight": 0.3}),
        (7, {"kl_weight": 0.3, "learning_rate": 1e-5, "reward_weights": "moa=1"}),
        (99, {"kl_weight": 1, "learning_rate": 1e-5, "reward_weights": "moa=1"}),
    ],
)
def test_an_entry_holds_from_its_step_until_another_one_replaces_it(iteration, expected):
    check_curriculum(CURRICULUM)
    assert overrides_at(CURRICULUM, iteration) == expected


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ([{"kl_weight": 0.3}], "needs from_step"),
        (["kl_weight"], "needs from_step"),
        ([{"from_step": 5}, {"from_step": 5}], "from_step must increase in curriculum, got 5 after 5"),
        ([{"from_step": -1}], "from_step must increase"),
        ([{"from_step": 1, "kl_wieght": 0.3}], "unknown key in curriculum 'kl_wieght'; did you mean 'kl_weight'"),
        ([{"from_step": 1, "learning_rate": "1e-4"}], "learning_rate in curriculum must be a number.*got '1e-4'"),
        ([{"from_step": 1, "reward_weights": {"moa": 1}}], "reward_weights in curriculum must be like"),
    ],
)
def test_an_entry_that_means_nothing_is_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        check_curriculum(curriculum)
