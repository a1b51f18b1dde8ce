"""Checks of settings: plain values, or an error that names the setting."""

from __future__ import annotations

import numpy as np
import pytest

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.settings import flag, not_negative, number, one_of, positive, share, whole_number


def test_values_become_plain_python():
    assert type(whole_number("n", np.int64(3), at_least=1)) is int
    assert type(number("x", np.float32(0.5))) is float
    assert type(positive("x", 2)) is float
    assert not_negative("x", 0) == 0.0
    assert share("x", 0) == 0.0
    assert flag("x", np.True_) is True


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (lambda v: whole_number("x", v, at_least=1), 0),
        (lambda v: whole_number("x", v, at_least=0), 1.0),
        (lambda v: whole_number("x", v, at_least=0), True),
        (lambda v: number("x", v), "1"),
        (lambda v: number("x", v), False),
        (lambda v: positive("x", v), 0),
        (lambda v: positive("x", v), float("inf")),
        (lambda v: not_negative("x", v), -1e-9),
        (lambda v: not_negative("x", v), float("nan")),
        (lambda v: share("x", v), 1),
        (lambda v: one_of("x", v, ("a", "b")), "c"),
        (lambda v: one_of("x", v, ("a", "b")), ["a"]),
        (lambda v: flag("x", v), 1),
        (lambda v: flag("x", v), None),
    ],
)
def test_values_without_sense_are_named(check, value):
    with pytest.raises(SettingsError, match=r"^x must be"):
        check(value)
