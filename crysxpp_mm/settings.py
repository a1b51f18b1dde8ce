"""Checks of settings: each returns the value as plain Python or names what is wrong."""

from __future__ import annotations

from numbers import Integral, Real

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
