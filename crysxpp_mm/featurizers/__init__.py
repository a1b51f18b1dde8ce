"""Featurizers for matminer, and a check that a featurizer keeps matminer's contract."""

from crysxpp_mm.featurizers.check import check_featurizer
from crysxpp_mm.featurizers.check_case import FeaturizerCheckError
from crysxpp_mm.featurizers.crysae import CrysAEFeaturizer
from crysxpp_mm.featurizers.crysxpp import CrysXPPFeaturizer

__all__ = ["CrysAEFeaturizer", "CrysXPPFeaturizer", "FeaturizerCheckError", "check_featurizer"]
