"""The models that come with the package, and those that users saved."""

from __future__ import annotations

import importlib
import importlib.resources
import os
from collections.abc import Iterator
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
}
"""The classes that a model file may hold, and where they are."""


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


def model_path(name: str) -> Path:
    """File of a shipped model.

    Raises:
        UnknownModelError: there is no model of that name; the message lists those there are.
    """
    names = [folder.name for folder in _shipped()]
    if name not in names:
        raise UnknownModelError(
            f"there is no model {name!r}; there are {', '.join(names)}, and a saved model can be "
            "named by its path."
        )
    return pretrained_folder() / name / MODEL_FILE


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
    text = os.fspath(name)
    is_path = isinstance(name, os.PathLike) or os.sep in text or text.endswith((".json", ".gz"))
    path = Path(text) if is_path else model_path(text)
    if not path.is_file():
        raise UnknownModelError(f"there is no model file {path}.")
    document = read_document(path)
    kind = document.get("@class")
    if kind not in _KINDS:
        raise ModelFileError(f"{path} holds a {kind!r}, which is no model of this package.")
    # By name: the estimators are built upon this module.
    model_class = getattr(importlib.import_module(_KINDS[kind]), kind)
    try:
        return model_class.from_dict(document)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def list_models() -> pd.DataFrame:
    """The shipped models, one a row.

    Returns:
        Columns ``name``, ``kind`` (class), ``description``, ``n_train`` (crystals), ``hidden_dim``,
        ``n_convs``, ``path``.
    """
    rows = []
    for folder in _shipped():
        document = read_document(folder / MODEL_FILE)
        metadata = document.get("metadata", {})
        settings = document.get("settings", {})
        rows.append(
            {
                "name": folder.name,
                "kind": document.get("@class"),
                "description": metadata.get("description", ""),
                "n_train": metadata.get("n_train"),
                "hidden_dim": settings.get("hidden_dim"),
                "n_convs": settings.get("n_convs"),
                "path": str(folder / MODEL_FILE),
            }
        )
    return pd.DataFrame(rows)
