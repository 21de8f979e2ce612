"""Where cells come from: each source gives crops and rows, plate by plate."""

from __future__ import annotations

import inspect
from typing import Any

from cellfluxrl.data.building.sources.bbbc021 import PublishedArchives
from cellfluxrl.data.building.sources.crops import CropFolder
from cellfluxrl.data.building.sources.folder import PlateFolder
from cellfluxrl.data.building.sources.impa import ImpaCrops
from cellfluxrl.data.building.sources.simulated import SimulatedPlates
from cellfluxrl.data.cells import Source
from cellfluxrl.errors import unknown_name

__all__ = ["SOURCES", "make_source"]

SOURCES = {
    "bbbc021": PublishedArchives,
    "impa": ImpaCrops,
    "folder": PlateFolder,
    "crops": CropFolder,
    "simulated": SimulatedPlates,
}


def make_source(name: str, **settings: Any) -> Source:
    """Build the source of this name; settings that are `None` are left to the defaults of its class."""
    if name not in SOURCES:
        raise unknown_name("source", name, SOURCES)
    given = {key: value for key, value in settings.items() if value is not None}
    parameters = inspect.signature(SOURCES[name]).parameters
    for key in given:
        if key not in parameters:
            raise unknown_name(f"setting of the source {name!r}", key, parameters)
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in given]
    if missing:
        raise ValueError(f"the source {name!r} needs {' and '.join(missing)}")
    return SOURCES[name](**given)
