"""Models by name or path, whatever their class."""

from __future__ import annotations

import os
from typing import Any

from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.serialization import read_document
from crysxpp_mm.shipped import (
    DEFAULT_MODEL,
    MODEL_FILE,
    build_model,
    find_model,
    list_models,
    model_path,
    pretrained_folder,
    shipped_predictors,
)

__all__ = [
    "DEFAULT_MODEL",
    "MODEL_FILE",
    "PREDICTORS",
    "is_predictor",
    "list_models",
    "load_model",
    "model_path",
    "pretrained_folder",
    "shipped_predictors",
]

PREDICTORS = ("CrysXPPRegressor", "CrysXPPClassifier", "ElemNetRegressor")
"""Classes of ``crysxpp_mm.estimators`` that a model file may hold; add a new one here."""


def _predictor_classes() -> dict[str, Any]:
    """Classes of the predictors by name; Lightning, which they import, takes seconds."""
    from crysxpp_mm import estimators

    return {name: getattr(estimators, name) for name in PREDICTORS}


def load_model(name: str | os.PathLike[str]) -> Any:
    """Load a model by the name under which it is shipped, or by the path of its file.

    Args:
        name: One of ``list_models()["name"]``, or a file that ``save`` wrote.

    Returns:
        A fresh ``CrysAE`` on the CPU, in evaluation mode, or the fitted estimator that was
        saved, such as a ``CrysXPPRegressor``.

    Raises:
        UnknownModelError: no shipped model has that name, and no such file exists.
        ModelFileError: the file is damaged, foreign or of a later format.

    Example:
        >>> load_model("crysxpp-bulk-modulus").target_names_
        ['K_VRH']
    """
    path = find_model(name)
    document = read_document(path)
    kind = document.get("@class")
    known: dict[Any, Any] = {CrysAE.__name__: CrysAE}
    if isinstance(kind, str) and kind in PREDICTORS:
        known = _predictor_classes()
    if not isinstance(kind, str) or kind not in known:
        raise ModelFileError(f"{path} holds a {kind!r}, which is not a model of this package.")
    return build_model(known[kind], document, path)


def is_predictor(model: object) -> bool:
    """Tell whether ``model`` predicts properties, as ``CrysXPPRegressor`` does.

    Example:
        >>> is_predictor(load_model("crysxpp-metal"))
        True
        >>> is_predictor(load_model("crysae-mp-v1"))
        False
    """
    return isinstance(model, tuple(_predictor_classes().values()))
