"""Checks of settings: each returns the value as plain Python or names what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from crysxpp_mm.errors import SettingsError


def whole_number(name: str, value: object, *, at_least: int) -> int:
    """Return a setting as a plain whole number.

    Raises:
        SettingsError: it is not a whole number, or it is less than ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise SettingsError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return int(value)


def number(name: str, value: object) -> float:
    """Return a setting as a plain number.

    Raises:
        SettingsError: it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SettingsError(f"{name} must be a number, got {value!r}.")
    return float(value)


def positive(name: str, value: object) -> float:
    """Return a setting as a plain positive, finite number.

    Raises:
        SettingsError: it is not.
    """
    plain = number(name, value)
    if not 0 < plain < float("inf"):
        raise SettingsError(f"{name} must be positive, got {plain!r}.")
    return plain


def not_negative(name: str, value: object) -> float:
    """Return a setting as a plain, finite number of at least 0.

    Raises:
        SettingsError: it is not.
    """
    plain = number(name, value)
    if not 0 <= plain < float("inf"):
        raise SettingsError(f"{name} must be 0 or more, got {plain!r}.")
    return plain


def share(name: str, value: object) -> float:
    """Return a setting as a plain number of at least 0 and less than 1.

    Raises:
        SettingsError: it is not.
    """
    plain = number(name, value)
    if not 0 <= plain < 1:
        raise SettingsError(f"{name} must be at least 0 and less than 1, got {plain!r}.")
    return plain


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a setting has one of the allowed values.

    Raises:
        SettingsError: it has not.
    """
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def flag(name: str, value: object) -> bool:
    """Return a setting as a plain True or False.

    Raises:
        SettingsError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise SettingsError(f"{name} must be True or False, got {value!r}.")
    return bool(value)
