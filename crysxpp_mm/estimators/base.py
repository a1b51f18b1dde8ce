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
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from monty.json import MSONable
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.inputs import Crystals, read_crystals
from crysxpp_mm.graph.arrays import DTYPES, CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.serialization import (
    FORMAT_VERSION,
    SavedDocument,
    check_keys,
    digest,
    weights_to_dict,
)
from crysxpp_mm.training.config import FineTuneConfig
from crysxpp_mm.training.finetune import Task, fine_tune
from crysxpp_mm.version import __version__

if TYPE_CHECKING:
    from crysxpp_mm.explain import Contributions

MIN_VALIDATED = 200
"""With fewer labels none is held out to choose the best epoch.

The one-cycle rate ends near zero, so the last epoch is good. Measured on log10 K with 100 labels:
a mean absolute error of 0.140 when all are learned from, 0.156 when ten choose the epoch.
"""

PRETRAINED_RATE = 0.3
"""Rate of a pretrained encoder, as a multiple of the readout's, unless one is named."""


class Problem(NamedTuple):
    """What the networks have to learn."""

    targets: NDArray[Any]  # (n, n_targets) in the units of training, NaN = unknown; or classes
    n_outputs: int
    class_weights: NDArray[np.float64] | None = None


class CrysXPPEstimator(BaseEstimator, SavedDocument):  # type: ignore[misc]
    """Shared ways of the estimators; see :class:`CrysXPPRegressor` for the arguments."""

    _task: Task

    pretrained: Any
    encoder: str
    hidden_dim: int | None
    n_convs: int | None
    selector: bool
    layers: str
    moments: Sequence[str]
    readout_dim: int
    n_members: int
    target_names: Any
    max_epochs: int
    validation_fraction: float
    seed: int
    checkpoint_dir: Any
    accelerator: str
    devices: int | str
    pbar: bool

    members_: list[CrysXPP]
    target_names_: list[str]
    learning_curve_: pd.DataFrame
    left_out_: pd.DataFrame
    n_train_: int
    data_hash_: str

    # What a subclass says.

    @abstractmethod
    def _read_labels(self, y: Any, crystals: Crystals) -> tuple[NDArray[np.bool_], Any]:
        """Which rows have a label, and the labels in a form that ``_problem`` takes."""

    @abstractmethod
    def _problem(self, labels: Any) -> Problem:
        """What to learn; sets what the labels mean."""

    @abstractmethod
    def _strata(self, problem: Problem) -> NDArray[np.int64] | None:
        """Classes of which one member each has to stay in training."""

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

        Args:
            X: Structures in a list, Series or DataFrame of one column, or their graphs
                (``CrystalGraphs``, a ``GraphStore``).
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
        from crysxpp_mm.datasets import load_table, structure_column

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
        crystals = read_crystals(X, template.converter)
        if not ignore_errors:
            crystals.refuse_errors()
        extra = None
        if validation is not None:
            if groups is not None:
                raise SettingsError("give groups or validation, not both.")
            extra = self._read_validation(validation, template.converter)
        self._ignore_bad_labels = ignore_errors
        self._label_errors: dict[int, str] = {}
        known, labels = self._read_labels(y, crystals)
        used, left_out = self._choose_rows(crystals, known)
        graphs = crystals.graphs.select(np.flatnonzero(np.isin(crystals.rows, used)))
        n_train, given = len(used), None
        labels = labels[used]
        if extra is not None:
            graphs = CrystalGraphs.concatenate([graphs, extra[0]])
            if labels.shape[1:] != extra[1].shape[1:]:
                raise DataError("the labels of validation have other columns than y.")
            labels = np.concatenate([labels, extra[1]])
            given = np.arange(n_train, len(labels))
        problem = self._problem(labels)
        group_codes = None if groups is None else _group_codes(groups, crystals, used)

        self.left_out_ = left_out
        self.n_train_ = n_train
        self.data_hash_ = digest(*(getattr(graphs, name) for name in DTYPES), problem.targets)
        members, curves = [], []
        for member in range(self.n_members):
            seed = config.seed + member
            if given is None:
                train, held_out = split_rows(
                    n_train,
                    fraction=config.validation_fraction,
                    seed=seed,
                    groups=group_codes,
                    strata=self._strata(problem),
                )
            else:
                train, held_out = np.arange(n_train), given
            network, curve = self._train(
                source, graphs, problem, config, seed=seed, train=train, validation=held_out
            )
            members.append(network)
            curves.append(curve.assign(member=member))
        self.members_ = members
        self.learning_curve_ = pd.concat(curves, ignore_index=True)
        return self

    def _train(
        self,
        source: CrysAE | None,
        graphs: CrystalGraphs,
        problem: Problem,
        config: FineTuneConfig,
        *,
        seed: int,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
    ) -> tuple[CrysXPP, pd.DataFrame]:
        """One member of the ensemble."""
        config = FineTuneConfig(**{**config.to_plain(), "seed": seed})
        network = self._network(source, seed=seed, n_targets=problem.n_outputs)
        targets = problem.targets
        if self._task == "regression":
            mean = np.nanmean(targets[train], axis=0)
            scale = np.nanstd(targets[train], axis=0)
            scale[scale <= 1e-12 * np.abs(mean)] = 0.0  # equal labels, but for rounding
            network.target_mean.copy_(torch.from_numpy(mean))
            network.target_scale.copy_(torch.from_numpy(scale))
            targets = (targets - mean) / np.where(scale > 0, scale, 1.0)
        facts = {
            "config": config.to_plain(),
            "n_train": len(train),
            "n_validation": len(validation),
            "pretrained": None if source is None else weights_to_dict(source)["sha256"],
            "version": __version__,
        }
        network.metadata = facts
        run_id, folder = "", None
        if self.checkpoint_dir is not None:
            start = weights_to_dict(network)["sha256"]
            rows = digest(train, validation, targets)
            identity = json.dumps([facts, self.data_hash_, start, rows], sort_keys=True)
            run_id = hashlib.sha256(identity.encode()).hexdigest()
            folder = Path(self.checkpoint_dir) / f"run-{run_id[:12]}"
        curve = fine_tune(
            network,
            graphs,
            targets,
            config,
            train=train,
            validation=validation,
            task=self._task,
            class_weights=problem.class_weights,
            checkpoint_dir=folder,
            run_id=run_id,
            accelerator=self.accelerator,
            devices=self.devices,
            pbar=self.pbar,
            label=type(self).__name__,
        )
        return network, curve

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
                stacklevel=4,
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
        self._ignore_bad_labels = False
        known, labels = self._read_labels(validation[1], crystals)
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
        if params["encoder_rate"] is None:
            params["encoder_rate"] = 1.0 if self.pretrained is None else PRETRAINED_RATE
        config = FineTuneConfig(**{name: params[name] for name in names if name in params})
        count = self.n_members
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise SettingsError(
                f"n_members must be a whole number of at least 1, got {self.n_members!r}."
            )
        for name in ("selector", "pbar"):
            if not isinstance(params[name], bool | np.bool_):
                raise SettingsError(f"{name} must be True or False, got {params[name]!r}.")
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
            model = load_model(model)
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
        return model

    def _network(self, source: CrysAE | None, *, seed: int, n_targets: int) -> CrysXPP:
        """A network that has learned nothing from labels yet."""
        settings: dict[str, Any] = {
            "selector": bool(self.selector),
            "layers": self.layers,
            "moments": self.moments,
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
        n_outputs = self.members_[0].n_targets
        outputs = np.full((len(self.members_), crystals.n_rows, n_outputs), np.nan)
        for member, network in enumerate(self.members_):
            outputs[member, crystals.rows] = network.predict(crystals.graphs).numpy()
        return outputs, crystals

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
            SettingsError: the model has no selector.
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
            SettingsError: the model has no selector.
            StructureTypeError, UnknownElementError, StructureError: it is no crystal.
        """
        from crysxpp_mm.explain import explain

        self._check_fitted()
        return explain(self.members_, structure)

    def contributions(
        self, structure: Any, *, target: Any = None, n_points: int = 32
    ) -> Contributions:
        """What each property of each site adds to the prediction of one crystal.

        See :func:`crysxpp_mm.explain.contributions`.

        Args:
            structure: A Structure, or its dictionary.
            target: Name of the target, or the class; needed if there are several.
            n_points: Points of the integral.

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
        settings = {
            key: _plain_setting(value) for key, value in self.get_params(deep=False).items()
        }
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
                "learning_curve": _table_to_dict(self.learning_curve_),
                "left_out": _table_to_dict(self.left_out_.astype({"row": str})),
                "n_train": self.n_train_,
                "data_hash": self.data_hash_,
                **self._state(),
            }
            document["metadata"] = {
                "n_train": self.n_train_,
                "data_hash": self.data_hash_,
                "graph_rule": _plain_setting(self.converter_),
                **getattr(self, "metadata_", {}),
            }
        document = json.loads(json.dumps(document, allow_nan=False))
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "@version": __version__,
            **document,
            "sha256": _document_hash(document),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild an estimator from ``as_dict``.

        Raises:
            ModelFileError: the document is damaged, or has missing or unknown keys.
        """
        content = {key: value for key, value in d.items() if not key.startswith("@")}
        check_keys(
            content,
            required={"settings", "state", "metadata", "sha256"},
            optional={"format_version"},
        )
        if _document_hash(content) != content["sha256"]:
            raise ModelFileError("the model does not match its sha256; the file is damaged.")
        expected = set(cls._get_param_names())
        settings = content["settings"]
        if set(settings) != expected:
            wrong = sorted(set(settings) ^ expected)
            raise ModelFileError(f"the settings lack or do not know {', '.join(wrong)}.")
        if isinstance(settings["pretrained"], dict):
            settings = {**settings, "pretrained": CrysAE.from_dict(settings["pretrained"])}
        estimator = cls(**settings)
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
            curve = pd.DataFrame(state.pop("learning_curve"))
            self.left_out_ = pd.DataFrame(state.pop("left_out"))
            self.n_train_ = state.pop("n_train")
            self.data_hash_ = state.pop("data_hash")
            self._set_state(state)
        except KeyError as error:
            raise ModelFileError(f"the state of the model lacks {error}.") from error
        if not members or len({member.n_targets for member in members}) != 1:
            raise ModelFileError("the model has no members, or they have different outputs.")
        self.members_ = members
        self.learning_curve_ = curve


def _plain_setting(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, MSONable):
        return {k: v for k, v in value.as_dict().items() if k != "@version"}
    if isinstance(value, Mapping):
        return {str(key): _plain_setting(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_setting(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _table_to_dict(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of a table as lists, None in place of NaN."""
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()]
        for name, column in table.items()
    }


