"""Warnings that point at the user's own line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

_INSIDE = (str(Path(__file__).parent), str(contextlib.__file__))


def warn_user(message: str) -> None:
    """Warn at the first line outside this package, through which the user called it.

    Args:
        message: Text of a ``UserWarning``.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)
