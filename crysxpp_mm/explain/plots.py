"""Plots of results: axes come in and go out, and matplotlib's global state is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from crysxpp_mm.elements import PROPERTIES
from crysxpp_mm.errors import DataError
from crysxpp_mm.explain.gradients import Contributions
from crysxpp_mm.explain.weights import SparsityPath
from crysxpp_mm.plotting import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _new_axes(axes: Axes | None, *, width: float = 5.0, height: float = 4.0) -> Axes:
    """``axes``, or those of a figure of its own; in a notebook that figure shows itself."""
    if axes is not None:
        return axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


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
    """Predicted against true values, with the mean absolute error and R2.

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
    """
    truth, predicted = np.asarray(y_true, dtype=float), np.asarray(y_pred, dtype=float)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise DataError(
            f"y_true and y_pred must be of one shape (n,), got {truth.shape} and {predicted.shape}."
        )
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        raise DataError("there is no pair of a true and a predicted value.")
    name = name or str(getattr(y_true, "name", None) or getattr(y_pred, "name", None) or "value")
    bars = None if std is None else np.asarray(std, dtype=float)[known]
    truth, predicted = truth[known], predicted[known]
    low = float(min(truth.min(), predicted.min()))
    high = float(max(truth.max(), predicted.max()))
    if scale == "log":
        if low <= 0:
            raise DataError(f"scale='log' needs values above zero, got {low:g}.")
        margin = (high / low) ** 0.04 if high > low else 1.1
        ends = [low / margin, high * margin]
    else:
        margin = 0.04 * (high - low) or 1.0
        ends = [low - margin, high + margin]
    axes = _new_axes(axes, width=4.6, height=4.6)
    axes.set(xscale=scale, yscale=scale)
    if scale == "log":
        _plain_numbers(axes.xaxis)
        _plain_numbers(axes.yaxis)
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
    parts = [f"MAE {np.abs(predicted - truth).mean():.3g}{f' {unit}' if unit else ''}"]
    if (spread := np.square(truth - truth.mean()).sum()) > 0:
        parts.append(f"R\u00b2 {1 - np.square(predicted - truth).sum() / spread:.3f}")
    parts.append(f"{len(truth)} crystals")
    axes.set(
        xlim=ends,
        ylim=ends,
        xlabel=f"{name}, true{label}",
        ylabel=f"{name}, predicted{label}",
        aspect="equal",
    )
    axes.set_title(", ".join(parts), fontsize=10)
    return axes


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 20, 50, 100 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_explanation(explanation: pd.DataFrame, *, axes: Axes | None = None) -> Axes:
    """Bars of the weights that a crystal switches on, by property, a colour an element.

    The bin that each element falls into is printed at its bar (as in Figs. 4-6 of the paper), in
    grey where the weight is exactly zero; a property that an element has no value of has no bar.

    Args:
        explanation: What ``explain`` gave.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: it is no such table.
    """
    known = [item.name for item in PROPERTIES]
    if not isinstance(explanation, pd.DataFrame) or list(explanation.columns) != known:
        raise DataError("plot_explanation draws the table that explain(structure) gives.")
    from crysxpp_mm.elements import element_properties

    elements = [str(symbol) for symbol in explanation.index]
    axes = _new_axes(axes, width=max(10.5, 1.5 + 0.24 * len(known) * len(elements)), height=4.6)
    width = 0.84 / max(len(elements), 2)
    places = np.arange(len(known))
    for row, symbol in enumerate(elements):
        values = explanation.loc[symbol].to_numpy(dtype=float)
        shifts = places + (row - (len(elements) - 1) / 2) * width
        axes.bar(
            shifts,
            np.nan_to_num(values),
            width=0.9 * width,
            color=COLORS[row % len(COLORS)],
            label=symbol,
        )
        bins = element_properties(symbol)
        for place, value, name in zip(shifts, values, known, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    bins[name] or "",
                    (place, max(value, 0.0)),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=8,
                    color="#222222" if value else "#909090",
                )
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


def _property_label(item: Any) -> str:
    """Name and unit of a property in up to three short lines."""
    words = item.name.replace("first ionization ", "first ionization\n")
    if "\n" not in words and len(words) > 12:
        words = words.replace(" ", "\n")
    unit = item.unit.replace("cm3", "cm\u00b3")
    return f"{words}\n({unit})" if unit else words


def plot_contributions(found: Contributions, *, axes: Axes | None = None) -> Axes:
    """From the baseline to the prediction, a step a property, the largest first.

    The steps end at the prediction: nothing of it is left unexplained.

    Args:
        found: What ``contributions`` gave.
        axes: Where to draw; axes of a new figure if None.
    """
    steps = found.by_property()
    steps = steps.loc[steps.abs().sort_values(ascending=False, kind="stable").index]
    starts = found.baseline + np.concatenate([[0.0], steps.cumsum().to_numpy()[:-1]])
    axes = _new_axes(axes, width=7.0, height=1.6 + 0.32 * len(steps))
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


def plot_learning_curve(source: Any, *, axes: Axes | None = None) -> Axes:
    """Training and validation loss by epoch; a point marks the epoch that each network kept.

    Args:
        source: A fitted estimator, or its ``learning_curve_``.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: there is no curve in ``source``.
    """
    table = getattr(source, "learning_curve_", source)
    if not isinstance(table, pd.DataFrame) or not {"epoch", "train_loss", "kept"} <= set(
        table.columns
    ):
        raise DataError("plot_learning_curve draws a fitted estimator or its learning_curve_.")
    from matplotlib.ticker import MaxNLocator

    axes = _new_axes(axes, width=5.4, height=3.8)
    members = table.groupby("member") if "member" in table else [(0, table)]
    for number, (_, part) in enumerate(members):
        for color, style, column, label in (
            (COLORS[0], "-", "train_loss", "training"),
            (COLORS[1], "--", "val_loss", "validation"),
        ):
            if column not in part or not part[column].notna().any():
                continue
            axes.plot(
                part["epoch"] + 1,
                part[column],
                color=color,
                linestyle=style,
                label=None if number else label,
            )
            if column == "val_loss":
                kept = part[part["kept"]]
                axes.plot(
                    kept["epoch"] + 1,
                    kept[column],
                    "o",
                    color=color,
                    label=None if number else "kept",
                )
    axes.set(xlabel="epoch", ylabel=f"loss ({_loss_name(source)})", yscale="log")
    _plain_numbers(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return axes


def _loss_name(source: Any) -> str:
    """What the loss is, as far as the source of a curve tells."""
    if hasattr(source, "classes_"):
        return "cross entropy"
    kinds = {"l1": "mean absolute error", "mse": "mean squared error"}
    kind = kinds.get(getattr(source, "loss", ""), "")
    return f"{kind},\nstandardized target" if kind else "no unit"


def plot_sparsity_path(path: SparsityPath, *, axes: Axes | None = None) -> Axes:
    """The selector's weights against lambda_1, a colour a property, one line a column.

    The axis on top says how many of the 92 columns are off.

    Args:
        path: What ``sparsity_path`` gave.
        axes: Where to draw; axes of a new figure if None.
    """
    axes = _new_axes(axes, width=8.0, height=4.4)
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
