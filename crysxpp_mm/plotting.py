"""Pictures, drawn without touching matplotlib's global state or backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#222255",
    "#aaaaaa",
)
"""Eight colours that stay apart for colour-blind readers (Paul Tol's bright scheme, extended)."""


SAME_LABEL = 0.12
"""Equal labels are farther apart than this share of the map's width; points between have none."""


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
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#dddddd")
    figure.suptitle(title, x=0.005, ha="left", fontsize=15, fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=10, color="#555555")
    figure.legend(
        loc="outside lower center", ncols=4, frameon=False, fontsize=10, handletextpad=0.2
    )
    _add_labels(figure, axes, points, labels)
    return figure


def _add_labels(
    figure: Figure, axes: Axes, points: NDArray[np.floating], labels: Sequence[str]
) -> None:
    """Put labels around their points where they cover no other label and few points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout, so that positions in pixels are final
    renderer = canvas.get_renderer()
    pixels = axes.transData.transform(points)
    frame = axes.get_window_extent(renderer)
    taken: list[tuple[float, float, float, float]] = []
    named: dict[str, list[NDArray[np.floating]]] = {}
    apart = SAME_LABEL * (frame.x1 - frame.x0)
    for (x, y), pixel, label in zip(points, pixels, labels, strict=True):
        twins = named.setdefault(label, [])
        if not label or any(np.linalg.norm(pixel - twin) < apart for twin in twins):
            continue
        for dx, dy, across, up in (
            (6, 0, "left", "center"),
            (-6, 0, "right", "center"),
            (0, 6, "center", "bottom"),
            (0, -6, "center", "top"),
            (5, 5, "left", "bottom"),
            (-5, 5, "right", "bottom"),
            (5, -5, "left", "top"),
            (-5, -5, "right", "top"),
        ):
            text: Text = axes.annotate(
                label,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=7.5,
                color="#222222",
                zorder=3,
            )
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
            box = text.get_window_extent(renderer)
            left, bottom, right, top = box.x0, box.y0, box.x1, box.y1
            covers_point = (
                (pixels[:, 0] > left - 4)
                & (pixels[:, 0] < right + 4)
                & (pixels[:, 1] > bottom - 4)
                & (pixels[:, 1] < top + 4)
            ).any()
            covers_label = any(
                left < other[2] and other[0] < right and bottom < other[3] and other[1] < top
                for other in taken
            )
            inside = left > frame.x0 and right < frame.x1 and bottom > frame.y0 and top < frame.y1
            if inside and not covers_point and not covers_label:
                twins.append(pixel)
                taken.append((left - 2, bottom - 2, right + 2, top + 2))
                break
            text.remove()


def draw_label_curves(summary: pd.DataFrame) -> Figure:
    """Draw the error against the number of labels, a panel a property, a line a method.

    Args:
        summary: One row a property, method and number of labels, with the columns ``property``,
            ``unit``, ``method``, ``n_train``, ``mae`` and ``std`` (over the seeds, drawn as bars).

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(summary["property"].unique())
    figure = Figure(figsize=(5.2 * len(names), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    methods = list(summary["method"].unique())
    for axes, name in zip(panels, names, strict=True):
        of_property = summary[summary["property"] == name]
        for color, method in zip(COLORS, methods, strict=False):
            line = of_property[of_property["method"] == method].sort_values("n_train")
            axes.errorbar(
                line["n_train"],
                line["mae"],
                yerr=line["std"],
                color=color,
                marker="o",
                markersize=4,
                capsize=2,
                label=method,
            )
        axes.set(
            title=name,
            xscale="log",
            yscale="log",
            xlabel="labelled crystals",
            ylabel=f"mean absolute error / {of_property['unit'].iloc[0]}",
        )
        # The errors span less than two powers of ten: name more of them than those.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(which="both", color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    columns = 2 if len(names) == 1 else 4
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure
