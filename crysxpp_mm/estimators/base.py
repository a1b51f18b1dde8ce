"""The base of all estimators: everything but the network and the meaning of the labels."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags

from crysxpp_mm.compute import ready_to_learn, usable_device
from crysxpp_mm.data.matminer_tables import table_columns
from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.document import EstimatorDocument, plain_setting
from crysxpp_mm.estimators.domain import TrainingDomain
from crysxpp_mm.estimators.ensemble import StageName, Trained, TrainingData, train_members
from crysxpp_mm.estimators.gathering import Gathered, LearningInput, gather
from crysxpp_mm.estimators.intervals import Calibration
from crysxpp_mm.estimators.predicting import FittedEstimator, View
from crysxpp_mm.estimators.splits import split_rows
from crysxpp_mm.estimators.targets import Targets
from crysxpp_mm.estimators.view import EstimatorView
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.settings import flag, whole_number
from crysxpp_mm.training.fit import FitRows
from crysxpp_mm.training.objectives import Objective
from crysxpp_mm.training.options import FitOptions, checked_options, continued_options


class NetworkSource(NamedTuple):
    """Source of untrained networks."""

    converter: CrystalGraphConverter
    make: Callable[[int, int], PropertyModel[Any]]
    """Makes a network from a seed and the number of its outputs."""
    pretrained: str | None = None
    """sha256 of the pretrained weights that it starts from."""


class PropertyEstimator(
    FittedEstimator,
    EstimatorView,
    BaseEstimator,  # type: ignore[misc]
    EstimatorDocument,
):
    """An estimator of properties of crystals, whatever its network and its labels.

    A class of labels (:mod:`crysxpp_mm.estimators.regression`, ``classification``) says what they
    mean; a class of networks says where networks come from, with ``_network_source``,
    ``_model_class`` and, if its networks learn by further options, ``_fit_options``.
    """

    _fit_options: ClassVar[type[FitOptions]] = FitOptions
    _model_class: ClassVar[type[PropertyModel[Any]]]

    # What a subclass says.

    @abstractmethod
    def _network_source(self) -> NetworkSource:
        """Check the arguments of the network, and say where networks come from.

        Raises:
            SettingsError: an option has a value that makes no sense.
            UnknownModelError, ModelFileError: a pretrained model cannot be loaded.
        """

    @abstractmethod
    def _describe_targets(self, y: Any) -> Targets:
        """Describe the targets of ``y`` by the arguments of the estimator."""

    @abstractmethod
    def _set_targets(self, targets: Targets) -> None:
        """Keep the meaning of the labels, with the attributes that users read."""
        self._targets = targets
        self.target_names_ = targets.names

    @abstractmethod
    def _start(self, network: PropertyModel[Any], encoded: NDArray[Any]) -> None:
        """Tell a new network the scale of the targets that it learns from."""

    @abstractmethod
    def _objective(
        self, targets: Targets, network: PropertyModel[Any], encoded: NDArray[Any]
    ) -> tuple[NDArray[Any], Objective]:
        """Turn what is learned into a network's own units, and make the loss there."""

    # Fitting: gather, split, start, learn, keep.

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any = None,
        validation: tuple[Any, Any] | None = None,
    ) -> Self:
        """Learn from labelled crystals.

        Training and predictions use one torch thread, whatever is set: the networks are small.

        Args:
            X: Structures in a list, Series or DataFrame of one column, or their graphs
                (``CrystalGraphs``, a ``GraphStore``). For ``cross_val_score`` and the like the
                ``graphs`` of a store.
            y: Labels; NaN where unknown. Rows without any label are left out, with a warning.
            groups: A group for each row, such as its composition or chemical system. Crystals of
                a group are never in the training and the validation set at once.
            validation: Crystals and labels that choose the best epoch, in place of a share of the
                training crystals.

        Returns:
            Itself.

        Raises:
            SettingsError: an option has a value that makes no sense.
            DataError: the labels are unusable; the message says which and why.
            StructureTypeError, UnknownElementError, StructureError: a crystal has no graph; the
                message names the row.
            UnknownModelError, ModelFileError: the pretrained model cannot be loaded.
        """
        return self._fit(LearningInput(X, y, groups, validation))

    def fit_dataset(
        self,
        name: str,
        *,
        target: str | Sequence[str],
        data_home: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Learn from a table that matminer's ``load_dataset`` gives.

        Rows without a usable label or crystal are left out; ``left_out_`` says which and why.

        Args:
            name: Name of the table, such as ``"elastic_tensor_2015"``.
            target: Column or columns to learn.
            data_home: Folder of the table's file, for work without a network.

        Returns:
            Itself.

        Raises:
            DataError: there is no such table or column, or no row is left.
            SettingsError: an option has a value that makes no sense.
        """
        structures, y = table_columns(name, target, data_home=data_home)
        return self._fit(LearningInput(structures, y, ignore_errors=True))

    @ready_to_learn()
    def _fit(self, given: LearningInput) -> Self:
        for name in ("members_", "learning_curve_", "metadata_"):  # a fit that fails leaves none
            self.__dict__.pop(name, None)
        options = self._checked_options()
        usable_device(self.accelerator)  # what is absent is found before the training
        source = self._network_source()
        data = gather(given, source.converter, self._describe_targets(given.y), anew=True)
        rows = self._split(data, options)
        data.targets.check_learnable(data.encoded[rows.train])
        networks = []
        for member in range(self.n_members):
            network = source.make(options.seed + member, data.targets.n_outputs)
            network.metadata = {"pretrained": source.pretrained}
            self._start(network, data.encoded[rows.train])
            networks.append(network)
        trained = self._learn(networks, data, rows, options, "fit")
        view = View(trained.members, data.targets, trained.members[0])
        self.domain_, calibration = self._looked_back(view, data, rows, "fit")
        self._embedder = None
        self._set_targets(data.targets)
        self.n_train_ = data.n_rows
        self.data_hash_ = trained.record["data_hash"]
        self.history_ = [trained.record]
        self._keep(trained, data, calibration)
        self.learning_curve_ = trained.curve.assign(stage=0)
        return self

    def fine_tune(
        self,
        X: Any,
        y: Any,
        *,
        learning_rate: float | None = None,
        max_epochs: int = 10,
        groups: Any = None,
        validation: tuple[Any, Any] | None = None,
    ) -> Self:
        """Go on learning from more labelled crystals, at a smaller rate.

        Every member goes on from its weights. What the labels mean stays: targets, classes,
        transforms, units, mean and scale. The batch norms keep their statistics, which few
        crystals would spoil. The crystals learned from before are not shown again: the higher the
        rate and the more epochs, the more of what they taught fades.

        New crystals are held out as ``fit`` does it, and give the intervals of a regressor. Where
        there are none, ``predict_interval`` needs ``calibrate`` first. The crystals of ``domain``
        become those of before and these, in the embedding of before.

        The other settings are the estimator's, with the steps an epoch of ``fit`` (``min_steps``
        / ``max_epochs``). A call that fails changes nothing.

        Args:
            X: Structures or graphs, as ``fit`` takes them.
            y: Their labels; NaN where unknown.
            learning_rate: Peak of the one-cycle rate; a sixteenth of the estimator's if None. A
                higher one learns what is quite new faster and forgets more.
            max_epochs: Epochs at most.
            groups: As ``fit`` takes them.
            validation: As ``fit`` takes it.

        Returns:
            Itself.

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: an option has a value that makes no sense.
            DataError: the labels are unusable, or mean something else than those of before; the
                message says which and why.
            StructureTypeError, UnknownElementError, StructureError: a crystal has no graph; the
                message names the row.
        """
        self._check_fitted()
        options = continued_options(
            self._checked_options(), learning_rate=learning_rate, max_epochs=max_epochs
        )
        return self._go_on(LearningInput(X, y, groups, validation), options)

    @ready_to_learn()
    def _go_on(self, given: LearningInput, options: FitOptions) -> Self:
        usable_device(self.accelerator)
        data = gather(given, self.converter_, self._targets, anew=False)
        if (flat := self.members_[0].target_scale == 0).any():
            name = self.target_names_[int(flat.nonzero()[0])]
            raise DataError(
                f"{name!r} was learned from equal labels, which have no scale to go on with; fit "
                "anew, with these crystals and those of before."
            )
        rows = self._split(data, options)
        networks = [deepcopy(member) for member in self.members_]
        trained = self._learn(networks, data, rows, options, "fine_tune")
        embedder = self._embedder or self.members_[0]  # which a copy will replace
        view = View(trained.members, data.targets, embedder)
        domain, calibration = self._looked_back(view, data, rows, "fine_tune", self.domain_)
        last = self.learning_curve_.groupby("member")["epoch"].max()
        curve = trained.curve.assign(stage=len(self.history_))
        curve["epoch"] += curve["member"].map(last) + 1
        history = [*self.history_, trained.record]
        together = "".join(record["data_hash"] for record in history)

        self.domain_, self._embedder = domain, embedder  # from here on nothing fails
        self.learning_curve_ = pd.concat([self.learning_curve_, curve], ignore_index=True)
        self.n_train_ += data.n_rows
        self.data_hash_ = hashlib.sha256(together.encode()).hexdigest()
        self.history_ = history
        self._keep(trained, data, calibration)
        return self

    def _split(self, data: Gathered, options: FitOptions) -> FitRows:
        """Split into rows to learn from, and rows held out by all members alike."""
        if data.n_rows < len(data.graphs):  # the user named those of validation
            return FitRows(np.arange(data.n_rows), np.arange(data.n_rows, len(data.graphs)))
        return FitRows(
            *split_rows(
                data.n_rows,
                fraction=options.validation_fraction,
                seed=options.seed,
                groups=data.groups,
                strata=data.targets.strata(data.encoded),
            )
        )

    def _learn(
        self,
        networks: list[PropertyModel[Any]],
        data: Gathered,
        rows: FitRows,
        options: FitOptions,
        stage: StageName,
    ) -> Trained:
        """Train the networks in place."""
        training = TrainingData(
            graphs=data.graphs,
            encoded=data.encoded,
            rows=rows,
            options=options,
            make_objective=partial(self._objective, data.targets),
            stage=stage,
        )
        return train_members(networks, training, self, type(self).__name__)

    def _looked_back(
        self,
        view: View,
        data: Gathered,
        rows: FitRows,
        stage: StageName,
        before: TrainingDomain | None = None,
    ) -> tuple[TrainingDomain, Calibration | None]:
        """Say what was learned from, and how far off trained networks are on rows held out."""
        chosen = data.graphs.select(rows.train)
        measure = TrainingDomain.measure if before is None else before.extended
        domain = measure(
            self._embed(view.embedder, chosen),
            chosen,
            [data.names[row] for row in rows.train],
            self._outputs(view.members, view.targets, chosen).mean(axis=0),
        )
        if not len(rows.held_out):
            return domain, None
        held_out = data.graphs.select(rows.held_out), data.encoded[rows.held_out]
        source = f"the rows that {stage} held out"
        return domain, self._calibration(view, domain, *held_out, source=source)

    def measure_again(self, X: Any, y: Any) -> Self:
        """Measure intervals and domain anew, from the crystals that ``fit`` was given.

        So a model of a version 1 file gets what later versions have. The networks stay as they
        are; the rows held out are those that ``fit`` has held out by the seed.

        Args:
            X: The crystals, as ``fit`` took them; their index labels, or the names of their
                ``GraphStore``, become the names that ``domain`` gives.
            y: Their labels.

        Returns:
            Itself.

        Raises:
            NotFittedError: nothing was learned yet.
            DataError: the model has learned from other crystals or labels, or in several stages.
        """
        self._check_fitted()
        data = gather(LearningInput(X, y), self.converter_, self._targets, anew=False)
        rows = self._split(data, self._checked_options())
        view = View(self.members_, self._targets, self.members_[0])
        again = deepcopy(view.embedder)
        self._start(again, data.encoded[rows.train])
        domain, calibration = self._looked_back(view, data, rows, "fit")
        if not (
            [(stage["n_train"], stage["n_validation"]) for stage in self.history_]
            == [(len(rows.train), len(rows.held_out))]
            and np.allclose(again.target_mean, view.embedder.target_mean)
            and np.allclose(again.target_scale, view.embedder.target_scale)
            and np.array_equal(domain.elements, self.domain_.elements)
            and np.array_equal(domain.sizes, self.domain_.sizes)
        ):
            raise DataError(
                "these are not the crystals and labels that the model has learned from, or not all "
                "of them; give those of its one fit, in their order."
            )
        self.domain_, self.calibration_ = domain, calibration
        return self

    def _keep(self, trained: Trained, data: Gathered, calibration: Calibration | None) -> None:
        self.left_out_ = data.left_out
        self.calibration_ = calibration
        self.members_ = trained.members

    def _checked_options(self) -> FitOptions:
        """Check every argument; returns those of the training.

        Raises:
            SettingsError: one has a value that makes no sense.
        """
        options = checked_options(self._fit_options, self)
        whole_number("n_members", self.n_members, at_least=1)
        flag("pbar", self.pbar)
        for name, value in self.get_params(deep=False).items():  # found now, not on saving
            try:
                json.dumps(plain_setting(value), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise SettingsError(f"{name} cannot be saved with the model: {error}.") from error
        return options

    # scikit-learn's interface.

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.no_validation = True
        tags.non_deterministic = False
        return tags
