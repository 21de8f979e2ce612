"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ["cellfluxrl", *(f"cellfluxrl.{name}" for name in ("data", "evaluation", "models", "pipelines"))]
PACKAGES += [f"cellfluxrl.{name}" for name in ("rewards", "rl", "schedulers", "training")]
MODULES = [
    f"{package}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
