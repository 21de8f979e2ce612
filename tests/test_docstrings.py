"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import cellfluxrl

NEED_EXTRAS = ("cellfluxrl.app",)
MODULES = [
    module.name
    for module in pkgutil.walk_packages(cellfluxrl.__path__, "cellfluxrl.")
    if not module.ispkg and not module.name.startswith(NEED_EXTRAS)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
