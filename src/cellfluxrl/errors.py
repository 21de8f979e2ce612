"""Error messages that name the offending value, what is allowed and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> ValueError:
    """Build the `ValueError` for a `name` that is not among the `allowed` ones.

    Example:
        >>> str(unknown_name("compound", "taxoll", ["taxol", "nocodazole"]))
        "unknown compound 'taxoll'; did you mean 'taxol'? 2 known: nocodazole, taxol"
    """
    allowed = sorted(str(a) for a in allowed)
    spellings = {a.lower(): a for a in allowed}
    nearest = difflib.get_close_matches(str(name).lower(), spellings, n=1)
    hint = f"did you mean {spellings[nearest[0]]!r}? " if nearest else ""
    shown = ", ".join(allowed[:40]) + (", ..." if len(allowed) > 40 else "")
    return ValueError(f"unknown {kind} {name!r}; {hint}{len(allowed)} known: {shown}")


def check_found(what: str, name: str) -> None:
    """Raise a `ValueError` if `name` is neither a folder nor may be a repository of the Hub, `org/name`."""
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"there is no {what} {name!r}: give its folder, or org/name on the Hub")