def _document_hash(document: Mapping[str, Any]) -> str:
    """sha256 over everything that a document says, whatever the order of its keys."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _group_codes(groups: Any, crystals: Crystals, used: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for the group of each used row.

    Raises:
        DataError: groups are missing, or not as many as the crystals.
    """
    values = pd.Series(list(groups), dtype=object)
    if len(values) != crystals.n_rows:
        raise DataError(f"X has {crystals.n_rows} crystals and groups has {len(values)} entries.")
    codes, _ = pd.factorize(values)
    if (codes < 0).any():
        first = int(np.flatnonzero(codes < 0)[0])
        raise DataError(f"groups has no entry at {crystals.row_name(first)}.")
    return np.asarray(codes[used], dtype=np.int64)


def split_rows(
    n_rows: int,
    *,
    fraction: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
    strata: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation rows, disjoint, drawn with ``seed``.

    Args:
        n_rows: Rows to split; fewer than ``MIN_VALIDATED`` are all for training.
        fraction: Share of the validation rows.
        seed: Of the draw.
        groups: Group of each row; a group is never divided.
        strata: Class of each row; every class keeps a row in training.

    Raises:
        DataError: all rows are of one group.
    """
    everything = np.arange(n_rows)
    if fraction == 0 or n_rows < MIN_VALIDATED:
        return everything, everything[:0]
    rng = np.random.default_rng([seed, 0])
    wanted = max(1, round(fraction * n_rows))
    if groups is not None:
        names = rng.permutation(np.unique(groups))
        if len(names) < 2:
            raise DataError(
                "all rows are of one group, so none can be held out; set validation_fraction=0."
            )
        sizes = np.array([(groups == name).sum() for name in names])
        count = min(int(np.searchsorted(np.cumsum(sizes), wanted)) + 1, len(names) - 1)
        held_out = np.isin(groups, names[:count])
        return everything[~held_out], everything[held_out]
    order = rng.permutation(n_rows)
    if strata is not None:
        _, first = np.unique(strata[order[::-1]], return_index=True)
        order = order[~np.isin(order, order[::-1][first])]
    held = np.sort(order[:wanted])
    return np.setdiff1d(everything, held), held
