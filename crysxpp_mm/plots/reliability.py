"""Intervals that hold the truth as often as they say, and errors that grow with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crysxpp_mm.plots.canvas import COLORS, new_axes, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_GROUPS = 8
"""Points of a line of errors, each the mean of as many crystals."""


def plot_reliability(levels: Mapping[str, Any], *, axes: Axes | None = None) -> Axes:
    """Draw how often intervals hold the truth, against how often they should.

    Args:
        levels: For each name the confidence of every crystal above which its interval holds the
            truth.
        axes: Where to draw; axes of a new figure if None.

    Example:
        >>> plot_reliability({"K": [0.1, 0.4, 0.8]}).get_xlabel()
        'confidence'
    """
    axes = new_axes(axes, width=4.6, height=4.2)
    confidence = np.linspace(0, 1, 51)
    axes.plot([0, 1], [0, 1], color="#666666", linewidth=0.8)
    for color, (name, own) in zip(COLORS, levels.items(), strict=False):
        held = (np.asarray(own)[:, None] < confidence).mean(axis=0)
        axes.plot(confidence, held, color=color, label=name)
    axes.set(xlabel="confidence", ylabel="share of crystals inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return axes


def plot_error_by_width(crystals: Mapping[str, pd.DataFrame], *, axes: Axes | None = None) -> Axes:
    """Draw mean errors against the width of the interval, both over their means.

    Args:
        crystals: For each name a table with the columns ``error`` and ``width``.
        axes: Where to draw; axes of a new figure if None.

    Example:
        >>> table = pd.DataFrame({"error": range(1, 33), "width": range(1, 33)})
        >>> plot_error_by_width({"K": table}).get_xscale()
        'log'
    """
    axes = new_axes(axes, width=4.6, height=4.2)
    ends = []
    for color, (name, table) in zip(COLORS, crystals.items(), strict=False):
        over_mean = table[["width", "error"]] / table[["width", "error"]].mean()
        group = over_mean["width"].rank(pct=True, method="first").mul(N_GROUPS).sub(1e-9) // 1
        means = over_mean.groupby(group).mean()
        axes.plot(means["width"], means["error"], "o-", color=color, label=name, markersize=4)
        ends += [means["width"].min(), means["width"].max()]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#666666", linewidth=0.8)
    axes.set(xlabel="width over its mean", ylabel="error over its mean")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.legend(frameon=False)
    return axes
