"""The models that come with the package: names, files, and a line on each."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.errors import ModelFileError, SettingsError, UnknownModelError
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.serialization import read_document

DEFAULT_MODEL = "crysae-mp-v1"
MODEL_FILE = "model.json.gz"


def pretrained_folder() -> Path:
    """Folder of the shipped models.

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
        UnknownModelError: no shipped model has that name; the message lists the names.

    Example:
        >>> model_path("crysae-mp-v1").name
        'model.json.gz'
    """
    names = _names()
    if name not in names:
        raise UnknownModelError(
            f"there is no model {name!r}; there are {', '.join(names)}, and a saved model can be "
            "named by its path."
        )
    return pretrained_folder() / name / MODEL_FILE


def is_path(name: str | os.PathLike[str]) -> bool:
    """Tell whether a model is named by the path of its file, not as a shipped one.

    Example:
        >>> is_path("crysae-mp-v1"), is_path("runs/mine.json.gz")
        (False, True)
    """
    text = os.fspath(name)
    return isinstance(name, os.PathLike) or os.sep in text or text.endswith((".json", ".gz"))


def find_model(name: str | os.PathLike[str]) -> Path:
    """File of a model that is named as shipped or by its path.

    Args:
        name: One of ``list_models()["name"]``, or the path of a file.

    Raises:
        UnknownModelError: no shipped model has that name, and no such file exists.

    Example:
        >>> find_model("crysxpp-metal").parent.name
        'crysxpp-metal'
    """
    if is_path(name) or (Path(name).is_file() and os.fspath(name) not in _names()):
        path = Path(name)
    else:
        path = model_path(os.fspath(name))
    if not path.is_file():
        raise UnknownModelError(f"there is no model file {path}.")
    return path


def load_autoencoder(name: str | os.PathLike[str]) -> CrysAE:
    """Load a CrysAE by the name under which it is shipped, or by the path of its file.

    Args:
        name: A shipped ``CrysAE``, or a file that its ``save`` wrote.

    Returns:
        A fresh model on the CPU, in evaluation mode.

    Raises:
        UnknownModelError: no shipped model has that name, and no such file exists.
        SettingsError: the model is of another class.
        ModelFileError: the file is damaged, foreign or of a later format.

    Example:
        >>> load_autoencoder("crysae-mp-v1").encoder.hidden_dim
        64
    """
    path = find_model(name)
    document = read_document(path)
    kind = document.get("@class")
    if kind != CrysAE.__name__:
        raise SettingsError(
            f"{os.fspath(name)}: an encoder comes from a CrysAE, got a {kind}; list_models() has "
            "those that are shipped."
        )
    model: CrysAE = build_model(CrysAE, document, path)
    return model


def build_model(kind: Any, document: Mapping[str, Any], path: Path) -> Any:
    """Make a model of a class from the document that a file holds.

    Raises:
        ModelFileError: the document is damaged or of a later format; the file is named.
    """
    try:
        return kind.from_dict(document)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def list_models() -> pd.DataFrame:
    """List the shipped models in a table, one per row.

    Returns:
        Columns ``name``; ``kind``, the class; ``description``; ``target`` and ``unit`` of a
        predictor, those of several targets with commas between; ``n_train``, crystals learned
        from, those that chose the best epoch included; ``test_mae``, mean absolute error on
        crystals that were held out, in that unit (a text if there are several targets);
        ``test_accuracy``, the share of them whose class is right; ``hidden_dim`` and ``n_convs``
        of the encoder; ``path``. What is not known or makes no sense for a model is None, NaN or
        empty.

    Example:
        >>> list_models().set_index("name").loc["crysxpp-band-gap", "unit"]
        'eV'
    """
    return pd.DataFrame([_facts(folder) for folder in _shipped()])


def shipped_predictors() -> list[str]:
    """Names of the shipped models that predict properties, sorted.

    Raises:
        UnknownModelError: the installation ships no predictor.

    Example:
        >>> "crysxpp-band-gap" in shipped_predictors()
        True
    """
    rows = [_facts(folder) for folder in _shipped()]
    names = [row["name"] for row in rows if row["target"]]
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
    """Read what the file says of its model; ``stamp`` tells a new file from an old one."""
    document = read_document(path)
    metadata, state = _part(document, "metadata"), _part(document, "state")
    network = (state.get("members") or [document])[0]  # an autoencoder has its settings itself
    settings = _part(network, "settings")
    targets = state.get("target_names") or []
    maes = [_part(metadata, "test_mae").get(target) for target in targets]
    return {
        "name": path.parent.name,
        "kind": document.get("@class"),
        "description": metadata.get("description", ""),
        "target": ", ".join(targets),
        "unit": _join(state.get("units") or []),
        "n_train": metadata.get("n_train"),
        "test_mae": maes[0] if len(maes) == 1 else _join(maes) or None,
        "test_accuracy": next(iter(_part(metadata, "test_accuracy").values()), None),
        "hidden_dim": settings.get("hidden_dim"),
        "n_convs": settings.get("n_convs"),
        "path": str(path),
    }


def _part(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping of a document, empty if it is absent or null."""
    return document.get(key) or {}


def _join(values: Sequence[Any]) -> str:
    """Values side by side, a dash for one that is absent; empty if all are."""
    return ", ".join(str(value or "-") for value in values) if any(values) else ""
