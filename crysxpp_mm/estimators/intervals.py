"""Errors of the predictions on crystals that were not learned from, and what follows.

The conformal quantile of these errors gives intervals that hold the truth as often as is asked,
whatever the network is (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
Springer, 2005). Held-out crystals in place of repeated fits: Papadopoulos et al., ECML 2002, 345;
Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018). Errors divided by an estimate of the difficulty:
Papadopoulos et al., J. Artif. Intell. Res. 40, 815 (2011).

The difficulty of a crystal is made of two factors: how far its nearest training crystals are, and
how much the predictions for its nearest training crystals differ; of an ensemble also of how much
its members differ. It was chosen on a development split of each of log10 K, log10 eps_electronic,
the exfoliation energy and the band gap (one network each, 100 draws of the calibration crystals).
Spearman's correlation with the error was 0.40, 0.38, 0.56 and 0.59, and intervals of 90 % were 11,
7, 19 and 13 % narrower than those of one width; 84 to 97 % of the crystals lay inside in each third
of the widths. The distance alone had 0.32, 0.32, 0.39 and -0.41, the spread alone 0.35, 0.35, 0.54
and 0.67. On the first three the labels in place of the predictions gave the same, and the errors of
neighbours, left out one at a time, less (0.32, 0.32, 0.50); a ridge regression of the logarithm of
the error has too few calibration crystals to learn from (widths of 0.97, 0.95 and 1.03). A lower
power leaves the widest intervals short, a higher one makes them wide: on 811 crystals held out by
the five networks of the bulk modulus, the power 3 gave 1.6 times the width of plain intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.data.reference import ReferenceSet
from crysxpp_mm.errors import ModelFileError, SettingsError

MIN_ADAPTIVE = 30
"""With fewer calibration crystals all intervals are of one width."""
N_NEAR = 5
"""Training crystals whose mean distance is the first factor of the difficulty."""
N_ALIKE = 20
"""Training crystals whose predictions are compared."""
FLOOR = 0.3
"""Least factor of the difficulty, as a multiple of its median."""
POWER = 1.75
"""Power of the geometric mean of the factors in the difficulty."""
_ROUNDING = 1e-9
"""(n + 1) * confidence may be this much above a whole number."""


def difficulties(
    reference: ReferenceSet, embeddings: NDArray[np.float32], outputs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Factors of the difficulty of crystals, before they are compared with their medians.

    Args:
        reference: The training crystals, with the predictions for them.
        embeddings: Of the crystals, shape ``(n_rows, n_columns)``.
        outputs: Shape ``(n_members, n_rows, n_targets)``, in learned units.

    Returns:
        Shape ``(n_factors, n_rows, n_targets)``; the last factor is the standard deviation over
        the members, where there are several.
    """
    distances, rows = reference.nearest(embeddings, N_ALIKE)
    near = distances[:, :N_NEAR].mean(axis=1)
    factors = [np.repeat(near[:, None], outputs.shape[2], axis=1)]
    if reference.values.shape[1]:
        weights = 1 / (distances + 1e-3)
        weights = (weights / weights.sum(axis=1, keepdims=True))[:, :, None]
        values = reference.values.astype(np.float64)[rows]
        mean = (weights * values).sum(axis=1, keepdims=True)
        factors.append(np.sqrt((weights * (values - mean) ** 2).sum(axis=1)))
    if len(outputs) > 1:
        factors.append(outputs.std(axis=0, ddof=1))
    return np.stack(factors)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors on crystals that were not learned from, target by target.

    A score is an error over the difficulty of its crystal, the geometric mean of
    ``factor / median + FLOOR`` to the power of ``POWER``. Without medians the difficulty is 1, and
    all widths are equal.

    Attributes:
        scores: For each target the scores of its calibration crystals, ascending.
        medians: For each target the median of each factor on its calibration crystals.
        source: Where the crystals came from.
        floors: Of a version 1 file, whose scores are errors over ``sqrt(std^2 + floor^2)``, with
            std over the members, or plain errors where the floor is 0.
    """

    scores: tuple[tuple[float, ...], ...]
    medians: tuple[tuple[float, ...], ...]
    source: str
    floors: tuple[float, ...] | None = None

    @classmethod
    def measure(
        cls, errors: NDArray[np.float64], factors: NDArray[np.float64] | None, *, source: str
    ) -> Self:
        """Sort errors, over difficulties where there are enough of them.

        Args:
            errors: Shape ``(n_rows, n_targets)``, at least 0, NaN where unknown.
            factors: From ``difficulties``; None for widths that are to be equal.
            source: Where the crystals came from.
        """
        scores, medians = [], []
        for target in range(errors.shape[1]):
            known = ~np.isnan(errors[:, target])
            adaptive = factors is not None and known.sum() >= MIN_ADAPTIVE
            own = factors[:, known, target] if adaptive and factors is not None else None
            middle = () if own is None else tuple(np.median(own, axis=1).tolist())
            difficulty = 1.0 if own is None else _difficulty(own, middle)
            scores.append(tuple(np.sort(errors[known, target] / difficulty).tolist()))
            medians.append(middle)
        return cls(scores=tuple(scores), medians=tuple(medians), source=source)

    def constant(self) -> str:
        """Reason why all widths are equal, in words; empty where they follow the difficulty."""
        if self.floors is not None:
            return "" if any(self.floors) else "the model file is of version 1"
        few = min(len(scores) for scores in self.scores)
        if all(self.medians):
            return ""
        return f"{few} calibration crystals are fewer than {MIN_ADAPTIVE}"

    def half_widths(
        self, factors: NDArray[np.float64], *, confidence: float, names: Sequence[str]
    ) -> NDArray[np.float64]:
        """Half widths of intervals: the reach to either side of the mean of the members.

        Args:
            factors: From ``difficulties``.
            confidence: Share of the crystals whose truth lies inside, from ``check_confidence``.
            names: Names of the targets, for messages.

        Returns:
            Shape ``(n_rows, n_targets)``, in learned units.

        Raises:
            SettingsError: the confidence needs more calibration crystals.
        """
        widths = [
            self.threshold(target, confidence=confidence, name=name)
            * self._scale(factors[:, :, target], target)
            for target, name in enumerate(names)
        ]
        return np.stack(widths, axis=1)

    def threshold(self, target: int, *, confidence: float, name: str) -> float:
        """The conformal quantile of the scores of a target.

        Raises:
            SettingsError: the confidence needs more calibration crystals.
        """
        scores = self.scores[target]
        rank = quantile_rank(len(scores), confidence)
        if rank > len(scores):
            raise SettingsError(
                f"confidence={confidence:g} needs at least {needed_rows(confidence)} "
                f"calibration crystals with {name!r}, there are {len(scores)} (from "
                f"{self.source}); ask for less, or call calibrate(X, y) with more crystals "
                "that were not learned from."
            )
        return scores[rank - 1]

    def _scale(self, factors: NDArray[np.float64], target: int) -> NDArray[np.float64]:
        """The difficulty of each crystal, shape ``(n_rows,)``."""
        if self.floors is None:
            return _difficulty(factors, self.medians[target])
        floor = self.floors[target]
        if floor > 0:
            return np.asarray(np.sqrt(factors[-1] ** 2 + floor**2))
        return np.ones(factors.shape[1])

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready."""
        kind = {"medians": [list(one) for one in self.medians]}
        return {
            "scores": [list(scores) for scores in self.scores],
            "source": self.source,
            **(kind if self.floors is None else {"floors": list(self.floors)}),
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], *, n_targets: int) -> Self:
        """Read what ``to_plain`` made, of this version or of version 1.

        Raises:
            ModelFileError: a key is missing or unknown, or the targets are of another number.
        """
        keys = set(document) if isinstance(document, Mapping) else set()
        if keys not in ({"scores", "medians", "source"}, {"scores", "floors", "source"}):
            raise ModelFileError("the calibration must have scores, medians and source.")
        scores = tuple(tuple(map(float, one)) for one in document["scores"])
        first = tuple(map(float, document["floors"])) if "floors" in keys else None
        medians = tuple(tuple(map(float, one)) for one in document.get("medians", scores))
        if not len(scores) == len(medians if first is None else first) == n_targets:
            raise ModelFileError(f"the calibration is not one of {n_targets} targets.")
        return cls(
            scores=scores,
            medians=medians if first is None else (),
            source=str(document["source"]),
            floors=first,
        )


def _difficulty(factors: NDArray[np.float64], medians: Sequence[float]) -> NDArray[np.float64]:
    """The product of ``factor / median + FLOOR``, to the same power whatever the factors."""
    known = [
        factor / median + FLOOR
        for factor, median in zip(factors, medians, strict=False)
        if median > 0
    ]
    return np.asarray(
        np.prod([np.ones(factors.shape[1]), *known], axis=0) ** (POWER / max(len(known), 1))
    )


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
    """Find which of ``n_scores`` ascending scores, counted from 1, is the conformal quantile.

    ceil((n + 1) * confidence): the score of one more crystal, drawn like these, is at most this
    one with a probability of at least ``confidence``. More than ``n_scores`` if there is none.
    """
    return max(1, math.ceil((n_scores + 1) * confidence - _ROUNDING))


def needed_rows(confidence: float) -> int:
    """The least number of scores that have the conformal quantile."""
    return max(1, math.ceil(confidence / (1 - confidence) - 1e-6))
