"""How far the predictions were off on crystals that were not learned from, and what follows.

The conformal quantile of these errors gives intervals that hold the truth as often as is asked,
whatever the network is (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
Springer, 2005). Held-out crystals in place of repeated fits: Papadopoulos et al., ECML 2002, 345;
Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018). Errors divided by an estimate of the difficulty:
Papadopoulos et al., J. Artif. Intell. Res. 40, 815 (2011).

Why errors are divided by the standard deviation of an ensemble: on log10 K of elastic_tensor_2015
(700 crystals, 4 members, two splits) intervals of 90 % were 9 and 16 % narrower in the mean than
those of plain errors, and of the quarter of the crystals on which the members disagreed most, 84
instead of 72 % lay inside. Without a floor they were wider than plain ones or no narrower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import ModelFileError, SettingsError

_ROUNDING = 1e-9
"""(n + 1) * confidence may be this much above a whole number."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors on crystals that were not learned from, target by target.

    A score is |y - p| / s, in the units in which the target is learned: p is the mean of the
    members, and s = sqrt(std^2 + floor^2) with std their standard deviation for that crystal. A
    floor of 0 stands for s = 1, plain errors: there is a single member, or all agree.

    Attributes:
        scores: For each target the scores of its calibration crystals, ascending.
        floors: For each target the median std on its calibration crystals.
        source: Where the crystals came from.
    """

    scores: tuple[tuple[float, ...], ...]
    floors: tuple[float, ...]
    source: str

    @classmethod
    def measure(
        cls, outputs: NDArray[np.float64], truth: NDArray[np.float64], *, source: str
    ) -> Self:
        """Compare predictions with the truth.

        Args:
            outputs: Shape ``(n_members, n_rows, n_targets)``, in learned units.
            truth: Shape ``(n_rows, n_targets)``, in learned units, NaN where unknown.
            source: Where the crystals came from.
        """
        errors = np.abs(truth - outputs.mean(axis=0))
        spread = _spread(outputs)
        scores, floors = [], []
        for target in range(truth.shape[1]):
            known = ~np.isnan(truth[:, target])
            floor = float(np.median(spread[known, target])) if known.any() else 0.0
            scale = _scale(spread[known, target], floor)
            scores.append(tuple(np.sort(errors[known, target] / scale).tolist()))
            floors.append(floor)
        return cls(scores=tuple(scores), floors=tuple(floors), source=source)

    def half_widths(
        self, outputs: NDArray[np.float64], *, confidence: float, names: Sequence[str]
    ) -> NDArray[np.float64]:
        """How far an interval reaches to either side of the mean of the members.

        Args:
            outputs: Shape ``(n_members, n_rows, n_targets)``, in learned units.
            confidence: Share of the crystals whose truth lies inside, from ``check_confidence``.
            names: Names of the targets, for messages.

        Returns:
            Shape ``(n_rows, n_targets)``, in learned units.

        Raises:
            SettingsError: the confidence needs more calibration crystals.
        """
        spread = _spread(outputs)
        widths = np.empty_like(spread)
        for target, (scores, floor) in enumerate(zip(self.scores, self.floors, strict=True)):
            rank = quantile_rank(len(scores), confidence)
            if rank > len(scores):
                raise SettingsError(
                    f"confidence={confidence:g} needs at least {needed_rows(confidence)} "
                    f"calibration crystals with {names[target]!r}, there are {len(scores)} (from "
                    f"{self.source}); ask for less, or call calibrate(X, y) with more crystals "
                    "that were not learned from."
                )
            widths[:, target] = scores[rank - 1] * _scale(spread[:, target], floor)
        return widths

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "scores": [list(scores) for scores in self.scores],
            "floors": list(self.floors),
            "source": self.source,
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], *, n_targets: int) -> Self:
        """Read what ``to_plain`` made.

        Raises:
            ModelFileError: a key is missing or unknown, or the targets are of another number.
        """
        keys = {"scores", "floors", "source"}
        if not isinstance(document, Mapping) or set(document) != keys:
            raise ModelFileError("the calibration must have scores, floors and source.")
        scores = tuple(tuple(map(float, one)) for one in document["scores"])
        floors = tuple(map(float, document["floors"]))
        if not len(scores) == len(floors) == n_targets:
            raise ModelFileError(f"the calibration is not one of {n_targets} targets.")
        return cls(scores=scores, floors=floors, source=str(document["source"]))


def check_confidence(confidence: object) -> float:
    """The confidence as a number.

    Raises:
        SettingsError: it does not lie between 0 and 1.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, Real):
        raise SettingsError(f"confidence must be a number, got {confidence!r}.")
    value = float(confidence)
    if not 0 < value < 1:
        raise SettingsError(f"confidence must lie between 0 and 1, got {confidence!r}.")
    return value


def quantile_rank(n_scores: int, confidence: float) -> int:
    """Which of ``n_scores`` ascending scores, counted from 1, is the conformal quantile.

    ceil((n + 1) * confidence): the score of one more crystal, drawn like these, is at most this
    one with a probability of at least ``confidence``. More than ``n_scores`` if there is none.
    """
    return max(1, math.ceil((n_scores + 1) * confidence - _ROUNDING))


def needed_rows(confidence: float) -> int:
    """The least number of scores that have the conformal quantile."""
    return max(1, math.ceil(confidence / (1 - confidence) - 1e-6))


def _spread(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation over the members, ``(n_rows, n_targets)``; zero for a single one."""
    if len(outputs) < 2:
        return np.zeros_like(outputs[0])
    return np.asarray(outputs.std(axis=0, ddof=1))


def _scale(spread: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    return np.sqrt(spread**2 + floor**2) if floor > 0 else np.ones_like(spread)
