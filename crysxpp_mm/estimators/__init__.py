"""Scikit-learn estimators over crystals: one class for each network and kind of label."""

from crysxpp_mm.estimators.classifier import CrysXPPClassifier
from crysxpp_mm.estimators.elemnet import ElemNetRegressor
from crysxpp_mm.estimators.regressor import CrysXPPRegressor

__all__ = ["CrysXPPClassifier", "CrysXPPRegressor", "ElemNetRegressor"]
