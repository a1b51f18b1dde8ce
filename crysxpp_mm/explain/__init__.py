"""Reasons of a prediction: weights of the selector, contributions."""

from crysxpp_mm.deprecation import moved_names
from crysxpp_mm.explain.gradients import ELEMENT, Contributions, contributions
from crysxpp_mm.explain.weights import (
    SparsityPath,
    explain,
    feature_weights,
    selector_weights,
    sparsity_path,
)

__all__ = [
    "ELEMENT",
    "Contributions",
    "SparsityPath",
    "contributions",
    "explain",
    "feature_weights",
    "selector_weights",
    "sparsity_path",
]

_PLOTS = "plot_contributions plot_explanation plot_learning_curve plot_parity plot_sparsity_path"
__getattr__ = moved_names(__name__, dict.fromkeys(_PLOTS.split(), "crysxpp_mm.plots"))
