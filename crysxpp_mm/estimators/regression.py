"""Estimators of properties that are numbers, whatever their network."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.base import PropertyEstimator
from crysxpp_mm.estimators.crystals import CrystalRows
from crysxpp_mm.estimators.domain import TrainingDomain
from crysxpp_mm.estimators.intervals import difficulties
from crysxpp_mm.estimators.targets import NumberTargets, Targets
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.notices import warn_user
from crysxpp_mm.settings import one_of
from crysxpp_mm.training.objectives import LOSSES, Objective, RegressionObjective
from crysxpp_mm.training.options import FitOptions

Values = NDArray[np.float64] | pd.Series | pd.DataFrame
"""Predictions: of pandas for pandas, else an array."""


@dataclass(kw_only=True, eq=False, repr=False)
class PropertyRegressor(RegressorMixin, PropertyEstimator):  # type: ignore[misc]
    """Predict numbers, with intervals.

    Args:
        transform: ``"log10"``, ``"log"``, ``"log1p"``, ``"sqrt"`` or None: what is learned in
            place of the label; undone on predicting. ``"nonnegative"`` is for labels that cannot
            be negative and are often zero, such as band gaps: what a network says below zero counts
            as zero, in the loss and on predicting (regression with censored labels: Powell, J.
            Econom. 25, 303 (1984)). For several targets also a sequence, or a dictionary by name.
        units: Unit of the targets, kept with the model: one for all, one for each in a sequence,
            or a dictionary by name.
        loss: ``"l1"`` or ``"mse"`` of the standardized targets.
    """

    transform: str | Sequence[str | None] | Mapping[str, str | None] | None = None
    units: str | Sequence[str] | Mapping[str, str] | None = None
    loss: Literal["l1", "mse"] = "l1"

    _target_class: ClassVar[type[Targets]] = NumberTargets

    def predict(
        self, X: Any, *, return_std: bool = False, ignore_errors: bool = False
    ) -> Values | tuple[Values, Values]:
        """Predict the targets of crystals.

        Args:
            X: Crystals, as ``fit`` takes them.
            return_std: Also give the standard deviation over the members of the ensemble.
            ignore_errors: Give NaN for a row that is not a crystal, instead of raising.

        Returns:
            In the units of the labels: a Series or DataFrame with the index of ``X`` and the
            names of the targets if ``X`` is of pandas, else an array, ``(n,)`` or
            ``(n, n_targets)`` as ``y`` was. (scikit-learn's stacking needs arrays: give it
            ``list(X)``.)

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: ``return_std`` with a single member.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        if return_std and len(getattr(self, "members_", [0, 0])) < 2:
            raise SettingsError("return_std needs an ensemble; fit with n_members of 2 or more.")
        outputs, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        values = self._wrap(self._numbers.decode(outputs.mean(axis=0)), crystals)
        if not return_std:
            return values
        members = np.stack([self._numbers.decode(output) for output in outputs])
        return values, self._wrap(members.std(axis=0, ddof=1), crystals)

    def predict_interval(
        self, X: Any, *, confidence: float = 0.9, ignore_errors: bool = False
    ) -> pd.DataFrame:
        """Predict the targets of crystals, with intervals that hold the truth as often as asked.

        Split conformal prediction: the errors on crystals that were not learned from are sorted,
        and the ``ceil((n + 1) * confidence)``-th of ``n`` says how far an interval reaches (Lei
        et al., J. Am. Stat. Assoc. 113, 1094 (2018)). The errors are those of what is learned, so
        that the interval of a ``"log10"`` target is a factor. They are divided by the difficulty
        of the crystal (Papadopoulos et al., J. Artif. Intell. Res. 40, 815 (2011)): far from the
        training crystals, where the predictions for these differ, and where the members of an
        ensemble disagree, the interval is wider. With fewer than 30 calibration crystals all
        intervals are of one width, and a warning says so.

        What is promised is a mean: of many crystals that are drawn as the calibration crystals
        were, the share ``confidence`` lies inside, target by target. Crystals of another kind
        (``in_domain`` is False) may lie outside more often, and so may those of a new chemical
        system, unless ``groups`` kept whole systems apart.

        The calibration crystals are those that the last ``fit`` or ``fine_tune`` held out, or
        those of ``calibrate``. Held-out crystals have chosen the best epoch, so that their errors
        are a little too small. As only the last epochs are chosen from, while the one-cycle rate
        goes to zero and they hardly differ, that matters little (more with ``patience``).
        ``calibrate`` with further crystals is free of it.

        Args:
            X: Crystals, as ``fit`` takes them.
            confidence: Share of the crystals whose truth is to lie inside, between 0 and 1.
            ignore_errors: Give NaN for a row that is not a crystal, instead of raising.

        Returns:
            Columns ``prediction``, ``lower`` and ``upper`` in the units of the labels, and
            ``in_domain`` (see ``domain``), with the index of ``X`` if it is of pandas; for several
            targets two levels of columns, the target above these.

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: no crystals were held out, or too few for this confidence, or the
                confidence does not lie between 0 and 1.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        calibration = self._checked_calibration(confidence)
        if reason := calibration.constant():
            warn_user(f"all intervals are of one width: {reason}.")
        outputs, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        table, embeddings = self._domain(crystals)
        factors = self._factors(self.domain_, embeddings, outputs[:, crystals.rows])
        widths = np.full(outputs.shape[1:], np.nan)
        widths[crystals.rows] = calibration.half_widths(
            factors, confidence=confidence, names=self.target_names_
        )
        center = outputs.mean(axis=0)
        bounds = [self._numbers.decode(center + shift) for shift in (0.0, -widths, widths)]
        found = {}
        for target, name in enumerate(self.target_names_):
            ends = (bound[:, target] for bound in bounds)
            columns = dict(zip(("prediction", "lower", "upper"), ends, strict=True))
            columns["in_domain"] = table["in_domain"].to_numpy()
            found[name] = pd.DataFrame(columns, index=crystals.labels)
        return found[name] if len(found) == 1 else pd.concat(found, axis=1)

    def _factors(
        self, domain: TrainingDomain, embeddings: NDArray[np.float32], outputs: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return difficulties(domain.reference, embeddings, outputs)

    def _errors(
        self, targets: Targets, outputs: NDArray[np.float64], encoded: NDArray[Any]
    ) -> NDArray[np.float64]:
        return np.asarray(np.abs(encoded - outputs.mean(axis=0)))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the coefficient of determination R2, the mean over the targets.

        Unknown labels are left out.

        Args:
            X: Crystals.
            y: Labels, NaN where unknown.
            sample_weight: Weight of each row.

        Raises:
            DataError: a target has no label.
        """
        outputs, crystals = self._predict_members(X, ignore_errors=False)
        predicted = self._numbers.decode(outputs.mean(axis=0))
        truth = self._numbers.match_numbers(y, crystals)
        scores = []
        for target, name in enumerate(self.target_names_):
            known = ~np.isnan(truth[:, target])
            if not known.any():
                raise DataError(f"y has no label of {name!r}.")
            weight = None if sample_weight is None else np.asarray(sample_weight)[known]
            scores.append(
                r2_score(truth[known, target], predicted[known, target], sample_weight=weight)
            )
        return float(np.mean(scores))

    # What the labels mean.

    def _checked_options(self) -> FitOptions:
        one_of("loss", self.loss, LOSSES)
        return super()._checked_options()

    def _describe_targets(self, y: Any) -> NumberTargets:
        return NumberTargets.describe(
            y, target_names=self.target_names, transform=self.transform, units=self.units
        )

    def _set_targets(self, targets: Targets) -> None:
        super()._set_targets(targets)
        self.units_: list[str] = self._numbers.units
        self.transforms_: list[str | None] = self._numbers.transforms

    def _start(self, network: PropertyModel[Any], encoded: NDArray[Any]) -> None:
        mean, scale = np.nanmean(encoded, axis=0), np.nanstd(encoded, axis=0)
        scale[scale <= 1e-12 * np.abs(mean)] = 0.0  # equal labels, but for rounding
        network.set_target_scale(mean, scale)

    def _objective(
        self, targets: Targets, network: PropertyModel[Any], encoded: NDArray[Any]
    ) -> tuple[NDArray[Any], Objective]:
        mean, scale = network.target_mean.numpy(), network.target_scale.numpy()
        scale = np.where(scale > 0, scale, 1.0)
        floors = (cast(NumberTargets, targets).floors - mean) / scale
        return (encoded - mean) / scale, RegressionObjective(self.loss, floors)

    @property
    def _numbers(self) -> NumberTargets:
        return cast(NumberTargets, self._targets)

    def _wrap(self, values: NDArray[np.float64], crystals: CrystalRows) -> Values:
        """Give predictions the container and the shape of ``X`` and ``y``."""
        targets, single = self._numbers, values.shape[1] == 1
        if crystals.labels is not None and single:
            return pd.Series(values[:, 0], index=crystals.labels, name=targets.columns[0])
        if crystals.labels is not None:
            return pd.DataFrame(values, index=crystals.labels, columns=targets.columns)
        return values[:, 0] if single and targets.one_dimensional else values

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
