"""diffusers' configurations with the types that its annotations leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import diffusers.configuration_utils

Init = TypeVar("Init", bound=Callable[..., None])


class ConfigMixin(diffusers.configuration_utils.ConfigMixin):
    """A class whose arguments are its `config`: a dict whose entries are attributes as well, of any type."""

    config: Any


def register_to_config(init: Init) -> Init:
    """Let the arguments of an `__init__` be the configuration; to a type checker they stay what they are."""
    return diffusers.configuration_utils.register_to_config(init)
