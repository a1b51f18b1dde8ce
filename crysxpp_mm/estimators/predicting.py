"""A fitted estimator at work: its networks predict and embed crystals."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from crysxpp_mm.compute import usable_device
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.estimators.crystals import CrystalRows, read_crystals
from crysxpp_mm.estimators.domain import TrainingDomain, domain_table
from crysxpp_mm.estimators.intervals import Calibration, check_confidence
from crysxpp_mm.estimators.networks import embeddings_of, outputs_of
from crysxpp_mm.estimators.options import EstimatorOptions
from crysxpp_mm.estimators.splits import MIN_VALIDATED
from crysxpp_mm.estimators.targets import Targets
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.notices import warn_user


class View(NamedTuple):
    """Networks, what their outputs mean, and the one that places crystals in the domain."""

    members: Sequence[Any]
    targets: Targets
    embedder: PropertyModel[Any]


class FittedEstimator(EstimatorOptions):
    """The part of an estimator that was learned, and what it can do."""

    # Not fields: only the classes that @dataclass decorates make arguments of annotations.
    members_: list[Any]
    target_names_: list[str]
    learning_curve_: pd.DataFrame
    left_out_: pd.DataFrame
    n_train_: int
    data_hash_: str
    history_: list[dict[str, Any]]
    calibration_: Calibration | None
    domain_: TrainingDomain
    _targets: Targets
    _embedder: PropertyModel[Any] | None  # places crystals in the domain, if not the first member

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"this {type(self).__name__} is not fitted yet; call fit, or load a saved model."
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "members_") and hasattr(self, "learning_curve_")

    def _read(self, X: Any, *, ignore_errors: bool = False) -> CrystalRows:
        """Read crystals to be predicted."""
        self._check_fitted()
        crystals = read_crystals(X, self.converter_)
        if not ignore_errors:
            crystals.refuse_errors()
        return crystals

    def _predict_members(
        self, X: Any, *, ignore_errors: bool
    ) -> tuple[NDArray[np.float64], CrystalRows]:
        """Predict with each member, ``(n_members, n_rows, n_outputs)``, NaN for bad rows."""
        crystals = self._read(X, ignore_errors=ignore_errors)
        outputs = np.full((len(self.members_), crystals.n_rows, self._targets.n_outputs), np.nan)
        outputs[:, crystals.rows] = self._outputs(self.members_, self._targets, crystals.graphs)
        if not ignore_errors:
            crystals.refuse_not_finite(outputs)
        return outputs, crystals

    def _outputs(
        self, networks: Sequence[Any], targets: Targets, graphs: CrystalGraphs
    ) -> NDArray[np.float64]:
        """Predict with each network, shape ``(n_networks, n_graphs, n_outputs)``."""
        return targets.clip(outputs_of(networks, graphs, usable_device(self.accelerator)))

    def _embed(self, network: PropertyModel[Any], graphs: CrystalGraphs) -> NDArray[np.float32]:
        return embeddings_of(network, graphs, usable_device(self.accelerator))

    @abstractmethod
    def _errors(
        self, targets: Targets, outputs: NDArray[np.float64], encoded: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Compare outputs with the truth, shape ``(n_rows, n_targets)``, NaN where unknown."""

    def _factors(
        self, domain: TrainingDomain, embeddings: NDArray[np.float32], outputs: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Factors of the difficulty of crystals; None where errors do not follow it."""
        return None

    def _calibration(
        self,
        view: View,
        domain: TrainingDomain,
        graphs: CrystalGraphs,
        encoded: NDArray[Any],
        *,
        source: str,
    ) -> Calibration:
        """Measure errors on crystals that were not learned from."""
        outputs = self._outputs(view.members, view.targets, graphs)
        factors = self._factors(domain, self._embed(view.embedder, graphs), outputs)
        errors = self._errors(view.targets, outputs, encoded)
        return Calibration.measure(errors, factors, source=source)

    def calibrate(self, X: Any, y: Any) -> Self:
        """Measure the errors that intervals, or sets of classes, go by on these crystals.

        They take the place of earlier ones. The networks stay as they are.

        Args:
            X: Crystals that were not learned from, as ``fit`` takes them; drawn as those to be
                predicted.
            y: Their labels, NaN where unknown.

        Returns:
            Itself.

        Raises:
            NotFittedError: nothing was learned yet.
            DataError: the labels are unusable, or not those of the model's targets.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        crystals = self._read(X)
        labels = self._targets.match(y, crystals)
        encoded = self._targets.encode(labels.values[labels.known])
        graphs = crystals.graphs.select(np.flatnonzero(labels.known))
        view = View(self.members_, self._targets, self._embedder or self.members_[0])
        self.calibration_ = self._calibration(
            view, self.domain_, graphs, encoded, source="the rows given to calibrate"
        )
        return self

    def _checked_calibration(self, confidence: float) -> Calibration:
        """Return what intervals go by.

        Raises:
            SettingsError: there is none, or the confidence does not lie between 0 and 1.
        """
        self._check_fitted()
        check_confidence(confidence)
        if self.calibration_ is None:
            raise SettingsError(
                "there are no calibration crystals, because none were held out; call "
                "calibrate(X, y) with crystals that were not learned from. (Training holds out "
                f"validation=(X, y), or a share of at least {MIN_VALIDATED} labels unless "
                "validation_fraction is 0.)"
            )
        return self.calibration_

    def domain(self, X: Any, *, ignore_errors: bool = False) -> pd.DataFrame:
        """Measure how near crystals are to those that the model has learned from.

        A crystal is a place in the pooled embedding of the first member, along at most 16
        principal components of its columns, each brought to a standard deviation of 1. Distances
        are to all training crystals. Errors are to be expected as they were in validation where
        ``in_domain`` is True, which it is for about 95 % of crystals like the training crystals,
        elements and binaries apart, and for every training crystal. Elsewhere they are not known:
        often large, though an unseen element beside others like it may do no harm.

        Args:
            X: Crystals, as ``fit`` takes them. Numbers of sites only compare if the cells are
                alike, such as primitive cells in both.
            ignore_errors: Give None, NaN and False for a row that is not a crystal, instead of
                raising.

        Returns:
            One row a crystal, with the index of ``X`` if it is of pandas: ``unseen_elements``
            (such as ``"La, U"``: the elements that no training crystal has; empty if none),
            ``n_sites``, ``size_in_range`` (True if there are training crystals of at most and at
            least as many sites), ``distance`` (mean to the five nearest training crystals),
            ``relative_distance`` (the same, as a multiple of what crystals of as many elements
            stay within), ``shortest_bond`` in Angstrom and ``bond_over_radii`` (over the sum of
            the covalent radii), ``learned_from`` (True for a training crystal, known by its
            composition and its bonds to 0.001 Angstrom), ``reason`` (why it is outside, in words;
            empty inside), ``in_domain``, and ``nearest_1`` to ``nearest_3`` with ``formula_1`` to
            ``formula_3``: the nearest training crystals, by the label of their index, else their
            row, and their reduced formulas. A model of a version 1 file names none, and knows
            neither bonds nor training crystals (see ``measure_again``).

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        return self._domain(self._read(X, ignore_errors=ignore_errors))[0]

    def _domain(self, crystals: CrystalRows) -> tuple[pd.DataFrame, NDArray[np.float32]]:
        """Table of the domain, and the embeddings that it goes by."""
        if self.domain_.first:
            warn_user(
                "the model file is of version 1: its domain knows no bonds, names no training "
                "crystals and may find one outside; measure_again(X, y) brings it up to date."
            )
        embeddings = self._embed(self._embedder or self.members_[0], crystals.graphs)
        return domain_table(self.domain_, embeddings, crystals), embeddings

    @property
    def converter_(self) -> CrystalGraphConverter:
        """Graph rule of the fitted model."""
        self._check_fitted()
        rule: CrystalGraphConverter = self.members_[0].converter
        return rule
