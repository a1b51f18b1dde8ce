"""Estimators of classes, whatever their network."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.base import PropertyEstimator
from crysxpp_mm.estimators.crystals import CrystalRows
from crysxpp_mm.estimators.labels import read_classes
from crysxpp_mm.estimators.targets import ClassTargets, Targets
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.training.objectives import ClassificationObjective, Objective
from crysxpp_mm.training.options import FitOptions


@dataclass(kw_only=True, eq=False, repr=False)
class PropertyClassifier(ClassifierMixin, PropertyEstimator):  # type: ignore[misc]
    """Predict classes; the probabilities of an ensemble are averaged.

    Args:
        class_weight: ``"balanced"`` to let every class count alike in the loss, or None.
    """

    class_weight: Literal["balanced"] | None = None

    _target_class: ClassVar[type[Targets]] = ClassTargets

    def predict_proba(self, X: Any, *, ignore_errors: bool = False) -> NDArray[np.float64]:
        """Predict the probability of every class.

        Args:
            X: Crystals, as ``fit`` takes them.
            ignore_errors: Give NaN for a row that is not a crystal, instead of raising.

        Returns:
            Shape ``(n, n_classes)``, in the order of ``classes_``; an array for pandas as well,
            because scikit-learn's scorers need one. As a table:
            ``pd.DataFrame(model.predict_proba(X), index=X.index, columns=model.classes_)``.

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        return self._probabilities(X, ignore_errors=ignore_errors)[0]

    def predict(self, X: Any, *, ignore_errors: bool = False) -> NDArray[Any] | pd.Series:
        """Predict the most probable class of each crystal.

        Args:
            X: Crystals, as ``fit`` takes them.
            ignore_errors: Give None for a row that is not a crystal, instead of raising.

        Returns:
            Shape ``(n,)``; a Series with the index of ``X`` if ``X`` is of pandas.

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        probabilities, crystals = self._probabilities(X, ignore_errors=ignore_errors)
        bad = np.asarray(np.isnan(probabilities).any(axis=1))
        best = np.where(bad[:, None], 0.0, probabilities).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        if bad.any():
            chosen = chosen.astype(object)
            chosen[bad] = None
        if crystals.labels is None:
            return chosen
        return pd.Series(chosen, index=crystals.labels, name=self._targets.columns[0])

    def predict_set(
        self, X: Any, *, confidence: float = 0.9, ignore_errors: bool = False
    ) -> pd.DataFrame:
        """Predict sets of classes that hold the true one as often as asked.

        Conformal prediction: a class is in the set if its probability is at least that which the
        share ``confidence`` of crystals that were not learned from give their true class (Sadinle,
        Lei and Wasserman, J. Am. Stat. Assoc. 114, 223 (2019)). The most probable class always is.

        Args:
            X: Crystals, as ``fit`` takes them.
            confidence: Share of the crystals whose class is to be in the set, between 0 and 1.
            ignore_errors: Give False for a row that is not a crystal, instead of raising.

        Returns:
            A column for each class, True where it is in the set, and ``in_domain`` (see
            ``domain``), with the index of ``X`` if it is of pandas.

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: no crystals were held out, or too few for this confidence, or the
                confidence does not lie between 0 and 1.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        calibration = self._checked_calibration(confidence)
        probabilities, crystals = self._probabilities(X, ignore_errors=ignore_errors)
        least = 1 - calibration.threshold(0, confidence=confidence, name=self.target_names_[0])
        inside = (probabilities >= least) | (
            probabilities == probabilities.max(axis=1, keepdims=True, initial=0)
        )
        table = pd.DataFrame(inside, index=crystals.labels, columns=self.classes_)
        return table.assign(in_domain=self._domain(crystals)[0]["in_domain"].to_numpy())

    def _errors(
        self, targets: Targets, outputs: NDArray[np.float64], encoded: NDArray[Any]
    ) -> NDArray[np.float64]:
        return 1 - np.take_along_axis(_mean_softmax(outputs), encoded[:, None], axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the share of crystals whose class is right.

        Crystals of unknown class are left out.

        Args:
            X: Crystals.
            y: Their classes; None or NaN where unknown.
            sample_weight: Weight of each row.

        Raises:
            DataError: no row has a class, or one is not a class.
        """
        probabilities, crystals = self._probabilities(X, ignore_errors=False)
        labels = read_classes(y, crystals)
        if not labels.known.any():
            raise DataError("y has no class.")
        right = self.classes_[probabilities.argmax(axis=1)].astype(object) == labels.values
        known = labels.known
        weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(np.average(right[known], weights=weight))

    def _probabilities(
        self, X: Any, *, ignore_errors: bool
    ) -> tuple[NDArray[np.float64], CrystalRows]:
        """Average the members' probabilities, shape ``(n_rows, n_classes)``."""
        logits, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        return _mean_softmax(logits), crystals

    # What the labels mean.

    def _checked_options(self) -> FitOptions:
        if self.class_weight not in (None, "balanced"):
            raise SettingsError(
                f"class_weight must be 'balanced' or None, got {self.class_weight!r}."
            )
        return super()._checked_options()

    def _describe_targets(self, y: Any) -> ClassTargets:
        return ClassTargets.describe(y, target_names=self.target_names)

    def _set_targets(self, targets: Targets) -> None:
        super()._set_targets(targets)
        self.classes_: NDArray[Any] = cast(ClassTargets, targets).classes

    def _start(self, network: PropertyModel[Any], encoded: NDArray[Any]) -> None:
        """Do nothing: logits have no scale."""

    def _objective(
        self, targets: Targets, network: PropertyModel[Any], encoded: NDArray[Any]
    ) -> tuple[NDArray[Any], Objective]:
        if self.class_weight is None:
            return encoded, ClassificationObjective()
        counts = np.bincount(encoded, minlength=targets.n_outputs)
        present = counts > 0
        weights = np.zeros(len(counts))
        weights[present] = len(encoded) / (present.sum() * counts[present])
        return encoded, ClassificationObjective(weights)


def _mean_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the members' probabilities, shape ``(n_rows, n_classes)``."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray((exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=0))
