"""Scikit-learn estimators over crystals: CrysXPP for numbers and for classes."""

from crysxpp_mm.estimators.classifier import CrysXPPClassifier
from crysxpp_mm.estimators.regressor import CrysXPPRegressor

__all__ = ["CrysXPPClassifier", "CrysXPPRegressor"]
