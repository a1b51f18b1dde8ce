"""Pictures: the map, parity, learning curves, explanations; axes come in and go out."""

from crysxpp_mm.plots.canvas import COLORS
from crysxpp_mm.plots.curves import draw_label_curves, plot_curves, plot_learning_curve
from crysxpp_mm.plots.explanation import (
    plot_contributions,
    plot_explanation,
    plot_sparsity_path,
)
from crysxpp_mm.plots.map import draw_map, map_to_plane
from crysxpp_mm.plots.parity import plot_parity

__all__ = [
    "COLORS",
    "draw_label_curves",
    "draw_map",
    "map_to_plane",
    "plot_contributions",
    "plot_curves",
    "plot_explanation",
    "plot_learning_curve",
    "plot_parity",
    "plot_sparsity_path",
]
