"""Packages whose names are imported when they are first used, so that importing the package stays fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build the `__getattr__` and `__dir__` of a package (PEP 562) from its name and the module of each public name.

    Example:
        >>> get, names = lazy_names("shapes", {"sqrt": "math", "pi": "math"})
        >>> names(), get("sqrt")(9)
        (['pi', 'sqrt'], 3.0)
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get, lambda: sorted(modules)
