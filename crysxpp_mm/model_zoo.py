"""The models that come with the package, and those that users saved."""

from __future__ import annotations

import importlib
import importlib.resources
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.errors import ModelFileError, UnknownModelError
from crysxpp_mm.serialization import read_document

DEFAULT_MODEL = "crysae-mp-v1"
MODEL_FILE = "model.json.gz"

_KINDS = {
    "CrysAE": "crysxpp_mm.models.crysae",
    "CrysXPPRegressor": "crysxpp_mm.estimators",
    "CrysXPPClassifier": "crysxpp_mm.estimators",
    "ElemNetRegressor": "crysxpp_mm.estimators",
}
"""The classes that a model file may hold, and where they are."""

PREDICTORS = ("CrysXPPRegressor", "CrysXPPClassifier", "ElemNetRegressor")
"""Those that predict properties."""


def pretrained_folder() -> Path:
    """Where the shipped models are.

    They are installed as ``crysxpp_mm.pretrained``. Python that runs in a checkout's root imports
    the package from there, where the folder lies beside it.

    Raises:
        UnknownModelError: the installation has no such folder.
    """
    try:
        folder = Path(str(importlib.resources.files("crysxpp_mm.pretrained")))
        if any(folder.glob(f"*/{MODEL_FILE}")):
            return folder
    except ModuleNotFoundError:
        pass
    beside = Path(__file__).resolve().parent.parent / "pretrained"
    if any(beside.glob(f"*/{MODEL_FILE}")):
        return beside
    raise UnknownModelError(
        "this installation has no pretrained models; install crysxpp_mm from its wheel or from a "
        "complete checkout."
    )


def _shipped() -> Iterator[Path]:
    yield from sorted(path.parent for path in pretrained_folder().glob(f"*/{MODEL_FILE}"))


def _names() -> list[str]:
    return [folder.name for folder in _shipped()]


def model_path(name: str) -> Path:
    """File of a shipped model.

    Raises:
        UnknownModelError: there is no model of that name; the message lists those there are.
    """
    names = _names()
    if name not in names:
        raise UnknownModelError(
            f"there is no model {name!r}; there are {', '.join(names)}, and a saved model can be "
            "named by its path."
        )
    return pretrained_folder() / name / MODEL_FILE


def is_path(name: str | os.PathLike[str]) -> bool:
    """Whether a model is named by the path of its file, not as a shipped one."""
    text = os.fspath(name)
    return isinstance(name, os.PathLike) or os.sep in text or text.endswith((".json", ".gz"))


def load_model(name: str | os.PathLike[str]) -> Any:
    """A model by the name under which it is shipped, or by the path of its file.

    Args:
        name: One of ``list_models()["name"]``, or a file that ``save`` wrote.

    Returns:
        A fresh ``CrysAE`` on the CPU, in evaluation mode, or the fitted ``CrysXPPRegressor`` or
        ``CrysXPPClassifier`` that was saved.

    Raises:
        UnknownModelError: there is neither.
        ModelFileError: the file is damaged, foreign or of a later format.
    """
    if is_path(name) or (Path(name).is_file() and os.fspath(name) not in _names()):
        path = Path(name)
    else:
        path = model_path(os.fspath(name))
    if not path.is_file():
        raise UnknownModelError(f"there is no model file {path}.")
    document = read_document(path)
    kind = document.get("@class")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelFileError(f"{path} holds a {kind!r}, which is no model of this package.")
    try:
        return _model_class(kind).from_dict(document)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _model_class(kind: str) -> Any:
    """The class of that name, imported now: the estimators are built upon this module."""
    return getattr(importlib.import_module(_KINDS[kind]), kind)


def is_predictor(model: object) -> bool:
    """Whether ``model`` is a ``CrysXPPRegressor`` or a ``CrysXPPClassifier``."""
    return isinstance(model, tuple(_model_class(kind) for kind in PREDICTORS))


def list_models() -> pd.DataFrame:
    """The shipped models, one a row.

    Returns:
        Columns ``name``; ``kind``, the class; ``description``; ``target`` and ``unit`` of a
        predictor, those of several targets with commas between; ``n_train``, crystals learned
        from, those that chose the best epoch included; ``test_mae``, mean absolute error on
        crystals that were held out, in that unit (a text if there are several targets);
        ``test_accuracy``, the share of them whose class is right; ``hidden_dim`` and ``n_convs``
        of the encoder; ``path``. What is not known or makes no sense for a model is None, NaN or
        empty.
    """
    return pd.DataFrame([_facts(folder) for folder in _shipped()])


def shipped_predictors() -> list[str]:
    """Names of the shipped models that predict properties, sorted.

    Raises:
        UnknownModelError: the installation has none.
    """
    rows = [_facts(folder) for folder in _shipped()]
    names = [row["name"] for row in rows if row["kind"] in PREDICTORS]
    if not names:
        raise UnknownModelError(
            "this installation ships no model that predicts a property; name a saved "
            "CrysXPPRegressor or CrysXPPClassifier by its path, or hand in a fitted one."
        )
    return names


def _facts(folder: Path) -> dict[str, Any]:
    """The row of a shipped model."""
    path = folder / MODEL_FILE
    status = path.stat()
    return dict(_read_facts(path, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _read_facts(path: Path, *stamp: int) -> dict[str, Any]:
    """What the file says of its model; ``stamp`` tells a new file from an old one."""
    document = read_document(path)
    metadata = document.get("metadata") or {}
    state = document.get("state") or {}
    members = state.get("members") or [document]  # an autoencoder has its settings itself
    settings = members[0].get("settings") or {}
    targets = state.get("target_names") or []
    errors = metadata.get("test_mae") or {}
    maes = [errors.get(target) for target in targets]
    return {
        "name": path.parent.name,
        "kind": document.get("@class"),
        "description": metadata.get("description", ""),
        "target": ", ".join(targets),
        "unit": _join(state.get("units") or []),
        "n_train": metadata.get("n_train"),
        "test_mae": maes[0] if len(maes) == 1 else _join(maes) or None,
        "test_accuracy": next(iter((metadata.get("test_accuracy") or {}).values()), None),
        "hidden_dim": settings.get("hidden_dim"),
        "n_convs": settings.get("n_convs"),
        "path": str(path),
    }


def _join(values: Sequence[Any]) -> str:
    """Values side by side, a dash for one that is absent; empty if all are."""
    return ", ".join(str(value or "-") for value in values) if any(values) else ""
