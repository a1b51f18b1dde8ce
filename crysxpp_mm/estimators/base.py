"""What CrysXPPRegressor and CrysXPPClassifier share: everything but the meaning of the labels."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

import hashlib
import json
import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags, estimator_html_repr

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.documents import (
    document_hash,
    plain_label,
    plain_setting,
    table_to_dict,
)
from crysxpp_mm.estimators.domain import TrainingDomain, domain_table
from crysxpp_mm.estimators.inputs import Crystals, read_crystals
from crysxpp_mm.estimators.intervals import Calibration
from crysxpp_mm.estimators.learning import (
    Labelled,
    Problem,
    Runs,
    Split,
    Stage,
    StageName,
    going_on,
    learn,
)
from crysxpp_mm.estimators.networks import embeddings_of, n_columns, outputs_of, usable_device
from crysxpp_mm.estimators.splits import group_codes, split_rows
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.html import facts_table
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.serialization import (
    FORMAT_VERSION,
    SavedDocument,
    check_keys,
    reading_model,
    weights_to_dict,
)
from crysxpp_mm.shipped import load_autoencoder
from crysxpp_mm.training.config import FineTuneConfig, whole_number
from crysxpp_mm.training.finetune import Task
from crysxpp_mm.version import __version__

if TYPE_CHECKING:
    from crysxpp_mm.explain import Contributions


LATER_SETTINGS = {"element_channel": False, "element_start": 0.0}
"""Settings that the files of earlier versions lack, and what they stand for there."""
CURVE_COLUMNS = {"epoch", "kept", "member", "stage"}
"""What a learning curve has, besides losses."""


class CrysXPPEstimator(BaseEstimator, SavedDocument):  # type: ignore[misc]
    """Shared ways of the estimators; see :class:`CrysXPPRegressor` for the arguments."""

    _task: Task

    pretrained: Any
    encoder: str
    hidden_dim: int | None
    n_convs: int | None
    element_channel: bool
    selector: bool
    layers: str
    moments: Sequence[str]
    pooled: str
    readout_dim: int
    n_members: int
    target_names: Any
    max_epochs: int
    encoder_rate: float
    validation_fraction: float
    seed: int
    checkpoint_dir: Any
    accelerator: str
    devices: int | str
    pbar: bool

    members_: list[CrysXPP]
    target_names_: list[str]
    _columns: list[Any]  # what pandas calls the targets, in predictions as in y
    learning_curve_: pd.DataFrame
    left_out_: pd.DataFrame
    n_train_: int
    data_hash_: str
    history_: list[dict[str, Any]]
    calibration_: Calibration | None
    domain_: TrainingDomain
    _embedder: CrysXPP | None  # what places crystals in the domain, if not the first member

    # What a subclass says.

    @abstractmethod
    def _read_labels(self, y: Any, crystals: Crystals) -> tuple[NDArray[np.bool_], Any]:
        """Read labels for ``fit``; sets what they mean."""

    @abstractmethod
    def _settle(self, labels: Any) -> None:
        """Look at the labels that ``fit`` learns from; sets what is known once they are chosen."""

    @abstractmethod
    def _match_labels(self, y: Any, crystals: Crystals) -> tuple[NDArray[np.bool_], Any]:
        """Read labels that have to mean what those of ``fit`` mean; sets nothing."""

    @abstractmethod
    def _problem(self, labels: Any) -> Problem:
        """What the networks have to learn."""

    def _check_learnable(self, problem: Problem, train: NDArray[np.int64]) -> None:
        """Refuse rows to learn from that say nothing of a target."""

    def _calibrated(
        self, members: list[CrysXPP], graphs: CrystalGraphs, problem: Problem, source: str
    ) -> Calibration | None:
        """Errors on crystals that were not learned from, where they are of use."""
        return None

    @abstractmethod
    def _strata(self, problem: Problem) -> NDArray[np.int64] | None:
        """Classes of which one member each has to stay in training."""

    @abstractmethod
    def _n_outputs(self) -> int:
        """How many outputs a network has."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """Fitted things of the subclass, JSON-ready."""

    @abstractmethod
    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``_state`` gave."""

    # Fitting.

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
            groups: A group for each row, such as its composition or chemical system; crystals of
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
        return self._fit(X, y, groups=groups, validation=validation, ignore_errors=False)

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
        from crysxpp_mm.data.matminer_tables import load_table, structure_column

        table = load_table(name, data_home=data_home)
        wanted = [target] if isinstance(target, str) else list(target)
        if missing := [column for column in wanted if column not in table]:
            raise DataError(
                f"{name} has no column {missing[0]!r}; there are "
                f"{', '.join(map(repr, table.columns))}."
            )
        y = table[target] if isinstance(target, str) else table[wanted]
        structures = table[structure_column(table)]
        return self._fit(structures, y, groups=None, validation=None, ignore_errors=True)

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
        crystals would spoil. The crystals learned from before are not shown again, so that what
        they taught fades the more, the higher the rate and the more epochs.

        New crystals are held out as ``fit`` does it, and give the intervals of a regressor; where
        there are none, ``calibrate`` is needed before ``predict_interval``. The crystals of
        ``domain`` become those of before and these, in the embedding of before.

        The other settings are the estimator's, with the steps an epoch of ``fit`` (``min_steps``
        / ``max_epochs``) and without ``frozen_epochs``. A call that fails changes nothing.

        Args:
            X: Structures or graphs, as ``fit`` takes them.
            y: Their labels; NaN where unknown.
            learning_rate: Peak of the one-cycle rate of the readout; a sixteenth of the
                estimator's if None. The rates of encoder and selector change in proportion. A
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
        return self._fine_tune(
            X,
            y,
            learning_rate=learning_rate,
            max_epochs=max_epochs,
            groups=groups,
            validation=validation,
        )

    def _fit(
        self,
        X: Any,
        y: Any,
        *,
        groups: Any,
        validation: tuple[Any, Any] | None,
        ignore_errors: bool,
    ) -> Self:
        for name in ("members_", "learning_curve_", "metadata_"):  # a fit that fails leaves none
            self.__dict__.pop(name, None)
        config = self._config()
        source = self._source()
        template = self._network(source, seed=0, n_targets=1)
        data = self._gather(
            X,
            y,
            template.converter,
            anew=True,
            groups=groups,
            validation=validation,
            ignore_errors=ignore_errors,
        )
        problem = self._problem(data.labels)
        split = self._split(data, problem, config)
        self._check_learnable(problem, split.train)
        origin = None if source is None else weights_to_dict(source)["sha256"]
        starts = []
        for member in range(self.n_members):
            seed = config.seed + member
            network = self._network(source, seed=seed, n_targets=problem.n_outputs)
            network.metadata = {"pretrained": origin}
            if self._task == "regression":
                mean = np.nanmean(problem.targets[split.train], axis=0)
                scale = np.nanstd(problem.targets[split.train], axis=0)
                scale[scale <= 1e-12 * np.abs(mean)] = 0.0  # equal labels, but for rounding
                network.target_mean.copy_(torch.from_numpy(mean))
                network.target_scale.copy_(torch.from_numpy(scale))
            starts.append(network)
        stage, calibration = self._learn(starts, data, problem, split, config, "fit")

        chosen = data.graphs.select(split.train)
        self.domain_ = TrainingDomain.measure(
            self._embed(stage.members[0], chosen), chosen, seed=config.seed
        )
        self._embedder = None
        self.left_out_ = data.left_out
        self.n_train_ = data.n_rows
        self.data_hash_ = stage.record["data_hash"]
        self.history_ = [stage.record]
        self.calibration_ = calibration
        self.members_ = stage.members
        self.learning_curve_ = stage.curve.assign(stage=0)
        return self

    def _fine_tune(
        self,
        X: Any,
        y: Any,
        *,
        learning_rate: float | None,
        max_epochs: int,
        groups: Any,
        validation: tuple[Any, Any] | None,
    ) -> Self:
        config = going_on(self._config(), learning_rate=learning_rate, max_epochs=max_epochs)
        data = self._gather(
            X,
            y,
            self.converter_,
            anew=False,
            groups=groups,
            validation=validation,
            ignore_errors=False,
        )
        problem = self._problem(data.labels)
        if (flat := self.members_[0].target_scale == 0).any():
            name = self.target_names_[int(flat.nonzero()[0])]
            raise DataError(
                f"{name!r} was learned from equal labels, which have no scale to go on with; fit "
                "anew, with these crystals and those of before."
            )
        split = self._split(data, problem, config)
        starts = [deepcopy(member) for member in self.members_]
        stage, calibration = self._learn(starts, data, problem, split, config, "fine_tune")

        chosen = data.graphs.select(split.train)
        embedder = self._embedder or self.members_[0]  # which a copy will replace
        domain = self.domain_.extended(self._embed(embedder, chosen), chosen, seed=config.seed)
        last = self.learning_curve_.groupby("member")["epoch"].max()
        curve = stage.curve.assign(stage=len(self.history_))
        curve["epoch"] += curve["member"].map(last) + 1
        history = [*self.history_, stage.record]
        together = "".join(record["data_hash"] for record in history)

        self.domain_, self._embedder = domain, embedder  # from here on nothing fails
        self.learning_curve_ = pd.concat([self.learning_curve_, curve], ignore_index=True)
        self.left_out_ = data.left_out
        self.n_train_ += data.n_rows
        self.data_hash_ = hashlib.sha256(together.encode()).hexdigest()
        self.history_ = history
        self.calibration_ = calibration
        self.members_ = stage.members
        return self

    def _gather(
        self,
        X: Any,
        y: Any,
        converter: CrystalGraphConverter,
        *,
        anew: bool,
        groups: Any,
        validation: tuple[Any, Any] | None,
        ignore_errors: bool,
    ) -> Labelled:
        """The crystals and labels of ``X`` that can be learned from, and those of validation.

        ``anew`` is whether ``y`` says what the labels mean, or they have to mean what they did.
        """
        usable_device(self.accelerator)  # what is absent is found before the training
        crystals = read_crystals(X, converter)
        if not ignore_errors:
            crystals.refuse_errors()
        if validation is not None and groups is not None:
            raise SettingsError("give groups or validation, not both.")
        self._ignore_bad_labels = ignore_errors
        self._label_errors: dict[int, str] = {}
        known, labels = (self._read_labels if anew else self._match_labels)(y, crystals)
        used, left_out = self._choose_rows(crystals, known)
        graphs = crystals.graphs.select(np.flatnonzero(np.isin(crystals.rows, used)))
        labels = labels[used]
        if anew:
            self._settle(labels)
        if validation is not None:
            more_graphs, more_labels = self._read_validation(validation, converter)
            graphs = CrystalGraphs.concatenate([graphs, more_graphs])
            labels = np.concatenate([labels, more_labels])
        codes = None if groups is None else group_codes(groups, crystals, used)
        return Labelled(graphs, labels, len(used), codes, left_out)

    def _split(self, data: Labelled, problem: Problem, config: FineTuneConfig) -> Split:
        """Rows to learn from, and rows held out by all members alike."""
        if data.n_rows < len(data.graphs):
            return Split(np.arange(data.n_rows), np.arange(data.n_rows, len(data.graphs)))
        return Split(
            *split_rows(
                data.n_rows,
                fraction=config.validation_fraction,
                seed=config.seed,
                groups=data.groups,
                strata=self._strata(problem),
            )
        )

    def _learn(
        self,
        networks: list[CrysXPP],
        data: Labelled,
        problem: Problem,
        split: Split,
        config: FineTuneConfig,
        name: StageName,
    ) -> tuple[Stage, Calibration | None]:
        """Train the networks in place, and see how they do on rows that were held out."""
        runs = Runs(
            self.checkpoint_dir, self.accelerator, self.devices, self.pbar, type(self).__name__
        )
        stage = learn(
            networks, data.graphs, problem, split, config, task=self._task, name=name, runs=runs
        )
        calibration = None
        if len(split.held_out):
            rows = problem._replace(targets=problem.targets[split.held_out])
            graphs = data.graphs.select(split.held_out)
            source = f"the rows that {name} held out"
            calibration = self._calibrated(networks, graphs, rows, source)
        return stage, calibration

    def _choose_rows(
        self, crystals: Crystals, known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], pd.DataFrame]:
        """Rows to learn from, and a table of the others with the reason."""
        reasons = {p: f"{type(e).__name__}: {e}" for p, e in crystals.errors.items()}
        for position in np.flatnonzero(~known):
            reasons.setdefault(int(position), self._label_errors.get(int(position), "no label"))
        used = np.array([p for p in range(crystals.n_rows) if p not in reasons], dtype=np.int64)
        order = sorted(reasons)
        table = pd.DataFrame(
            {
                "row": [crystals.label(position) for position in order],
                "reason": [reasons[position] for position in order],
            }
        )
        if len(used) < 2:
            raise DataError(
                f"learning needs at least 2 rows with a crystal and a label, got {len(used)} of "
                f"{crystals.n_rows}."
            )
        if reasons:
            counts = Counter(reason.split(":")[0] for reason in reasons.values())
            summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            warnings.warn(
                f"{len(reasons)} of {crystals.n_rows} rows are left out ({summary}); left_out_ "
                "lists them.",
                stacklevel=5,
            )
        return used, table

    def _read_validation(
        self, validation: tuple[Any, Any], converter: CrystalGraphConverter
    ) -> tuple[CrystalGraphs, NDArray[Any]]:
        """Graphs and labels of those validation rows that have a label."""
        if not isinstance(validation, tuple) or len(validation) != 2:
            raise SettingsError("validation must be a tuple of crystals and labels.")
        crystals = read_crystals(validation[0], converter)
        crystals.refuse_errors()
        try:
            known, labels = self._match_labels(validation[1], crystals)
        except DataError as error:
            raise DataError(f"validation: {error}") from error
        if not known.any():
            raise DataError("no row of validation has a label.")
        return crystals.graphs.select(np.flatnonzero(known)), labels[known]

    # Settings.

    def _config(self) -> FineTuneConfig:
        """The training settings; every option is looked at.

        Raises:
            SettingsError: one has a value that makes no sense.
        """
        names = {field.name for field in fields(FineTuneConfig)}
        params = self.get_params(deep=False)
        config = FineTuneConfig(**{name: params[name] for name in names if name in params})
        for name in ("n_members", "hidden_dim", "n_convs", "readout_dim"):
            if params[name] is not None or name in ("n_members", "readout_dim"):
                whole_number(name, params[name], at_least=1)
        for name in ("element_channel", "selector", "pbar"):
            if not isinstance(params[name], bool | np.bool_):
                raise SettingsError(f"{name} must be True or False, got {params[name]!r}.")
        start, last = config.element_start, config.max_epochs - 1
        if self.element_channel and start * config.max_epochs > last:
            raise SettingsError(
                f"element_start={start!r} with max_epochs={config.max_epochs} leaves no epoch to "
                "the vectors of elements; lower it, or raise max_epochs."
            )
        for name, value in params.items():  # found before the training, not on saving
            try:
                json.dumps(plain_setting(value), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise SettingsError(f"{name} cannot be saved with the model: {error}.") from error
        return config

    def _source(self) -> CrysAE | None:
        """The pretrained autoencoder.

        Raises:
            SettingsError: it does not go with the other options.
            UnknownModelError, ModelFileError: it cannot be loaded.
        """
        if self.pretrained is None:
            return None
        if self.encoder != "cgcnn":
            raise SettingsError(
                f"encoder={self.encoder!r} has no pretrained weights; set pretrained=None."
            )
        model = self.pretrained
        if isinstance(model, str | os.PathLike):
            model = load_autoencoder(model)
        if not isinstance(model, CrysAE):
            raise SettingsError(
                "pretrained must be the name of a CrysAE, the path of a saved one, a CrysAE object "
                f"or None, got a {type(model).__name__}."
            )
        for name in ("hidden_dim", "n_convs"):
            value, theirs = getattr(self, name), getattr(model.encoder, name)
            if value is not None and value != theirs:
                raise SettingsError(
                    f"{name} is {value!r}, but the pretrained model has {theirs}; leave it None, "
                    "or set pretrained=None."
                )
        added = self.element_channel and not model.encoder.element_channel
        if added and self.encoder_rate == 0:
            raise SettingsError(
                "element_channel=True adds vectors that start at zero, and encoder_rate=0 keeps "
                "them there; give the encoder a rate, or set element_channel=False."
            )
        return model

    def _network(self, source: CrysAE | None, *, seed: int, n_targets: int) -> CrysXPP:
        """A network that has learned nothing from labels yet."""
        settings: dict[str, Any] = {
            "element_channel": bool(self.element_channel),
            "selector": bool(self.selector),
            "layers": self.layers,
            "moments": self.moments,
            "pooled": self.pooled,
            "readout_dim": self.readout_dim,
            "n_targets": n_targets,
        }
        if source is not None:
            return CrysXPP.from_autoencoder(source, seed=seed, **settings)
        sizes = {"hidden_dim": self.hidden_dim, "n_convs": self.n_convs}
        given = {name: value for name, value in sizes.items() if value is not None}
        return CrysXPP.random(seed=seed, encoder=self.encoder, **given, **settings)

    # Predicting.

    def _predict_members(
        self, X: Any, *, ignore_errors: bool
    ) -> tuple[NDArray[np.float64], Crystals]:
        """Outputs of each member, ``(n_members, n_rows, n_outputs)``, NaN for bad rows."""
        self._check_fitted()
        crystals = read_crystals(X, self.converter_)
        if not ignore_errors:
            crystals.refuse_errors()
        outputs = np.full((len(self.members_), crystals.n_rows, self.members_[0].n_targets), np.nan)
        outputs[:, crystals.rows] = self._outputs(self.members_, crystals.graphs)
        return outputs, crystals

    def _outputs(self, networks: Sequence[CrysXPP], graphs: CrystalGraphs) -> NDArray[np.float64]:
        """Outputs of each network, shape ``(n_networks, n_graphs, n_outputs)``."""
        return outputs_of(networks, graphs, usable_device(self.accelerator))

    def _embed(self, network: CrysXPP, graphs: CrystalGraphs) -> NDArray[np.float32]:
        """Pooled embeddings, shape ``(n_graphs, n_columns)``."""
        return embeddings_of(network, graphs, usable_device(self.accelerator))

    def domain(self, X: Any, *, ignore_errors: bool = False) -> pd.DataFrame:
        """How near crystals are to those that the model has learned from.

        A crystal is a place in the pooled embedding (Eq. 8) of the first member, along at most 16
        principal components of its columns, each brought to a standard deviation of 1. Distances
        are to at most 1,000 of the training crystals. Errors are to be expected as they were
        in validation where ``in_domain`` is True, which it is for at least about 95 % of the
        training crystals. Elsewhere they are not known: often large, though an unseen element
        beside others like it may do no harm.

        Args:
            X: Crystals, as ``fit`` takes them. Numbers of sites only compare if the cells are
                alike, such as primitive cells in both.
            ignore_errors: Give None, NaN and False for a row that is no crystal, instead of
                raising.

        Returns:
            One row a crystal, with the index of ``X`` if it is of pandas: ``unseen_elements``
            (such as ``"La, U"``: the elements that no training crystal has; empty if none),
            ``n_sites``, ``size_in_range`` (whether there are training crystals of at most and at
            least as many sites), ``distance`` (mean to the five nearest training crystals),
            ``relative_distance`` (the same, as a multiple of what 95 % of the training crystals
            have to others) and ``in_domain`` (no unseen element, a size in range, a relative
            distance of at most 1).

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        self._check_fitted()
        crystals = read_crystals(X, self.converter_)
        if not ignore_errors:
            crystals.refuse_errors()
        embeddings = self._embed(self._embedder or self.members_[0], crystals.graphs)
        return domain_table(self.domain_, embeddings, crystals)

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"this {type(self).__name__} is not fitted yet; call fit, or load a saved model."
            )

    @property
    def converter_(self) -> CrystalGraphConverter:
        """The graph rule of the fitted model."""
        self._check_fitted()
        return self.members_[0].converter

    @property
    def feature_weights_(self) -> pd.DataFrame:
        """Weights of the feature selector, one row a column of the node features.

        Columns ``column``, ``property``, ``bin``, ``unit`` and ``weight``; the mean over the
        members of an ensemble. A weight of exactly zero switches the column off.

        Raises:
            NoSelectorError: the model has no selector.
        """
        from crysxpp_mm.explain import feature_weights

        self._check_fitted()
        return feature_weights(self.members_)

    def explain(self, structure: Any) -> pd.DataFrame:
        """The selector's weights that a crystal switches on, element by property.

        Args:
            structure: A Structure, or its dictionary.

        Returns:
            Index: the elements; columns: the nine properties; NaN where a property of an element
            is not known. ``plot_explanation`` draws it.

        Raises:
            NoSelectorError: the model has no selector.
            StructureTypeError, UnknownElementError, StructureError: it is no crystal.
        """
        from crysxpp_mm.explain import explain

        self._check_fitted()
        return explain(self.members_, structure)

    def contributions(
        self, structure: Any, *, target: Any = None, n_points: int | None = None
    ) -> Contributions:
        """What each property of each site adds to the prediction of one crystal.

        See :func:`crysxpp_mm.explain.contributions`.

        Args:
            structure: A Structure, or its dictionary.
            target: Name of the target, or the class; needed if there are several.
            n_points: Points of the integral; as many as it needs if None.

        Raises:
            SettingsError: there is no such target.
            StructureTypeError, UnknownElementError, StructureError: it is no crystal.
        """
        from crysxpp_mm.explain import contributions

        self._check_fitted()
        output, name, unit = self._output(target)
        return contributions(
            self.members_, structure, output=output, name=name, unit=unit, n_points=n_points
        )

    @abstractmethod
    def _output(self, target: Any) -> tuple[int, str, str]:
        """Number, name and unit of the network's output for a target."""

    # scikit-learn's and monty's interfaces.

    def _html_repr(self) -> str:
        """What a notebook shows: scikit-learn's view of the settings, and what was learned."""
        settings: str = estimator_html_repr(self)
        if not self.__sklearn_is_fitted__():
            return settings
        kept = self.learning_curve_[self.learning_curve_["kept"]]
        losses = kept.get("val_loss", pd.Series(dtype=float)).dropna()
        weights = [
            float((m.selector.weight == 0).sum()) for m in self.members_ if m.selector is not None
        ]
        facts = {
            "targets": ", ".join(self._target_texts()),
            "what it is": getattr(self, "metadata_", {}).get("description", ""),
            "crystals learned from": f"{self.n_train_:,}",
            "networks": len(self.members_),
            "epochs": ", ".join(map(str, self.learning_curve_.groupby("member").size())),
            "validation loss": ", ".join(f"{loss:.4g}" for loss in losses),
            "columns that the selector switched off": f"{np.mean(weights):g}" if weights else "",
        }
        return settings + facts_table(f"fitted {type(self).__name__}", facts)

    def _target_texts(self) -> list[str]:
        """The targets, as they are shown."""
        return list(self.target_names_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "members_") and hasattr(self, "learning_curve_")

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.no_validation = True
        tags.non_deterministic = False
        return tags

    def as_dict(self) -> dict[str, Any]:
        """The whole estimator, fitted or not, as a JSON-ready dictionary.

        ``checkpoint_dir`` stays behind.
        """
        settings = {key: plain_setting(value) for key, value in self.get_params(deep=False).items()}
        settings["checkpoint_dir"] = None
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "state": None,
            "metadata": {},
        }
        if self.__sklearn_is_fitted__():
            document["state"] = {
                "members": [member.as_dict() for member in self.members_],
                "target_names": self.target_names_,
                "columns": [plain_label(label) for label in self._columns],
                "learning_curve": table_to_dict(self.learning_curve_),
                "left_out": table_to_dict(self.left_out_.astype({"row": str})),
                "n_train": self.n_train_,
                "data_hash": self.data_hash_,
                "history": self.history_,
                "calibration": None if self.calibration_ is None else self.calibration_.to_plain(),
                "domain": self.domain_.to_plain(),
                "embedder": None if self._embedder is None else self._embedder.as_dict(),
                **self._state(),
            }
            document["metadata"] = {
                "n_train": self.n_train_,
                "data_hash": self.data_hash_,
                "graph_rule": plain_setting(self.converter_),
                **getattr(self, "metadata_", {}),
            }
        document = json.loads(json.dumps(document, allow_nan=False))
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "@version": __version__,
            **document,
            "sha256": document_hash(document),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild an estimator from ``as_dict``.

        Raises:
            ModelFileError: the document is damaged, or has missing or unknown keys.
        """
        with reading_model():
            return cls._from_dict({k: v for k, v in d.items() if not k.startswith("@")})

    @classmethod
    def _from_dict(cls, content: dict[str, Any]) -> Self:
        check_keys(
            content,
            required={"settings", "state", "metadata", "sha256"},
            optional={"format_version"},
        )
        if document_hash(content) != content["sha256"]:
            raise ModelFileError("the model does not match its sha256; the file is damaged.")
        expected = set(cls._get_param_names())
        settings = {**LATER_SETTINGS, **content["settings"]}
        if set(settings) != expected:
            wrong = sorted(set(settings) ^ expected)
            raise ModelFileError(f"the settings lack or do not know {', '.join(wrong)}.")
        if isinstance(settings["pretrained"], dict):
            settings = {**settings, "pretrained": CrysAE.from_dict(settings["pretrained"])}
        estimator = cls(**settings)
        estimator._config()  # which looks at them
        if content["state"] is not None:
            estimator._take_state(dict(content["state"]))
            estimator.metadata_ = {
                key: value
                for key, value in content["metadata"].items()
                if key not in ("n_train", "data_hash", "graph_rule")
            }
        return estimator

    def _take_state(self, state: dict[str, Any]) -> None:
        try:
            members = [CrysXPP.from_dict(member) for member in state.pop("members")]
            self.target_names_ = list(state.pop("target_names"))
            labels = state.pop("columns", self.target_names_)  # older files have names alone
            self._columns = [tuple(label) if isinstance(label, list) else label for label in labels]
            curve = pd.DataFrame(state.pop("learning_curve"))
            self.left_out_ = pd.DataFrame(state.pop("left_out"))
            self.n_train_ = int(state.pop("n_train"))
            self.data_hash_ = state.pop("data_hash")
            self.history_ = list(state.pop("history"))
            calibration, domain = state.pop("calibration"), state.pop("domain")
            embedder = state.pop("embedder")
            self._set_state(state)
        except KeyError as error:
            raise ModelFileError(
                f"the state of the model lacks {error}; if another version of crysxpp_mm wrote "
                "it, fit it again."
            ) from error
        if not members or {member.n_targets for member in members} != {self._n_outputs()}:
            raise ModelFileError(
                f"the model has no members, or not all have {self._n_outputs()} outputs, as its "
                "targets ask."
            )
        if len(self._columns) != len(self.target_names_) or not set(curve) >= CURVE_COLUMNS:
            raise ModelFileError("the targets or the learning curve lack columns.")
        self.calibration_ = None
        if calibration is not None:
            self.calibration_ = Calibration.from_plain(calibration, n_targets=members[0].n_targets)
        self._embedder = None if embedder is None else CrysXPP.from_dict(embedder)
        width = n_columns(self._embedder or members[0])
        self.domain_ = TrainingDomain.from_plain(domain, n_columns=width)
        self.members_ = members
        self.learning_curve_ = curve
