"""Plug-ins: modules of users that hold rewards and segmenters, imported only where the user has named them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cellfluxrl.rewards.terms import Reward, register_reward

VARIABLE = "CELLFLUXRL_PLUGINS"


def load_plugins(names: Sequence[str]) -> list[Reward]:
    """Import modules that the user has named, and register the rewards that they hold.

    Args:
        names: As in an `import` statement: of installed modules, or of files in folders on the user's `PYTHONPATH`.

    Returns:
        The rewards, in the order in which the modules define them.

    Raises:
        ValueError: If a name cannot be that of a module, there is no such module, it lies in the folder of a saved
            suite or pipeline, or another reward has the name of one of its rewards.

    Example:
        >>> load_plugins(["my_rewards"])                                               # doctest: +SKIP
    """
    return [reward for name in names for reward in _rewards_in(name)]


def load_named_plugins(names: Sequence[str]) -> None:
    """[`load_plugins`] for a saved suite, whose configuration names modules: only those that the user has named too.

    A suite comes from anywhere; what it names is imported only if it has been imported already, or stands in the
    environment variable `CELLFLUXRL_PLUGINS` (several are separated by commas).

    Raises:
        ValueError: If the user has not named one, or for what [`load_plugins`] refuses.
    """
    allowed = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}
    for name in names:
        if name not in sys.modules and name not in allowed:
            raise ValueError(
                f"this reward suite needs the plug-in {name!r}, a Python module, which is not imported just because "
                f"a suite names it. If you trust it, name it too: `import {name}` before the suite is loaded, "
                f"--plugins {name}, or the environment variable {VARIABLE}={name}"
            )
    load_plugins(names)


def _rewards_in(name: str) -> list[Reward]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"a plug-in is the name of a module, such as 'my_rewards', got {name!r}")
    if name not in sys.modules:
        _check_folder(name.partition(".")[0])
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the plug-in is there, and lacks something
        raise ValueError(
            f"there is no module {name!r} for the plug-in: install it, or put the folder that holds it on the path, "
            "as in `PYTHONPATH=. cellfluxrl ...`"
        ) from error
    return [register_reward(value) for value in vars(module).values() if isinstance(value, Reward)]


def _check_folder(package: str) -> None:
    """Refuse a module that came with a saved suite: the folder of one may be on the path by accident."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    paths = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.has_location and spec.origin else [])]
    for folder in {folder for path in paths for folder in list(Path(path).parents)[:2]}:
        config = folder / "config.json"
        if (folder / "model_index.json").is_file() or (
            config.is_file() and "RewardSuite" in config.read_text(encoding="utf-8", errors="replace")
        ):
            raise ValueError(
                f"the plug-in {package!r} lies beside a saved model, in {str(folder)!r}, and is not imported from "
                "there: code that comes with a model is not trusted. Move the module elsewhere, or install it"
            )
