"""Predicted against true values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError
from crysxpp_mm.plots.canvas import COLORS, new_axes, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_parity(
    y_true: Any,
    y_pred: Any,
    *,
    std: Any = None,
    name: str = "",
    unit: str = "",
    scale: Literal["linear", "log"] = "linear",
    axes: Axes | None = None,
) -> Axes:
    """Draw predicted against true values, with the mean absolute error and R2.

    Args:
        y_true: True values, NaN where unknown, shape ``(n,)``.
        y_pred: Predicted values, same shape.
        std: Standard deviation of each prediction, drawn as a bar.
        name: What is predicted; the name of a Series is used if it is empty.
        unit: Its unit.
        scale: Of both axes; ``"log"`` for values above zero that span decades.
        axes: Where to draw; axes of a new figure if None.

    Returns:
        The axes; ``axes.figure.savefig(path)`` writes them.

    Raises:
        DataError: the shapes differ, no pair is known, or a logarithm is asked for of a value that
            has none.

    Example:
        >>> plot_parity([1.0, 2.0], [1.1, 1.9], unit="GPa").get_title()
        'MAE 0.1 GPa, R² 0.960, 2 crystals'
    """
    truth, predicted = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    known = _known_pairs(truth, predicted)
    name = name or str(getattr(y_true, "name", None) or getattr(y_pred, "name", None) or "value")
    bars = None if std is None else np.asarray(std, dtype=float)[known]
    truth, predicted = truth[known], predicted[known]
    ends = _ends(np.concatenate([truth, predicted]), scale)
    axes = new_axes(axes, width=4.6, height=4.6)
    axes.set(xscale=scale, yscale=scale)
    if scale == "log":
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=1)
    if bars is not None:
        axes.errorbar(
            truth,
            predicted,
            yerr=bars,
            fmt="none",
            ecolor=COLORS[0],
            elinewidth=0.8,
            alpha=0.45,
            zorder=2,
        )
    size = 18 if len(truth) < 500 else 6
    axes.scatter(truth, predicted, s=size, color=COLORS[0], alpha=0.6, linewidths=0, zorder=3)
    label = f" ({unit})" if unit else ""
    axes.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"{name}, true{label}",
        ylabel=f"{name}, predicted{label}",
        aspect="equal",
    )
    axes.set_title(_summary(truth, predicted, unit), fontsize=10)
    return axes


def _known_pairs(truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the pairs of two known numbers.

    Raises:
        DataError: the shapes differ, or there is no such pair.
    """
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise DataError(
            f"y_true and y_pred must be of one shape (n,), got {truth.shape} and {predicted.shape}."
        )
    known: NDArray[np.bool_] = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        raise DataError("there is no pair of a true and a predicted value.")
    return known


def _ends(values: NDArray[Any], scale: str) -> tuple[float, float]:
    """Both ends of both axes.

    Raises:
        DataError: a value has no logarithm, and the scale needs it.
    """
    low, high = float(values.min()), float(values.max())
    if scale != "log":
        margin = 0.04 * (high - low) or 1.0
        return low - margin, high + margin
    if low <= 0:
        raise DataError(f"scale='log' needs values above zero, got {low:g}.")
    margin = (high / low) ** 0.04 if high > low else 1.1
    return low / margin, high * margin


def _summary(truth: NDArray[Any], predicted: NDArray[Any], unit: str) -> str:
    """Mean absolute error, R2 and number of crystals."""
    parts = [f"MAE {np.abs(predicted - truth).mean():.3g}{f' {unit}' if unit else ''}"]
    if (spread := np.square(truth - truth.mean()).sum()) > 0:
        parts.append(f"R\u00b2 {1 - np.square(predicted - truth).sum() / spread:.3f}")
    return ", ".join([*parts, f"{len(truth)} crystals"])
