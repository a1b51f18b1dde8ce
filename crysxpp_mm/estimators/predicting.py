"""A fitted estimator at work: its networks predict and embed crystals."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from crysxpp_mm.compute import usable_device
from crysxpp_mm.estimators.crystals import CrystalRows, read_crystals
from crysxpp_mm.estimators.domain import TrainingDomain, domain_table
from crysxpp_mm.estimators.intervals import Calibration
from crysxpp_mm.estimators.networks import embeddings_of, outputs_of
from crysxpp_mm.estimators.options import EstimatorOptions
from crysxpp_mm.estimators.targets import Targets
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.property import PropertyModel


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

    def domain(self, X: Any, *, ignore_errors: bool = False) -> pd.DataFrame:
        """Measure how near crystals are to those that the model has learned from.

        A crystal is a place in the pooled embedding of the first member, along at most 16
        principal components of its columns, each brought to a standard deviation of 1. Distances
        are to at most 1,000 of the training crystals. Errors are to be expected as they were
        in validation where ``in_domain`` is True, which it is for at least about 95 % of the
        training crystals. Elsewhere they are not known: often large, though an unseen element
        beside others like it may do no harm.

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
            ``relative_distance`` (the same, as a multiple of what 95 % of the training crystals
            have to others) and ``in_domain`` (no unseen element, a size in range, a relative
            distance of at most 1).

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is not a crystal; it is
                named.
        """
        crystals = self._read(X, ignore_errors=ignore_errors)
        embeddings = self._embed(self._embedder or self.members_[0], crystals.graphs)
        return domain_table(self.domain_, embeddings, crystals)

    @property
    def converter_(self) -> CrystalGraphConverter:
        """Graph rule of the fitted model."""
        self._check_fitted()
        rule: CrystalGraphConverter = self.members_[0].converter
        return rule
