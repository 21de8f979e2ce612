"""Settings that change at given iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cellfluxrl.errors import unknown_name

CHANGEABLE = {"learning_rate": float, "kl_weight": float, "kl_target": float, "reward_weights": str}


def check_curriculum(curriculum: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a curriculum that cannot be followed.

    Raises:
        ValueError: If an entry has no `from_step`, these do not increase, or a key is not one of `CHANGEABLE`, or its
            value of another type.

    Example:
        >>> check_curriculum([{"from_step": 50, "kl_weight": 0.3}, {"from_step": 80, "reward_weights": "moa=1"}])
    """
    last = -1
    for entry in curriculum:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("from_step"), int):
            raise ValueError(f"each entry of curriculum needs from_step, a number of iterations; got {entry!r}")
        if entry["from_step"] <= last:
            raise ValueError(f"from_step must increase in curriculum, got {entry['from_step']} after {last}")
        last = entry["from_step"]
        for key, value in entry.items():
            if key != "from_step" and key not in CHANGEABLE:
                raise unknown_name("key in curriculum", key, ("from_step", *CHANGEABLE))
            number = CHANGEABLE.get(key) is float
            if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"{key} in curriculum must be a number (in YAML 1.0e-4, not 1e-4), got {value!r}")
            if key == "reward_weights" and not isinstance(value, str):
                raise ValueError(f"reward_weights in curriculum must be like 'moa=2,roundness=1', got {value!r}")


def overrides_at(curriculum: Sequence[Mapping[str, Any]], iteration: int) -> dict[str, Any]:
    """The settings that differ from the initial ones in an iteration, counted from 0; a later entry wins.

    Example:
        >>> overrides_at([{"from_step": 50, "kl_weight": 0.3}, {"from_step": 80, "kl_weight": 0.1}], 79)
        {'kl_weight': 0.3}
    """
    overrides: dict[str, Any] = {}
    for entry in curriculum:
        if entry["from_step"] <= iteration:
            overrides |= {key: value for key, value in entry.items() if key != "from_step"}
    return overrides
