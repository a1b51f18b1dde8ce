"""Curves of learning: by epoch, and by number of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from crysxpp_mm.errors import DataError
from crysxpp_mm.plots.canvas import COLORS, new_axes, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_learning_curve(source: Any, *, axes: Axes | None = None) -> Axes:
    """Draw training and validation loss by epoch; a point marks the epoch that each network kept.

    Args:
        source: A fitted estimator, or its ``learning_curve_``.
        axes: Where to draw; axes of a new figure if None.

    Raises:
        DataError: there is no curve in ``source``.

    Example:
        >>> from crysxpp_mm import load_model
        >>> plot_learning_curve(load_model("crysxpp-bulk-modulus")).get_xlabel()
        'epoch'
    """
    table = getattr(source, "learning_curve_", source)
    if not isinstance(table, pd.DataFrame) or not {"epoch", "train_loss", "kept"} <= set(
        table.columns
    ):
        raise DataError("plot_learning_curve draws a fitted estimator or its learning_curve_.")
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(axes, width=5.4, height=3.8)
    members = table.groupby("member") if "member" in table else [(0, table)]
    for number, (_, part) in enumerate(members):
        _draw_member(axes, part, labelled=number == 0)
    axes.set(xlabel="epoch", ylabel=f"loss ({_loss_name(source)})", yscale="log")
    plain_numbers(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return axes


def _draw_member(axes: Axes, part: pd.DataFrame, *, labelled: bool) -> None:
    """Draw the losses of one network; labels of one network name the lines of all."""
    epochs = part["epoch"] + 1
    train, val, kept = ("training", "validation", "kept") if labelled else (None, None, None)
    axes.plot(epochs, part["train_loss"], color=COLORS[0], linestyle="-", label=train)
    if "val_loss" in part and part["val_loss"].notna().any():
        axes.plot(epochs, part["val_loss"], color=COLORS[1], linestyle="--", label=val)
        chosen = part[part["kept"]]
        axes.plot(chosen["epoch"] + 1, chosen["val_loss"], "o", color=COLORS[1], label=kept)


def _loss_name(source: Any) -> str:
    """Name of the loss, as far as the source of a curve tells."""
    if hasattr(source, "classes_"):
        return "cross entropy"
    kinds = {"l1": "mean absolute error", "mse": "mean squared error"}
    kind = kinds.get(getattr(source, "loss", ""), "")
    return f"{kind},\nstandardized target" if kind else "no unit"


def plot_curves(table: pd.DataFrame) -> Figure:
    """Draw one panel a loss term, training and validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = [name[6:] for name in table.columns if name.startswith("train_")]
    figure = Figure(figsize=(3.2 * len(terms), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for prefix, label in (("train", "training"), ("val", "validation")):
            if f"{prefix}_{term}" in table:
                axes.plot(table["epoch"] + 1, table[f"{prefix}_{term}"], label=label)
        axes.set(xlabel="epoch", title=term.replace("_", " "), yscale="log")
        axes.legend(frameon=False)
    return figure


def draw_label_curves(summary: pd.DataFrame) -> Figure:
    """Draw the error against the number of labels, one panel per property, one line per method.

    Args:
        summary: One row per property, method and number of labels, with the columns ``property``,
            ``unit``, ``method``, ``n_train``, ``mae`` and ``std`` (over the seeds, drawn as bars).

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(summary["property"].unique())
    figure = Figure(figsize=(5.2 * len(names), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        of_property = summary[summary["property"] == name]
        for color, method in zip(COLORS, summary["method"].unique(), strict=False):
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
