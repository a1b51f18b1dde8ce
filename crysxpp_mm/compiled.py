"""Compile loops and keep the result. The one module that sets numba up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from platformdirs import user_cache_dir

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "reassoc"},
    "nogil": True,
}
inlined: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(inline="always", **OPTIONS)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on the first call, and keep what is compiled in the user's cache.

    Beside the package it would outlive it: pip leaves files that it did not install, and their
    folders would hide the package of a later editable installation. ``NUMBA_CACHE_DIR`` names
    another folder.
    """
    config: Any = numba.config
    chosen = config.CACHE_DIR
    config.CACHE_DIR = chosen or user_cache_dir("crysxpp_mm", appauthor=False)
    try:
        made: Callable[..., Any] = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # there is no folder to keep it in
        made = numba.njit(**OPTIONS)(function)
    finally:
        config.CACHE_DIR = chosen
    return made
