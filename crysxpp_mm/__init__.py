"""Learned features of crystals for matminer and pymatgen: CrysAE and CrysXPP.

``CrysAEFeaturizer().featurize_dataframe(df, "structure")`` adds the columns. The names below are
imported when they are first used, so importing the package is quick and has no effects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crysxpp_mm.version import __version__

if TYPE_CHECKING:
    from crysxpp_mm.data.dgl_dataset import CrystalGraphDataset
    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor, ElemNetRegressor
    from crysxpp_mm.featurizers import CrysAEFeaturizer, CrysXPPFeaturizer, check_featurizer
    from crysxpp_mm.graph.converter import CrystalGraphConverter
    from crysxpp_mm.model_zoo import load_model
    from crysxpp_mm.models.crysae import CrysAE
    from crysxpp_mm.models.crysxpp import CrysXPP
    from crysxpp_mm.shipped import list_models

__all__ = [
    "CrysAE",
    "CrysAEFeaturizer",
    "CrysXPP",
    "CrysXPPClassifier",
    "CrysXPPFeaturizer",
    "CrysXPPRegressor",
    "CrystalGraphConverter",
    "CrystalGraphDataset",
    "ElemNetRegressor",
    "__version__",
    "check_featurizer",
    "list_models",
    "load_model",
]

_HOMES = {
    "CrysAE": "crysxpp_mm.models.crysae",
    "CrysAEFeaturizer": "crysxpp_mm.featurizers",
    "CrysXPP": "crysxpp_mm.models.crysxpp",
    "CrysXPPClassifier": "crysxpp_mm.estimators",
    "CrysXPPFeaturizer": "crysxpp_mm.featurizers",
    "CrysXPPRegressor": "crysxpp_mm.estimators",
    "CrystalGraphConverter": "crysxpp_mm.graph.converter",
    "CrystalGraphDataset": "crysxpp_mm.data.dgl_dataset",
    "ElemNetRegressor": "crysxpp_mm.estimators",
    "check_featurizer": "crysxpp_mm.featurizers",
    "list_models": "crysxpp_mm.shipped",
    "load_model": "crysxpp_mm.model_zoo",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
