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
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=0), crystals

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
