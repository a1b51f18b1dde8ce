"""Explanations of predictions: weights of a crystal, contributions, sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crysxpp_mm.elements import PROPERTIES, element_properties
from crysxpp_mm.errors import DataError
from crysxpp_mm.plots.canvas import COLORS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crysxpp_mm.explain import Contributions, SparsityPath


def plot_explanation(explanation: pd.DataFrame, *, axes: Axes | None = None) -> Axes:
    """Draw the weights that a crystal switches on as bars, by property, one colour per element.

    The bin that each element falls into is printed at its bar (as in Figs. 4-6 of the paper), in
    grey where the weight is exactly zero; a property that an element has no value of has no bar.

    Args:
        explanation: What ``explain`` gave.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: it is no such table.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> salt = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> from crysxpp_mm import load_model
        >>> axes = plot_explanation(load_model("crysxpp-bulk-modulus").explain(salt))
    """
    known = [item.name for item in PROPERTIES]
    if not isinstance(explanation, pd.DataFrame) or list(explanation.columns) != known:
        raise DataError("plot_explanation draws the table that explain(structure) gives.")
    elements = [str(symbol) for symbol in explanation.index]
    axes = new_axes(axes, width=max(10.5, 1.5 + 0.24 * len(known) * len(elements)), height=4.6)
    for row, symbol in enumerate(elements):
        _draw_element(axes, symbol, explanation.iloc[row], row, len(elements))
    places = np.arange(len(known))
    axes.set_xticks(places, [_property_label(item) for item in PROPERTIES], fontsize=9)
    axes.tick_params(axis="x", length=0)
    for place in places[1:] - 0.5:
        axes.axvline(place, color="#e4e4e4", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(known) - 0.5)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_ylabel("weight of the selector (no unit)")
    drawn = np.nan_to_num(explanation.to_numpy(dtype=float))
    low, high = min(drawn.min(), 0.0), max(drawn.max(), 0.0)
    span = high - low or 1.0
    axes.set_ylim(low - 0.04 * span if low < 0 else 0.0, high + 0.28 * span)  # bins stand above
    axes.set_title(
        "at each bar: the bin of the element's value; grey: switched off",
        loc="left",
        fontsize=9,
        color="#555555",
    )
    axes.legend(
        frameon=False,
        ncols=min(len(elements), 8),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        fontsize=10,
    )
    return axes


def _draw_element(axes: Axes, symbol: str, weights: pd.Series, row: int, n_elements: int) -> None:
    """Draw the bars of one element, each with its bin."""
    width = 0.84 / max(n_elements, 2)
    places = np.arange(len(weights)) + (row - (n_elements - 1) / 2) * width
    color = COLORS[row % len(COLORS)]
    axes.bar(places, weights.fillna(0).to_numpy(), width=0.9 * width, color=color, label=symbol)
    bins = element_properties(symbol)
    for place, (name, value) in zip(places, weights.items(), strict=True):
        if np.isfinite(value):
            axes.annotate(
                bins[str(name)] or "",
                (place, max(value, 0.0)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                fontsize=8,
                color="#222222" if value else "#909090",
            )


def _property_label(item: Any) -> str:
    """Name and unit of a property in up to three short lines."""
    words = item.name.replace("first ionization ", "first ionization\n")
    if "\n" not in words and len(words) > 12:
        words = words.replace(" ", "\n")
    unit = item.unit.replace("cm3", "cm\u00b3")
    return f"{words}\n({unit})" if unit else words


def plot_contributions(found: Contributions, *, axes: Axes | None = None) -> Axes:
    """Draw the way from the baseline to the prediction, one step per property, the largest first.

    The steps end at the prediction: nothing of it is left unexplained.

    Args:
        found: What ``contributions`` gave.
        axes: Where to draw; axes of a new figure if None.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> salt = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> from crysxpp_mm import load_model
        >>> axes = plot_contributions(load_model("crysxpp-bulk-modulus").contributions(salt))
    """
    steps = found.by_property()
    steps = steps.loc[steps.abs().sort_values(ascending=False, kind="stable").index]
    starts = found.baseline + np.concatenate([[0.0], steps.cumsum().to_numpy()[:-1]])
    axes = new_axes(axes, width=7.0, height=1.6 + 0.32 * len(steps))
    places = np.arange(len(steps))
    values = steps.to_numpy()
    colors = [COLORS[0] if value >= 0 else COLORS[1] for value in values]
    axes.barh(places, values, left=starts, color=colors, height=0.7, zorder=2)
    for place, start, value in zip(places, starts, values, strict=True):
        axes.annotate(
            f"{value:+.3g}" if value else "0",
            (max(start, start + value), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
    ends = np.concatenate([starts, [found.prediction]])
    for step, end in enumerate(ends[1:-1]):
        axes.plot([end, end], [step, step + 1], color="#888888", linewidth=0.8, zorder=1)
    for value, name, style in (
        (found.baseline, "baseline", ":"),
        (found.prediction, "prediction", "--"),
    ):
        axes.axvline(
            value, color="#333333", linewidth=1, linestyle=style, label=f"{name} {value:.4g}"
        )
    axes.set_yticks(places, [str(name) for name in steps.index])
    axes.invert_yaxis()
    low, high = ends.min(), ends.max()
    margin = (high - low) or 1.0
    axes.set_xlim(low - 0.05 * margin, high + 0.18 * margin)
    axes.set_xlabel(f"{found.name} ({found.unit})" if found.unit else found.name)
    axes.legend(
        frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, borderpad=0
    )
    return axes


def plot_sparsity_path(path: SparsityPath, *, axes: Axes | None = None) -> Axes:
    """Draw the selector's weights against lambda_1, one colour per property, one line per column.

    The axis on top says how many of the 92 columns are off.

    Args:
        path: What ``sparsity_path`` gave.
        axes: Where to draw; axes of a new figure if None.
    """
    axes = new_axes(axes, width=8.0, height=4.4)
    values = path.weights.index.to_numpy(dtype=float)
    for color, item in zip((*COLORS, "#000000"), PROPERTIES, strict=True):
        block = path.weights.iloc[:, item.start : item.stop].to_numpy()
        for number, line in enumerate(block.T):
            axes.plot(
                values,
                line,
                color=color,
                linewidth=1.2,
                alpha=0.85,
                label=None if number else item.name,
            )
    positive = values[values > 0]
    axes.set_xscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes.set(xlabel=r"sparsity $\lambda_1$ (no unit)", ylabel="weight of the selector (no unit)")
    axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    axes.set_xticks([], minor=True)
    for value, count in zip(values, path.results["n_zero"], strict=True):
        axes.annotate(
            str(count),
            (value, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_title(f"columns that are off, of {path.weights.shape[1]}", fontsize=9, pad=18)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return axes
