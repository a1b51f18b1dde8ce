"""A fitted estimator as one JSON document."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from monty.json import MSONable

from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.estimators.domain import TrainingDomain
from crysxpp_mm.estimators.intervals import Calibration
from crysxpp_mm.estimators.options import THIS_MACHINE
from crysxpp_mm.estimators.targets import Targets
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.serialization import SavedDocument, check_keys, reading_model
from crysxpp_mm.version import __version__

FORMAT_VERSION = 2
"""Version of the document of an estimator.

Version 1 had intervals without difficulties, and a domain of at most 1,000 crystals without names.
"""
LATER_SETTINGS = {"element_channel": False, "element_start": 0.0}
"""Settings that the files of earlier versions lack, and what they stand for there."""
CURVE_COLUMNS = {"epoch", "kept", "member", "stage"}
"""Columns of a learning curve, besides losses."""
_COMPUTED = ("n_train", "data_hash", "graph_rule")
"""Metadata that a document repeats from its state."""


def plain_setting(value: Any) -> Any:
    """Turn a setting into JSON-ready data."""
    if isinstance(value, MSONable):
        return {k: v for k, v in value.as_dict().items() if k != "@version"}
    if isinstance(value, Mapping):
        return {str(key): plain_setting(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Index | pd.Series):
        return [plain_setting(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def plain_label(label: Any) -> Any:
    """Turn what pandas calls a column into JSON-ready data; a tuple becomes a list."""
    if isinstance(label, tuple):
        return [plain_label(part) for part in label]
    if isinstance(label, np.generic):
        label = label.item()
    return label if isinstance(label, str | int | float) else str(label)


def table_to_dict(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Turn the columns of a table into lists, with None in place of NaN."""
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()]
        for name, column in table.items()
    }


def document_hash(document: Mapping[str, Any]) -> str:
    """Hash everything that a document says, whatever the order of its keys."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class EstimatorDocument(SavedDocument):
    """The part of an estimator that writes and reads its document."""

    _model_class: ClassVar[type[PropertyModel[Any]]]
    _target_class: ClassVar[type[Targets]]

    if TYPE_CHECKING:  # an estimator has all of these
        members_: list[Any]
        learning_curve_: pd.DataFrame
        left_out_: pd.DataFrame
        n_train_: int
        data_hash_: str
        history_: list[dict[str, Any]]
        calibration_: Calibration | None
        domain_: TrainingDomain
        metadata_: dict[str, Any]
        _targets: Targets
        _embedder: PropertyModel[Any] | None

        get_params: Callable[..., dict[str, Any]]
        _checked_options: Callable[[], Any]
        _set_targets: Callable[[Targets], None]
        __sklearn_is_fitted__: Callable[[], bool]

    def as_dict(self) -> dict[str, Any]:
        """Write the whole estimator, fitted or not, as a JSON-ready dictionary.

        ``checkpoint_dir``, ``accelerator`` and ``devices`` stay behind.
        """
        settings = {key: plain_setting(value) for key, value in self.get_params(deep=False).items()}
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "settings": {**settings, **THIS_MACHINE},
            "state": None,
            "metadata": {},
        }
        if self.__sklearn_is_fitted__():
            document["state"] = self._state()
            document["metadata"] = {
                "n_train": self.n_train_,
                "data_hash": self.data_hash_,
                "graph_rule": plain_setting(self.members_[0].converter),
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

    def _state(self) -> dict[str, Any]:
        """Write what was learned, JSON-ready."""
        return {
            "members": [member.as_dict() for member in self.members_],
            "target_names": self._targets.names,
            "columns": [plain_label(label) for label in self._targets.columns],
            "learning_curve": table_to_dict(self.learning_curve_),
            "left_out": table_to_dict(self.left_out_.astype({"row": str})),
            "n_train": self.n_train_,
            "data_hash": self.data_hash_,
            "history": self.history_,
            "calibration": None if self.calibration_ is None else self.calibration_.to_plain(),
            "domain": self.domain_.to_plain(),
            "embedder": None if self._embedder is None else self._embedder.as_dict(),
            **self._targets.to_plain(),
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
            newest=FORMAT_VERSION,
        )
        if document_hash(content) != content["sha256"]:
            raise ModelFileError("the model does not match its sha256; the file is damaged.")
        expected = set(inspect.signature(cls).parameters)
        later = {name: value for name, value in LATER_SETTINGS.items() if name in expected}
        settings = {**later, **content["settings"]}
        if wrong := sorted(set(settings) ^ expected):
            raise ModelFileError(f"the settings lack or do not know {', '.join(wrong)}.")
        if isinstance(settings.get("pretrained"), dict):
            settings["pretrained"] = CrysAE.from_dict(settings["pretrained"])
        estimator = cls(**{**settings, **THIS_MACHINE})
        estimator._checked_options()
        if content["state"] is not None:
            estimator._take_state(dict(content["state"]))
            metadata = dict(content["metadata"])
            estimator.metadata_ = {k: v for k, v in metadata.items() if k not in _COMPUTED}
        return estimator

    @staticmethod
    def _check_state(
        members: list[Any], targets: Targets, names: list[str], curve: pd.DataFrame
    ) -> None:
        """Raise if members, targets and learning curve do not belong together."""
        if not members or {member.n_targets for member in members} != {targets.n_outputs}:
            raise ModelFileError(
                f"the model has no members, or not all have {targets.n_outputs} outputs, as its "
                "targets ask."
            )
        if len(targets.columns) != len(names) or not set(curve) >= CURVE_COLUMNS:
            raise ModelFileError("the targets or the learning curve lack columns.")

    def _take_state(self, state: dict[str, Any]) -> None:
        try:
            members = [self._model_class.from_dict(member) for member in state.pop("members")]
            names = list(state.pop("target_names"))
            labels = state.pop("columns", names)  # older files have names alone
            curve = pd.DataFrame(state.pop("learning_curve"))
            self.left_out_ = pd.DataFrame(state.pop("left_out"))
            self.n_train_ = int(state.pop("n_train"))
            self.data_hash_ = state.pop("data_hash")
            self.history_ = list(state.pop("history"))
            calibration, domain = state.pop("calibration"), state.pop("domain")
            embedder = state.pop("embedder")
            columns = [tuple(label) if isinstance(label, list) else label for label in labels]
            targets = self._target_class.from_plain(columns, state)
        except KeyError as error:
            raise ModelFileError(
                f"the state of the model lacks {error}; if another version of crysxpp_mm wrote "
                "it, fit it again."
            ) from error
        self._check_state(members, targets, names, curve)
        self.calibration_ = None
        if calibration is not None:
            self.calibration_ = Calibration.from_plain(calibration, n_targets=len(names))
        self._embedder = None if embedder is None else self._model_class.from_dict(embedder)
        width = (self._embedder or members[0]).n_columns
        self.domain_ = TrainingDomain.from_plain(domain, n_columns=width)
        self._set_targets(targets)
        self.members_ = members
        self.learning_curve_ = curve
