"""A map of crystals in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError
from crysxpp_mm.plots.canvas import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

SAME_LABEL = 0.12
"""Equal labels are farther apart than this share of the map's width; points between have none."""

OFFSETS = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 5, "left", "bottom"),
    (-5, 5, "right", "bottom"),
    (5, -5, "left", "top"),
    (-5, -5, "right", "top"),
)
"""Places of a label that are tried: points to the right, points up, and how the text is aligned."""


def map_to_plane(
    columns: NDArray[np.floating], *, seed: int = 0, perplexity: float = 20.0
) -> NDArray[np.float64]:
    """Place rows in a plane so that neighbours stay neighbours.

    Standardised columns, 30 principal components, then t-SNE started from the first two; turned so
    that the map is wider than high.

    Args:
        columns: Shape ``(n_rows, n_columns)``.
        seed: Seed of the map.
        perplexity: About how many neighbours of a row count; reduced for few rows.

    Returns:
        Shape ``(n_rows, 2)``.

    Raises:
        DataError: There are fewer than three rows, or a number is not finite.

    Example:
        >>> map_to_plane(np.eye(4)).shape
        (4, 2)
    """
    if len(columns) < 3:
        raise DataError(f"a map needs at least three rows, got {len(columns)}.")
    matrix = np.asarray(columns, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise DataError("a map needs finite numbers; drop the rows with NaN first.")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(matrix)
    reduced = PCA(min(30, *scaled.shape), random_state=seed).fit_transform(scaled)
    points = np.asarray(
        TSNE(
            n_components=2,
            perplexity=min(perplexity, (len(columns) - 1) / 3),
            init="pca" if reduced.shape[1] >= 2 else "random",
            random_state=seed,
            n_jobs=1,
        ).fit_transform(reduced),
        dtype=np.float64,
    )
    return np.asarray(PCA(2).fit_transform(points), dtype=np.float64)  # its long side lies flat


def draw_map(
    points: NDArray[np.floating],
    *,
    classes: Sequence[str],
    labels: Sequence[str],
    title: str,
    subtitle: str = "",
    class_order: Sequence[str] | None = None,
) -> Figure:
    """Draw points in a plane, coloured by class, with as many labels as fit.

    Args:
        points: Shape ``(n_points, 2)``.
        classes: Class of each point; at most eight different ones.
        labels: Text beside each point, in the order of ``points``; an empty one is left out.
            Earlier points get their label first; one that would cover another is left out.
        title: Title of the picture.
        subtitle: A line below the title.
        class_order: Order of the classes in the legend; sorted without it.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        DataError: There are more than eight classes.

    Example:
        >>> points = np.array([[0.0, 0.0], [1.0, 1.0]])
        >>> figure = draw_map(points, classes=["a", "b"], labels=["NaCl", "Si"], title="Two")
        >>> len(figure.axes)
        1
    """
    order = list(class_order or sorted(set(classes)))
    if len(order) > len(COLORS):
        raise DataError(f"a map has at most {len(COLORS)} classes, got {len(order)}.")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    names = np.array(classes, dtype=object)
    for color, name in zip(COLORS, order, strict=False):
        chosen = points[names == name]
        if len(chosen):
            axes.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=46,
                color=color,
                alpha=0.85,
                edgecolors="white",
                linewidths=0.7,
                label=f"{name} ({len(chosen)})",
                zorder=2,
            )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_color("#dddddd")
    figure.suptitle(title, x=0.005, ha="left", fontsize=15, fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=10, color="#555555")
    figure.legend(
        loc="outside lower center", ncols=4, frameon=False, fontsize=10, handletextpad=0.2
    )
    texts = _Labels(axes, points)
    for position, (_, label) in enumerate(zip(points, labels, strict=True)):
        if label:
            texts.add(position, label)
    return figure


class _Labels:
    """Labels beside their points that cover no other label and few points."""

    def __init__(self, axes: Axes, points: NDArray[np.floating]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(axes.get_figure(root=True))
        canvas.draw()  # settles the layout, so that positions in pixels are final
        self.axes = axes
        self.points = points
        self.renderer = canvas.get_renderer()
        self.pixels = axes.transData.transform(points)
        self.frame = axes.get_window_extent(self.renderer)
        self.taken: list[Bbox] = []
        self.named: dict[str, list[NDArray[np.floating]]] = {}

    def add(self, position: int, label: str) -> None:
        """Put a label beside a point, if there is room and an equal label is not near."""
        from matplotlib.patheffects import withStroke

        pixel, twins = self.pixels[position], self.named.setdefault(label, [])
        apart = SAME_LABEL * self.frame.width
        if any(np.linalg.norm(pixel - twin) < apart for twin in twins):
            return
        for dx, dy, across, up in OFFSETS:
            text = self.axes.annotate(
                label,
                self.points[position],
                xytext=(dx, dy),
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=7.5,
                color="#222222",
                zorder=3,
            )
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
            box = text.get_window_extent(self.renderer)
            if self._is_free(box):
                twins.append(pixel)
                self.taken.append(box.padded(2))
                return
            text.remove()

    def _is_free(self, box: Bbox) -> bool:
        inside = self.frame.count_contains(box.get_points()) == 2
        on_points = box.padded(4).count_contains(self.pixels)
        return inside and not on_points and not any(box.overlaps(other) for other in self.taken)
