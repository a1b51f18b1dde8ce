"""Transforms of targets that have a name, with their inverses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.errors import SettingsError

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TargetTransform:
    """A transform and its inverse.

    Attributes:
        forward: From labels to what is learned.
        inverse: Back.
        domain: Which labels it takes, in words.
        accepts: Which labels it takes; NaN is no matter.
        floor: Predictions below it, in what is learned, are taken for it, in the loss as well.
    """

    forward: Callable[[Numbers], Numbers]
    inverse: Callable[[Numbers], Numbers]
    domain: str
    accepts: Callable[[Numbers], NDArray[np.bool_]]
    floor: float = -np.inf


def _same(values: Numbers) -> Numbers:
    return values


def _positive(values: Numbers) -> NDArray[np.bool_]:
    return values > 0


def _not_negative(values: Numbers) -> NDArray[np.bool_]:
    return values >= 0


def _power_of_ten(values: Numbers) -> Numbers:
    return np.asarray(10.0**values)


IDENTITY = TargetTransform(
    forward=_same, inverse=_same, domain="any number", accepts=lambda values: values == values
)

TRANSFORMS: dict[str, TargetTransform] = {
    "log10": TargetTransform(
        forward=np.log10, inverse=_power_of_ten, domain="positive numbers", accepts=_positive
    ),
    "log": TargetTransform(
        forward=np.log, inverse=np.exp, domain="positive numbers", accepts=_positive
    ),
    "log1p": TargetTransform(
        forward=np.log1p,
        inverse=np.expm1,
        domain="numbers greater than -1",
        accepts=lambda values: values > -1,
    ),
    "sqrt": TargetTransform(
        forward=np.sqrt,
        inverse=lambda values: np.square(np.maximum(values, 0.0)),
        domain="numbers of at least 0",
        accepts=_not_negative,
        floor=0.0,
    ),
    "nonnegative": TargetTransform(
        forward=_same,
        inverse=lambda values: np.maximum(values, 0.0),
        domain="numbers of at least 0",
        accepts=_not_negative,
        floor=0.0,
    ),
}
"""What ``transform`` may name."""


def one_per_target(argument: str, value: Any, target_names: Sequence[str]) -> list[Any]:
    """Spread an argument over the targets, None where it names nothing.

    Args:
        argument: Its name, for messages.
        value: One for all targets, one for each in a sequence, or by name of the target.
        target_names: The targets.

    Raises:
        SettingsError: it is none of these, names no target, or has another number of entries.
    """
    if value is None or isinstance(value, str):
        return [value] * len(target_names)
    if isinstance(value, Mapping):
        if unknown := [name for name in value if name not in target_names]:
            raise SettingsError(
                f"{argument} names the target {unknown[0]!r}; there are "
                f"{', '.join(map(repr, target_names))}."
            )
        return [value.get(name) for name in target_names]
    if not isinstance(value, Sequence | np.ndarray | pd.Series | pd.Index):
        raise SettingsError(
            f"{argument} must be a text, a sequence of texts, a dictionary or None, got {value!r}."
        )
    if len(value) != len(target_names):
        raise SettingsError(f"{argument} has {len(value)} entries for {len(target_names)} targets.")
    return list(value)


def choose_transforms(transform: Any, target_names: Sequence[str]) -> list[str | None]:
    """Choose the transform of each target by its name, None for none.

    Args:
        transform: As ``one_per_target`` takes it.
        target_names: The targets.

    Raises:
        SettingsError: there is no such transform, no such target, or their number differs.
    """
    chosen = one_per_target("transform", transform, target_names)
    for name in chosen:
        if name is not None and (not isinstance(name, str) or name not in TRANSFORMS):
            raise SettingsError(
                f"unknown transform {name!r}; there are None, {', '.join(map(repr, TRANSFORMS))}."
            )
    return chosen


def get_transform(name: str | None) -> TargetTransform:
    """Return the transform of a name that ``choose_transforms`` has passed."""
    return IDENTITY if name is None else TRANSFORMS[name]
