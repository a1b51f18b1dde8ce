"""Featurizers for matminer, and a check that a featurizer keeps matminer's contract."""

from crysxpp_mm.featurizers.check import FeaturizerCheckError, check_featurizer
from crysxpp_mm.featurizers.crysae import CrysAEFeaturizer

__all__ = ["CrysAEFeaturizer", "FeaturizerCheckError", "check_featurizer"]
