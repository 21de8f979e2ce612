"""diffusers' base classes with the types that their annotations leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import diffusers.configuration_utils
import diffusers.models.modeling_utils

if TYPE_CHECKING:
    from typing_extensions import Self

Init = TypeVar("Init", bound=Callable[..., None])


class ConfigMixin(diffusers.configuration_utils.ConfigMixin):
    """A class whose arguments are its `config`: a dict whose entries are attributes as well, of any type."""

    config: Any


class ModelMixin(diffusers.models.modeling_utils.ModelMixin):
    """A network that is saved and loaded."""

    to: Callable[..., Self]


def register_to_config(init: Init) -> Init:
    """Let the arguments of an `__init__` be the configuration; to a type checker they stay what they are."""
    return diffusers.configuration_utils.register_to_config(init)
