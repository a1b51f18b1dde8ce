"""Folders of models that are shipped: weights, card, golden outputs, and how to train again."""

from crysxpp_mm.release.autoencoder import write_release
from crysxpp_mm.release.predictor import write_predictor_release

__all__ = ["write_predictor_release", "write_release"]
