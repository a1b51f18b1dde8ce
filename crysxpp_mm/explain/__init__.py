"""Why a prediction is what it is: weights of the selector, contributions, plots."""

from crysxpp_mm.explain.gradients import ELEMENT, Contributions, contributions
from crysxpp_mm.explain.plots import (
    plot_contributions,
    plot_explanation,
    plot_learning_curve,
    plot_parity,
    plot_sparsity_path,
)
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
    "plot_contributions",
    "plot_explanation",
    "plot_learning_curve",
    "plot_parity",
    "plot_sparsity_path",
    "selector_weights",
    "sparsity_path",
]
