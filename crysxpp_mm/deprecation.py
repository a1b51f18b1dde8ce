"""Old import paths of public names, which keep working with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved_names(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module whose public names live elsewhere now.

    Args:
        module: The old module, ``__name__`` there.
        homes: The new module of each name.

    Returns:
        A function that imports a name from its new home and warns with a ``DeprecationWarning``.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} has moved; import it from {homes[name]}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(homes[name]), name)

    return getattr_
